"""Whole episodes of uniform random actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.collect.replayable import ReplayableEnv

if TYPE_CHECKING:
    from proxygap.base.protocols import Task


def uniform_episodes(task: Task, rows: int, seed: int) -> Transitions:
    """Episodes, all to their end, until there are at least so many transitions; actions are uniform in [-1, 1].

    In a task of choices, where the largest entry counts, every choice is equally likely.

    Raises:
        NonFiniteValue, RunFailed: the environment gave NaN or infinity, or raised.
    """
    env, rng = ReplayableEnv(task, seed, "data/random"), generator(seed, "data/random/actions")
    found: list[Transitions] = []
    try:
        while len(found) < rows or env.step_in_episode:
            found.append(env.step(rng.uniform(-1.0, 1.0, task.action_size).astype(np.float32)))
    finally:
        env.close()
    return Transitions.concatenate(found)
