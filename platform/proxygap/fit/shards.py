"""Shards of any ensemble: their states combine into the whole's, and the whole's splits into theirs.

Shape legend: M members of the state at hand; every array but the shared ones has the members first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import State


def merge_members(states: Sequence[State], what: str, shared: Sequence[str], per_shard: Sequence[str] = ()) -> State:
    """The whole's state from those of its shards, in any order.

    Args:
        states: of the shards.
        what: the ensemble, as errors name it.
        shared: arrays that do not have the members in front, and must be equal in all shards.
        per_shard: keys of the structure in which shards may differ.

    Raises:
        CheckpointRefused: the shards differ in version, sizes or shared arrays, or share a member; names the key.
    """
    first = states[0]
    compared = [key for key in first.structure if key not in {"member_ids", *per_shard}]
    for state in states[1:]:
        for key in compared:
            require_equal(f"{what}.{key}", state.structure.get(key), first.structure[key])
        for key in shared:
            if not np.array_equal(state.arrays[key], first.arrays[key]):
                raise CheckpointRefused(
                    "shards of one ensemble were fitted to different data",
                    field=f"{what}.{key}",
                    remedy="restore all shards from one version",
                )
    ids = [member for state in states for member in state.structure["member_ids"]]
    if len(set(ids)) < len(ids):
        raise CheckpointRefused("shards share a member", field=f"{what}.member_ids", value=ids)
    joined = {
        key: first.arrays[key] if key in shared else np.concatenate([state.arrays[key] for state in states])
        for key in first.arrays
    }
    return State(joined, {**first.structure, "member_ids": ids})


def split_members(state: State, member_ids: Sequence[int], what: str, shared: Sequence[str]) -> State:
    """The state of the shard that holds ``member_ids``, in that order; arguments as in `merge_members`.

    Raises:
        CheckpointRefused: a member is not part of ``state``.
    """
    ids = list(state.structure["member_ids"])
    for member in member_ids:
        if member not in ids:
            raise CheckpointRefused("the state lacks a member", field=f"{what}.member_ids", value=member)
    places = [ids.index(member) for member in member_ids]
    arrays = {key: (array if key in shared else array[places]).copy() for key, array in state.arrays.items()}
    return State(arrays, {**state.structure, "member_ids": list(member_ids)})


def require_equal(field: str, given: object, mine: object) -> None:
    """Refuse a state whose ``field`` differs from ours. Raises CheckpointRefused, naming the field."""
    if given != mine:
        raise CheckpointRefused(
            f"the state was taken from another ensemble; here it is {mine!r}",
            field=field,
            value=given,
            remedy="resume with the experiment that wrote it",
        )
