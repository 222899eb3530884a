"""Shards of an ensemble: their states combine into the whole's, and the whole's splits into theirs.

Shape legend: M members of the state at hand; every array but the normalizers has the members first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import State

_SHARED = ("input_mean", "input_std", "target_mean", "target_std")
"""Arrays of a state that do not have the members in front."""


def merge(states: Sequence[State]) -> State:
    """The whole's state from those of its shards, in any order; elites are chosen over the whole.

    Raises:
        CheckpointRefused: the shards differ in version, sizes or normalizers, or share a member; names the key.
    """
    first = states[0]
    for state in states[1:]:
        for key in first.structure.keys() - {"member_ids", "elites"}:
            require_equal(f"dynamics.{key}", state.structure.get(key), first.structure[key])
        for key in _SHARED:
            if not np.array_equal(state.arrays[key], first.arrays[key]):
                raise CheckpointRefused(
                    "shards of one ensemble were fitted to different data",
                    field=f"dynamics.{key}",
                    remedy="restore all shards from one version",
                )
    ids = [member for state in states for member in state.structure["member_ids"]]
    if len(set(ids)) < len(ids):
        raise CheckpointRefused("shards share a member", field="dynamics.member_ids", value=ids)
    joined = {
        key: first.arrays[key] if key in _SHARED else np.concatenate([state.arrays[key] for state in states])
        for key in first.arrays
    }
    return split(State(joined, {**first.structure, "member_ids": ids}), sorted(ids))


def split(state: State, member_ids: Sequence[int]) -> State:
    """The state of the shard that holds ``member_ids``, in that order.

    Raises:
        CheckpointRefused: a member is not part of ``state``.
    """
    ids = list(state.structure["member_ids"])
    for member in member_ids:
        if member not in ids:
            raise CheckpointRefused("the state lacks a member", field="dynamics.member_ids", value=member)
    places = [ids.index(member) for member in member_ids]
    arrays = {key: (array if key in _SHARED else array[places]).copy() for key, array in state.arrays.items()}
    elites = best_members(arrays["held_out_loss"], tuple(member_ids), int(state.structure["elite_count"]))
    return State(arrays, {**state.structure, "member_ids": list(member_ids), "elites": list(elites)})


def best_members(loss_M: NDArray[np.float32], member_ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The ``count`` members of lowest held-out loss, best first; ties go to the lower place."""
    return tuple(member_ids[place] for place in np.argsort(loss_M, kind="stable")[:count])


def require_equal(field: str, given: object, mine: object) -> None:
    """Refuse a state whose ``field`` differs from ours. Raises CheckpointRefused, naming the field."""
    if given != mine:
        raise CheckpointRefused(
            f"the state was taken from another ensemble; here it is {mine!r}",
            field=field,
            value=given,
            remedy="resume with the experiment that wrote it",
        )
