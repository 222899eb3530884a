"""Budgets, failures and dead processes, of sweeps in this process on one Ray."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from proxygap.record.folder import RunState
from proxygap.record.rows import EventRow, read_journal
from proxygap.record.sweep_folder import TrialState, read_ledger
from proxygap.sweep.progress import SweepProgress
from proxygap.sweep.run import run_sweep
from proxygap.sweep.trial_records import lock_file
from tests.sweep import small

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OF_A_TRIAL = 6 * 2
"""Real steps: six of each of two seeds."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_real_steps_are_never_exceeded_and_a_larger_budget_continues(tmp_path: Path) -> None:
    first = run_sweep(small.loaded(tmp_path, trials=4, concurrency=2, budget={"real_step": 2 * OF_A_TRIAL + 11}))
    assert first.spent["real_step"] == 2 * OF_A_TRIAL
    assert len(first.states) == 2
    assert not first.complete
    assert first.note == "trial 2 may take 12 real steps, and of sweep.budget.real_step = 35 only 11 are left"
    second = run_sweep(small.loaded(tmp_path, trials=4, concurrency=2, budget={"real_step": 4 * OF_A_TRIAL}))
    assert second.folder == first.folder
    assert second.complete
    assert second.spent["real_step"] == 4 * OF_A_TRIAL
    assert small.proposals(tmp_path) == [0, 1, 2, 3]


@pytest.mark.long
def test_labels_end_the_sweep_and_wall_clock_lets_nothing_begin(tmp_path: Path) -> None:
    """Each seed buys 100 labels in its first iteration: the third iteration that does so reaches 300."""
    limited = small.loaded(tmp_path, sections=small.FITTED, budget={"label": 300})
    summary = run_sweep(limited)
    assert summary.states == {0: TrialState.FINISHED, 1: TrialState.RUNNING}
    assert summary.note == "sweep.budget.label = 300 was spent"
    trial = small.place(tmp_path).trial(1)
    assert len(small.readings(tmp_path, 1, 0)) == 1
    assert not trial.seed(1).journal.exists()
    status = trial.seed(0).status()
    assert status is not None
    assert (status.state, status.reason) == (RunState.INTERRUPTED, "sweep.budget.label = 300 was spent")
    none = run_sweep(small.loaded(tmp_path, sections=small.FITTED, budget={"wall_s": 0.01}))
    assert none.states == summary.states
    assert none.note == "sweep.budget.wall_s was spent"


def test_trials_that_cannot_be_chosen_by_are_failed_with_the_reason_and_end_the_sweep(tmp_path: Path) -> None:
    summary = run_sweep(
        small.loaded(tmp_path, goals=[{"metric": "model/nowhere"}], trials=5, failures={"stop_after": 2})
    )
    reason = "model/nowhere was not measured at 1 real steps (seeds 0, 1)"
    assert summary.states == {0: TrialState.FAILED, 1: TrialState.FAILED}
    assert summary.reasons == {0: reason, 1: reason}
    assert summary.note == "2 trials failed, and sweep.failures.stop_after = 2"
    assert [trial.attempts for trial in read_ledger(small.place(tmp_path).ledger).values()] == [1, 1]
    assert summary.best == ()


def kill_once(folder: Path, at: int, times: int) -> Any:
    """Kills the process that has trial 0 whenever the ledger has ``at`` more reports, so many times."""
    left = [times]

    def look(_: SweepProgress) -> None:
        ledger = small.place(folder).ledger.read_text()
        if left[0] and ledger.count('"reported"') >= at * (times - left[0] + 1):
            lock = str(lock_file(small.place(folder).trial(0).path))
            for process in psutil.process_iter():
                if process.name().startswith("ray::") and lock in {each.path for each in process.open_files()}:
                    left[0] -= 1
                    os.kill(process.pid, signal.SIGKILL)
                    return

    return look


@pytest.mark.long
def test_process_that_dies_is_replaced_and_measures_the_same(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    long = {"loop": {"kind": "tilt", "real_steps": 60, "largest_kl": 2.0}}
    for folder in (whole, broken):
        folder.mkdir()
    run_sweep(small.loaded(whole, sections=long, trials=1))
    summary = run_sweep(small.loaded(broken, sections=long, trials=1), on_progress=kill_once(broken, 5, 1))
    assert summary.states == {0: TrialState.FINISHED}
    assert read_ledger(small.place(broken).ledger)[0].attempts == 2
    assert small.told(broken) == small.told(whole)
    assert small.readings(broken, 0, 1) == small.readings(whole, 0, 1)
    rows = read_journal(small.place(broken).trial(0).seed(0).journal)
    assert [row.kind for row in rows if isinstance(row, EventRow)].count("resumed") == 1


def test_process_that_dies_once_too_often_is_a_failed_trial(tmp_path: Path) -> None:
    long = {"loop": {"kind": "tilt", "real_steps": 60, "largest_kl": 2.0}}
    made = small.loaded(tmp_path, sections=long, trials=1, failures={"retries": 0})
    summary = run_sweep(made, on_progress=kill_once(tmp_path, 5, 1))
    assert summary.states == {0: TrialState.FAILED}
    assert summary.reasons == {0: "its process died"}
    status = small.place(tmp_path).trial(0).seed(0).status()
    assert status is not None
    assert (status.state, status.reason) == (RunState.FAILED, "its process died")


@pytest.mark.long
def test_trials_at_the_same_time_measure_what_they_measure_one_by_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, concurrency in ((one, 1), (two, 2)):
        folder.mkdir()
        assert run_sweep(small.loaded(folder, concurrency=concurrency)).complete
    assert small.told(one) == small.told(two)
    journal = [json.loads(line) for line in small.place(two).journal.read_text().splitlines()]
    last = [row["values"] for row in journal if "values" in row][-1]
    assert last["model/trials_finished"] == 3
    best = max(trial["reports"][-1][3]["outcome/gold_reward"] for trial in small.told(two).values())
    assert last["outcome/gold_reward/best"] == best
