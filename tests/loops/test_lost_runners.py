"""A remote environment runner that is killed: exactly the steps or answers asked for, of the newest policy."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from proxygap.experiment import validate
from proxygap.loops.session import ray_session
from tests.loops.test_language_loops import TINY
from tests.loops.test_preference_control import loop

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
RUNNERS = {"env_runners": 2, "cpus_per_runner": 0.1}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)
    with ray_session():
        yield


def started(kind: str) -> Any:
    if kind == "language":
        experiment = validate({**{name: part for name, part in TINY.items() if part is not None}, "collect": RUNNERS})
        return experiment.loop.start(experiment, 0)
    random = {"random_steps": 120} if kind == "sac" else {}
    return loop(kind, collect={**RUNNERS, **random}, loop={"real_steps": 480})


def weights(module: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.detach().cpu().numpy().copy() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "killed", "left"),
    [
        ("ppo", 2, 1),
        pytest.param("sac", 2, 1, marks=pytest.mark.long),
        pytest.param("language", 1, 2, marks=pytest.mark.long),
    ],
)
def test_killed_runners_are_waited_for_and_asked_again(kind: str, killed: int, left: int) -> None:
    subject = started(kind)
    try:
        subject.train()
        subject.train()
        twice = subject.clocks.real_step
        pids = subject.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
        for pid in pids[:killed]:
            os.kill(pid, signal.SIGKILL)
        subject.train()
        assert 2 * subject.clocks.real_step == 3 * twice
        assert "env_runner_lost" in [event for event, _ in subject.events]
        if kind != "language":  # a life after death repeats nothing: not one step of the replay is there twice
            rows = subject.replay.all()
            assert len(np.unique(np.stack([rows.episode_B, rows.step_B]), axis=1).T) == len(rows)
            assert len(np.unique(rows.obs_BO, axis=0)) == len(rows)
        subject.bring_weights()
        newest = weights(subject.newest_module())
        acting = subject.env_runner_group.foreach_env_runner(
            lambda runner: weights(runner.module), local_env_runner=False
        )
        assert len(acting) >= left
        for found in acting:
            shared = newest.keys() & found.keys()
            assert shared
            assert all(np.array_equal(newest[name], found[name]) for name in shared)
    finally:
        subject.stop()
