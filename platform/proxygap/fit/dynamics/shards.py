"""Shards of a dynamics ensemble: as of any ensemble, and elites are chosen anew.

Shape legend: M members of the state at hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from proxygap.base.protocols import State
from proxygap.fit.shards import merge_members, split_members

_SHARED = ("input_mean", "input_std", "target_mean", "target_std")
"""Arrays of a state that do not have the members in front."""


def merge(states: Sequence[State]) -> State:
    """The whole's state from those of its shards, see `merge_members`; elites are chosen over the whole."""
    whole = merge_members(states, "dynamics", _SHARED, per_shard=("elites",))
    return split(whole, sorted(whole.structure["member_ids"]))


def split(state: State, member_ids: Sequence[int]) -> State:
    """The state of the shard that holds ``member_ids``, see `split_members`."""
    shard = split_members(state, member_ids, "dynamics", _SHARED)
    elites = best_members(shard.arrays["held_out_loss"], tuple(member_ids), int(state.structure["elite_count"]))
    return State(shard.arrays, {**shard.structure, "elites": list(elites)})


def best_members(loss_M: NDArray[np.float32], member_ids: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The ``count`` members of lowest held-out loss, best first; ties go to the lower place."""
    return tuple(member_ids[place] for place in np.argsort(loss_M, kind="stable")[:count])
