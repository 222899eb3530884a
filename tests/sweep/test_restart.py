"""Sweeps whose process is killed, or that are interrupted, against one that nothing happened to."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from proxygap.record.sweep_folder import ENDED, read_ledger
from proxygap.sweep.load import load_sweep
from proxygap.sweep.run import resume_sweep, run_sweep
from tests.sweep import small

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SEQUENTIAL: dict[str, Any] = {
    "trials": 4,
    "search": {"kind": "tpe", "startup": 2},
    "scheduler": {"kind": "asha", "grace": 2, "reduction": 2},
}
POPULATION: dict[str, Any] = {"trials": 3, "concurrency": 3, "scheduler": {"kind": "pbt", "every": 2}}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Of this process; sweeps that are killed start one of their own."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.long
@pytest.mark.parametrize("section", [SEQUENTIAL, POPULATION], ids=["tpe-asha", "pbt"])
def test_killed_at_a_random_moment_and_run_again_equals_never_killed(tmp_path: Path, section: dict[str, Any]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    assert run_sweep(small.loaded(whole, **section)).complete
    file = small.write(broken, **section)
    reports = sum(len(trial["reports"]) for trial in small.told(whole).values())
    process = small.start(file)
    small.signal_after(process, broken, random.Random(7).randrange(1, reports - 1))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    ended = _ended_journals(broken)
    summary = run_sweep(load_sweep(file))
    assert (summary.complete, summary.interrupted, summary.note) == (True, False, "")
    assert ended.items() <= _ended_journals(broken).items()
    assert small.proposals(broken) == list(range(section["trials"]))
    assert small.told(broken) == small.told(whole)
    for trial in range(section["trials"]):
        for seed in (0, 1):
            assert small.readings(broken, trial, seed) == small.readings(whole, trial, seed)


def _ended_journals(folder: Path) -> dict[Path, bytes]:
    """Journals of all seeds of the trials that have ended."""
    place = small.place(folder)
    ended = [number for number, trial in read_ledger(place.ledger).items() if trial.state in ENDED]
    return {run.journal: run.journal.read_bytes() for number in ended for run in place.trial(number).seeds()}


def test_interrupt_checkpoints_and_the_folder_alone_continues(tmp_path: Path) -> None:
    process = small.start(small.write(tmp_path))
    small.signal_after(process, tmp_path, 8, signal.SIGINT)
    assert small.finish(process) == {"complete": False, "interrupted": True, "note": "the sweep was interrupted"}
    place = small.place(tmp_path)
    status = place.trial(1).seed(0).status()
    assert status is not None
    assert (status.state, status.reason) == ("interrupted", "the sweep was interrupted")
    assert not (place.path / ".tune").exists()
    assert resume_sweep(place.path).complete
    found = small.told(tmp_path)
    assert [trial["state"] for trial in found.values()] == ["finished"] * 3
    assert all([index for index, *_ in trial["reports"]] == [1, 2, 3, 4, 5, 6] for trial in found.values())
