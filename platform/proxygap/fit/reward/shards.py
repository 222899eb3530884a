"""Shards of a reward ensemble: as of any ensemble; the input normalizer is shared."""

from __future__ import annotations

from collections.abc import Sequence

from proxygap.base.protocols import State
from proxygap.fit.shards import merge_members, split_members

SHARED = ("input_mean", "input_std")
"""Arrays of a state that do not have the members in front."""


def merge(states: Sequence[State]) -> State:
    """The whole's state from those of its shards, see `merge_members`."""
    whole = merge_members(states, "reward", SHARED)
    return split(whole, sorted(whole.structure["member_ids"]))


def split(state: State, member_ids: Sequence[int]) -> State:
    """The state of the shard that holds ``member_ids``, see `split_members`."""
    return split_members(state, member_ids, "reward", SHARED)
