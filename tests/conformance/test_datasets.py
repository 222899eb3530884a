"""Every kind of dataset keeps every clause of the seam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxygap.base.records import Transitions
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.episodes import write_episodes
from proxygap.experiment import Experiment, validate
from proxygap.loops.datasets import dataset
from proxygap.registry import parts
from proxygap.testing import datasets as suite
from proxygap.testing.tasks import rollout

PLAN = {"planner": {"kind": "cem", "horizon": 8, "candidates": 16, "rounds": 2}}
TEACHER = {
    "kind": "loop",
    "sections": {
        "loop": {"kind": "sac", "real_steps": 60},
        "collect": {"random_steps": 40},
        "optimize": {"hidden": [8], "batch_size": 8},
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "random": {"rows": 100},
    "on_policy": {"teacher": TEACHER},
    "expert": {"rows": 60},
    "grid": {"points": 3, "half_width": [1.0]},
    "file": {"path": "given.parquet", "rows": 50},
}


def experiment(folder: Path, data: dict[str, Any], **task: Any) -> Experiment:
    given = {
        "name": "data",
        "question": "What is in it?",
        "task": {"kind": "continuous_cartpole", "max_episode_steps": 30, "start_spread": 0.2, **task},
        "outcomes": ["return"],
        "plan": PLAN,
        "loop": {"kind": "sac", "real_steps": 1000},
        "data": data,
        "record": {"folder": str(folder)},
    }
    return validate(given)


def test_every_kind_is_here() -> None:
    assert {part.kind for part in parts("dataset")} == set(KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two places, so that the second one repeats nothing."""
    return tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("kind", KINDS)
def test_dataset_keeps_the_clauses(kind: str, folders: tuple[Path, Path]) -> None:
    settings = {"kind": kind, **KINDS[kind]}
    if kind == "file":
        settings["path"] = str(folders[0] / "given.parquet")
        write_episodes(settings["path"], rollout(experiment(folders[0], {"kind": "random", "rows": 1}).task, 80), {})
    turns = iter(range(100))

    def build(seed: int) -> tuple[Transitions, Lineage]:
        asked = experiment(folders[next(turns) % 2], settings)
        assert asked.data is not None
        return dataset(asked, asked.data, seed)

    suite.check_dataset(experiment(folders[0], settings).control_task, build)


@pytest.fixture(scope="module")
def one_ray() -> Any:
    """One session for all teachers."""
    from proxygap.loops.session import ray_session

    with ray_session():
        yield
