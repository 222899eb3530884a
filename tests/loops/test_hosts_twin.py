"""Where a part lives changes nothing that is measured: hosts, seeds in actors; and nothing stays behind.

The runs share one Ray and start in this process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from proxygap.experiment import Experiment, validate
from proxygap.loops.run import RunSummary, resume, run
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.rows import ReadingRow, read_journal
from tests.loops.command import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
SAC = {"loop": {"kind": "sac", "real_steps": 240, "updates_per_step": 2}, "fit": None}
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    threads = torch.get_num_threads()
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=4, namespace="proxygap-tests", **options)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def all_given_back() -> Iterator[None]:
    """After each test every CPU is free and no actor is left."""
    yield
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 4.0 or actors():
        assert time.monotonic() < until, f"{ray.available_resources()}, {actors()}"
        time.sleep(0.1)


def actors() -> list[Any]:
    """Processes of this Ray that are actors of ours or of RLlib."""
    return [each for each in psutil.Process().children(recursive=True) if is_actor(each)]


def is_actor(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
        return title.startswith("ray::") and not title.startswith(
            ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnv")
        )
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: making MLflow's database takes seconds."""
    return tmp_path_factory.mktemp("runs")


def experiment(runs: Path, **sections: Any) -> Experiment:
    return validate({**SMALL, "record": {"folder": str(runs), "flush_s": 2.0}, **sections})


def readings(summary: RunSummary, seed: int = 0) -> list[dict[str, str]]:
    """All but the times; NaN as text, so that rows compare."""
    assert summary.states[seed] is RunState.FINISHED, summary.reasons
    rows = read_journal(ExperimentFolder(summary.folder).seed(seed).journal)
    told = [row.reading for row in rows if isinstance(row, ReadingRow)]
    assert [reading.clocks.real_step for reading in told] == [40, 80, 120, 160, 200, 240]
    return [
        {"clocks": repr(reading.clocks)}
        | {m.key: repr(m.value) for m in reading.measurements if not m.key.startswith("time/")}
        for reading in told
    ]


@pytest.fixture(scope="module")
def in_process(runs: Path) -> list[dict[str, str]]:
    return readings(run(experiment(runs)))


def hosted(hosts: int) -> dict[str, Any]:
    return {"serve": {"dynamics": {"hosts": hosts, "cpus": 0.5}}}


@pytest.mark.parametrize("hosts", [1, pytest.param(2, marks=pytest.mark.long)])
def test_hosts_measure_what_the_twin_measures(runs: Path, in_process: list[dict[str, str]], hosts: int) -> None:
    assert readings(run(experiment(runs, **hosted(hosts)))) == in_process


def test_seeds_side_by_side_measure_what_they_measure_one_by_one(runs: Path) -> None:
    sections = {**SAC, "seeds": [0, 1]}
    one_by_one = run(experiment(runs, **sections))
    untouched = journals(one_by_one)
    again = run(experiment(runs, **sections))
    assert (again.folder, journals(again)) == (one_by_one.folder, untouched), "a finished run was run again"
    side_by_side = run(experiment(runs, **sections, compute={"parallel_seeds": 2}), fresh=True)
    assert side_by_side.folder.name == f"{one_by_one.folder.name}-2"
    for seed in (0, 1):
        assert readings(side_by_side, seed) == readings(one_by_one, seed)
    assert journals(one_by_one) == untouched


def journals(summary: RunSummary) -> list[bytes]:
    return [place.journal.read_bytes() for place in ExperimentFolder(summary.folder).seeds()]


RUNNERS = {"collect": {"random_steps": 60, "env_runners": 1, "envs_per_runner": 2}}
LEARNER = {"optimize": {**SMALL["optimize"], "learners": 1}}


@pytest.mark.parametrize("sections", [pytest.param(RUNNERS, id="env_runners"), pytest.param(LEARNER, id="learners")])
@pytest.mark.long
def test_remote_workers_run_through_and_resume(runs: Path, sections: dict[str, Any]) -> None:
    workers: list[int] = []
    summary = run(
        experiment(runs, **sections),
        on_progress=lambda progress: workers.extend([len(actors())] * (progress.clocks.real_step > 0)),
        stop=lambda: len(workers) > 2,
    )
    assert summary.states == {0: RunState.INTERRUPTED}
    assert set(workers) == {1}
    readings(resume(summary.folder))
