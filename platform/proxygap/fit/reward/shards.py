"""Shards of a reward ensemble: their states combine into the whole's, and the whole's splits into theirs.

Every array but the input normalizer has the members first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import State
from proxygap.fit.dynamics.shards import require_equal

SHARED = ("input_mean", "input_std")
"""Arrays of a state that do not have the members in front."""


def merge(states: Sequence[State]) -> State:
    """The whole's state from those of its shards, in any order.

    Raises:
        CheckpointRefused: the shards differ in version, sizes or normalizer, or share a member; names the key.
    """
    first = states[0]
    for state in states[1:]:
        for key in [key for key in first.structure if key != "member_ids"]:
            require_equal(f"reward.{key}", state.structure.get(key), first.structure[key])
        for key in SHARED:
            if not np.array_equal(state.arrays[key], first.arrays[key]):
                raise CheckpointRefused(
                    "shards of one ensemble were fitted to different data",
                    field=f"reward.{key}",
                    remedy="restore all shards from one version",
                )
    ids = [member for state in states for member in state.structure["member_ids"]]
    if len(set(ids)) < len(ids):
        raise CheckpointRefused("shards share a member", field="reward.member_ids", value=ids)
    joined = {
        key: first.arrays[key] if key in SHARED else np.concatenate([state.arrays[key] for state in states])
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
            raise CheckpointRefused("the state lacks a member", field="reward.member_ids", value=member)
    places = [ids.index(member) for member in member_ids]
    arrays = {key: (array if key in SHARED else array[places]).copy() for key, array in state.arrays.items()}
    return State(arrays, {**state.structure, "member_ids": list(member_ids)})
