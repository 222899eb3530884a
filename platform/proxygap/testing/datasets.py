"""The clauses that every dataset must keep, each a function that raises AssertionError where it is broken.

A dataset is given as a function of the seed, with the task that it is of. Shape legend: B transitions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from proxygap.base.records import Transitions

if TYPE_CHECKING:
    from proxygap.base.protocols import Task
    from proxygap.collect.data.lineage import Lineage

Build = Callable[[int], "tuple[Transitions, Lineage]"]
"""A seed in, the dataset out."""


def rows_are_of_the_task(task: Task, build: Build) -> None:
    """Every column has the task's size and the stated type; observations and rewards are finite, actions in [-1, 1]."""
    rows, _ = build(0)
    assert len(rows), "a dataset has rows"
    assert rows.obs_BO.shape == rows.next_obs_BO.shape == (len(rows), task.obs_size)
    assert rows.action_BA.shape == (len(rows), task.action_size)
    assert rows.component_reward_BR.shape == (len(rows), len(task.components))
    types = {name: column.dtype.name for name, column in rows.columns().items()}
    assert {types[name] for name in ("obs_BO", "action_BA", "next_obs_BO", "outcome_reward_B")} == {"float32"}
    assert (types["terminated_B"], types["episode_B"], types["step_B"]) == ("bool", "int64", "int64")
    for column in (rows.obs_BO, rows.next_obs_BO, rows.outcome_reward_B):
        assert np.isfinite(column).all(), "observations and rewards are finite"
    assert (np.abs(rows.action_BA) <= 1.0).all(), "actions are in [-1, 1]"


def episodes_go_on(task: Task, build: Build) -> None:
    """Rows are in order of episode and step; a step starts where the one before it ended, unless that was the last."""
    del task
    rows, _ = build(0)
    order = np.lexsort((rows.step_B, rows.episode_B))
    assert np.array_equal(order, np.arange(len(rows))), "rows are in order of episode and step"
    follows_B = (np.diff(rows.episode_B) == 0) & (np.diff(rows.step_B) == 1)
    assert np.array_equal(rows.next_obs_BO[:-1][follows_B], rows.obs_BO[1:][follows_B]), "a step starts elsewhere"
    over_B = (rows.terminated_B | rows.truncated_B)[:-1]
    assert not over_B[follows_B].any(), "an episode goes on after its end"


def laws_hold(task: Task, build: Build) -> None:
    """Where the task knows its reward and termination, the rows obey them."""
    import torch

    rows, _ = build(0)
    tensors = [torch.from_numpy(column) for column in (rows.obs_BO, rows.action_BA, rows.next_obs_BO)]
    if task.known_reward:
        np.testing.assert_allclose(task.reward(*tensors).numpy(), rows.outcome_reward_B, rtol=1e-5, atol=1e-5)
    if task.known_termination:
        assert np.array_equal(task.terminated(*tensors).numpy(), rows.terminated_B), "an end is none, or one is missing"


def the_lineage_is_of_these_rows(task: Task, build: Build) -> None:
    """The lineage names the task and counts and hashes the rows, and comes back from its provenance."""
    rows, lineage = build(0)
    assert lineage.task == task.name
    assert (lineage.rows, lineage.episodes) == (len(rows), len(np.unique(rows.episode_B)))
    assert lineage.content_hash == rows.content_hash
    assert len(lineage.key) == len(lineage.task_hash) == 64, "hashes are SHA-256"
    assert lineage.policy["kind"], "somebody acted"
    assert type(lineage).read(lineage.provenance(), rows, "here") == lineage, "a file would forget it"


def the_seed_decides(task: Task, build: Build) -> None:
    """Equal seeds give equal rows and lineage."""
    del task
    (first, lineage), (again, same) = build(3), build(3)
    assert first.content_hash == again.content_hash, "equal seeds gave different rows"
    assert lineage == same, "equal rows have different lineages"


CLAUSES: tuple[Callable[[Task, Build], None], ...] = (
    rows_are_of_the_task,
    episodes_go_on,
    laws_hold,
    the_lineage_is_of_these_rows,
    the_seed_decides,
)


def check_dataset(task: Task, build: Build) -> None:
    """Hold a dataset to every clause. Raises AssertionError at the first that is broken."""
    for clause in CLAUSES:
        clause(task, build)
