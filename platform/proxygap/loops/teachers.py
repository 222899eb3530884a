"""Who makes data before a run: a planner on the task's own law, or a loop that learns the task first.

Shape legend: E episodes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.errors import RunFailed
from proxygap.base.records import Transitions
from proxygap.base.seeds import derived_seed
from proxygap.imagine.law import LawModel
from proxygap.imagine.planning import PlanningPolicy
from proxygap.loops.session import ray_session
from proxygap.probe.outcome import Evaluator

if TYPE_CHECKING:
    from proxygap.base.protocols import EpisodicPolicy, Policy, Task
    from proxygap.experiment import Experiment
    from proxygap.imagine.planners.settings import Planning
    from proxygap.probe.outcome import Evaluation


@contextlib.contextmanager
def taught(teacher: Experiment, seed: int) -> Iterator[Any]:
    """A loop at the end of its budget, for the length of a block: it is driven as a run drives it, but not measured."""
    with ray_session() if teacher.needs_ray else contextlib.nullcontext():
        loop = teacher.loop.start(teacher, seed)
        try:
            while loop.clocks.real_step < teacher.loop.real_steps:
                loop.train()
            yield loop
        finally:
            loop.stop()


def lived_through(loop: Any) -> Transitions:
    """All that the loop's replay has kept, oldest first."""
    rows: Transitions = loop.replay.all()
    return rows


def exact(planning: Planning) -> Planning:
    """How to plan on a law as in a model: it has one member and no noise, so that one particle says it all."""
    return planning.model_copy(update={"particles": 1, "propagation": "expectation", "precision": "float32"})


def law_policy(task: Task, planning: Planning, seed: int) -> EpisodicPolicy:
    """A planner on the task's own law."""
    own_seed = derived_seed(seed, "data/expert/plan")
    return PlanningPolicy(LawModel(task), task, exact(planning), groups=[(0,)], seed=own_seed)


def expert_episodes(
    policy: Policy | EpisodicPolicy,
    task: Task,
    seed: int,
    *,
    rows: int,
    least_return: float | None,
    attempts: int,
    side_by_side: int,
    field: str = "data",
) -> Transitions:
    """Whole episodes of a policy's deterministic actions, until there are at least ``rows`` transitions.

    Start states are none that an evaluation uses. Episodes are numbered by when they were lived, dropped ones included.

    Args:
        policy: acts.
        task: makes the environments.
        seed: of the episodes.
        rows: transitions wanted.
        least_return: episodes with less return are dropped; None drops none.
        attempts: most episodes lived.
        side_by_side: episodes lived at the same time.
        field: section of the settings, for the error.

    Raises:
        RunFailed: that many episodes did not give ``rows`` transitions, or an environment raised.
        NonFiniteValue: policy or environment gave NaN or infinity.
    """
    found: list[Transitions] = []
    lived, best = 0, -math.inf
    while (lacking := rows - sum(map(len, found))) > 0:
        if lived >= attempts:
            raise _too_poor(sum(map(len, found)), rows, lived, best, field)
        count = min(side_by_side, attempts - lived, -(-lacking // task.max_episode_steps))
        evaluation = _live(policy, task, derived_seed(seed, f"data/expert/{lived}"), count)
        best = max(best, float(evaluation.outcome_return_E.max()))
        found += _good(evaluation, -math.inf if least_return is None else least_return, lived)
        lived += count
    return Transitions.concatenate(found)


def _live(policy: Policy | EpisodicPolicy, task: Task, seed: int, count: int) -> Evaluation:
    evaluator = Evaluator(task, seed, count)
    try:
        return evaluator.evaluate(policy)
    finally:
        evaluator.close()


def _good(evaluation: Evaluation, least_return: float, first: int) -> list[Transitions]:
    good_E = np.flatnonzero(evaluation.outcome_return_E >= least_return)
    rows = evaluation.transitions
    return [replace(part, episode_B=part.episode_B + first) for part in rows.episodes() if part.episode_B[0] in good_E]


def _too_poor(found: int, rows: int, lived: int, best: float, field: str) -> RunFailed:
    return RunFailed(
        f"{lived} episodes of the teacher gave {found} of {rows} transitions; the best return was {best:.4g}",
        field=f"{field}.least_return",
        remedy=f"Lower it, raise {field}.attempts, or give a better {field}.teacher",
    )
