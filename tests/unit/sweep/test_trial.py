"""A trial without Ray: real seeds in lockstep, its reports in a list, its messages at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxygap.loops.seed_run import SeedRun
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder
from proxygap.record.rows import EventRow, read_journal
from proxygap.record.sweep_folder import SweepFolder
from proxygap.sweep.lockstep import recorded_evaluations
from proxygap.sweep.messages import Assignment, Messages, Order
from proxygap.sweep.trial import Job, run_trial
from proxygap.sweep.trial_records import Shelf
from tests.sweep.small import FITTED, loaded
from tests.unit.sweep.inbox import DirectInbox

STEPS = 6
SETTING = {"judge.aggregate.penalty": 0.25}


def job_in(folder: Path, *, sections: dict[str, Any] | None = None, **sweep: Any) -> Job:
    made = loaded(folder, sections=sections, **sweep)
    place = SweepFolder(folder / "sweep")
    place.create(sweep_hash=made.identity, yaml_text=made.text, resolved=made.resolved, provenance={})
    return Job(made, Shelf(place), made.identity, {})


def trial(job: Job, number: int) -> ExperimentFolder:
    return job.shelf.folder.trial(number)


def run(
    job: Job,
    number: int = 0,
    assignment: Assignment | None = None,
    after: Any = None,
    messages: Messages | None = None,
) -> list[dict[str, Any]]:
    """All reports of a trial; ``after`` hears each of them before the trial goes on, and may say ``messages``."""
    reports: list[dict[str, Any]] = []
    messages = messages or Messages()

    def report(told: dict[str, Any]) -> None:
        reports.append(json.loads(told["report"]))
        if after is not None:
            after(reports[-1])

    messages.assign(number, assignment or Assignment(SETTING))
    run_trial(job, number, report, DirectInbox(messages, number))
    return reports


def states(job: Job, number: int = 0) -> dict[int, tuple[str, str]]:
    found = {run.seed: run.status() for run in trial(job, number).seeds()}
    return {seed: (str(status.state), status.reason) for seed, status in found.items() if status}


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {**report, "values": {k: v for k, v in report["values"].items() if not k.startswith("time/")}}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_in(tmp_path)


def test_reports_are_interquartile_means_over_seeds_and_sums_of_clocks(tmp_path: Path) -> None:
    job = job_in(tmp_path, sections={"seeds": [0, 1, 2, 3]})
    reports = run(job)
    assert [(each["index"], each["real_step"], each["last"]) for each in reports] == [
        (step, step, step == STEPS) for step in range(1, STEPS + 1)
    ]
    alone = [recorded_evaluations(trial(job, 0).seed(seed)) for seed in range(4)]
    for at, report in enumerate(reports):
        gold = sorted(evaluations[at].value("outcome/gold_reward") for evaluations in alone)
        assert report["values"]["outcome/gold_reward"] == pytest.approx((gold[1] + gold[2]) / 2, abs=1e-12)  # of four
        assert (
            report["clocks"]["iteration"]
            == sum(evaluations[at].clocks.iteration for evaluations in alone)
            == 4 * (at + 1)
        )
        assert report["values"]["clock/real_step"] == 4 * (at + 1)
    assert states(job) == dict.fromkeys(range(4), ("finished", ""))


def test_lockstep_changes_no_measurement_of_a_seed(job: Job, tmp_path: Path) -> None:
    run(job)
    together = recorded_evaluations(trial(job, 0).seed(1))
    from proxygap.sweep.space import experiment_of

    experiment = experiment_of(job.loaded, SETTING, 0)
    place = SeedFolder(tmp_path / "alone", 1)
    place.checkpoints.mkdir(parents=True)
    assert SeedRun(experiment, 1, place, lambda _: None, lambda: False).execute() is RunState.FINISHED
    alone = recorded_evaluations(place)
    for one, other in zip(together, alone, strict=True):
        assert one.clocks == other.clocks
        timeless = [{m.key: repr(m.value) for m in each.measurements if m.side != "time"} for each in (one, other)]
        assert timeless[0] == timeless[1]


def test_stop_checkpoints_all_seeds_and_the_next_process_reports_only_what_is_new(job: Job, tmp_path: Path) -> None:
    whole, messages = job_in_folder(tmp_path / "whole"), Messages()
    expected = run(whole)

    def stop_after_two(report: dict[str, Any]) -> None:
        if report.get("index") == 2:
            messages.stop("enough")

    first = run(job, after=stop_after_two, messages=messages)
    assert [each.get("index") for each in first] == [1, 2, None]
    assert first[-1] == {"interrupted": "enough"}
    assert states(job) == {0: ("interrupted", "enough"), 1: ("interrupted", "enough")}
    second = run(job, assignment=Assignment(SETTING, reported=2))
    assert [each["index"] for each in second] == [3, 4, 5, 6]
    assert [without_times(each) for each in first[:2] + second] == [without_times(each) for each in expected]
    resumed = [row.detail for row in rows(job, seed=1) if isinstance(row, EventRow) and row.kind == "resumed"]
    assert resumed == [{"real_step": 2, "superseded": 0}]  # seed 0 had gone to step 3, seed 1 had not


def job_in_folder(folder: Path, **options: Any) -> Job:
    folder.mkdir()
    return job_in(folder, **options)


def rows(job: Job, seed: int) -> list[Any]:
    return read_journal(trial(job, 0).seed(seed).journal)


def test_stretches_that_the_sweep_did_not_hear_of_are_reported_from_the_journal(job: Job) -> None:
    """The last process ended everything, and the process of the sweep died before it heard of step 5 and 6."""
    expected = run(job)
    journal = trial(job, 0).seed(0).journal
    before = journal.read_bytes()
    again = run(job, assignment=Assignment(SETTING, reported=4))
    assert again == expected[4:]
    assert journal.read_bytes() == before


def test_order_ends_the_trial_after_its_report(job: Job) -> None:
    messages = Messages()

    def order(report: dict[str, Any]) -> None:
        if report["index"] == 3:
            messages.give(0, Order(3, stop="stopped by asha at 3 real steps"))

    assert [each["index"] for each in run(job, after=order, messages=messages)] == [1, 2, 3]
    assert set(states(job).values()) == {("interrupted", "stopped by asha at 3 real steps")}
    again = run(job, assignment=Assignment(SETTING, reported=3, stop="stopped by asha at 3 real steps"))
    assert again == []


def test_order_for_another_report_is_none(job: Job) -> None:
    messages = Messages()

    def order(report: dict[str, Any]) -> None:
        messages.give(0, Order(report["index"] - 1, stop="too late"))

    assert len(run(job, after=order, messages=messages)) == STEPS


def test_goal_that_is_not_measured_fails_the_trial_by_name(tmp_path: Path) -> None:
    job = job_in(tmp_path, goals=[{"metric": "outcome/gold_reward"}, {"metric": "model/nowhere"}])
    (report,) = run(job)
    assert report == {"failed": "model/nowhere was not measured at 1 real steps (seeds 0, 1)"}
    assert set(states(job).values()) == {
        ("interrupted", "the trial failed: model/nowhere was not measured at 1 real steps (seeds 0, 1)")
    }


def test_gap_that_is_unknown_at_first_is_waited_for(tmp_path: Path) -> None:
    job = job_in(tmp_path, goals=[{"metric": "gap/spearman"}])
    reports = run(job)
    assert "gap/spearman" not in reports[0]["values"]
    assert -1 <= reports[-1]["values"]["gap/spearman"] <= 1


def test_seed_that_fails_fails_the_trial_and_is_named(job: Job) -> None:
    damaged = trial(job, 0).seed(1)
    (damaged.checkpoints / "step-0000000003").mkdir()  # a checkpoint without a manifest, and no other
    (report,) = run(job)
    assert report["failed"].startswith("seed 1 failed: CheckpointRefused:")
    assert "step-0000000003: it has no manifest" in report["failed"]
    found = states(job)
    assert found[1][0] == "failed"
    assert found[0][0] == "interrupted"
    assert "seed 1 failed" in found[0][1]


def test_invalid_setting_is_a_failed_trial(job: Job) -> None:
    (report,) = run(job, assignment=Assignment({"judge.aggregate.penalty": -1.0}))
    assert report["failed"].startswith("InvalidExperiment: judge.aggregate")


def test_spent_allowance_and_deadline_begin_no_iteration(job: Job, tmp_path: Path) -> None:
    (report,) = run(job, assignment=Assignment(SETTING, deadline=1.0))
    assert "wall_s" in report["interrupted"]
    assert not trial(job, 0).seed(0).journal.exists()
    other = job_in_folder(tmp_path / "other", sections=FITTED)
    (report,) = run(other, assignment=Assignment(SETTING, allowance={"label": 100}))
    assert "label" in report["interrupted"]
    assert len(recorded_evaluations(trial(other, 0).seed(0))) == 1  # its 100 labels come with the first iteration
    assert not trial(other, 0).seed(1).journal.exists()


def test_exploit_continues_from_the_donor_under_the_changed_setting(tmp_path: Path) -> None:
    """State and setting are the donor's, so its future is the follower's future."""
    job = job_in(tmp_path, scheduler={"kind": "pbt", "every": 3}, trials=2, concurrency=2)
    good, bad = {"judge.aggregate.penalty": 0.01}, {"judge.aggregate.penalty": 10.0}
    messages = Messages()

    def go(number: int, order: Order) -> Any:
        def answer(report: dict[str, Any]) -> None:
            if report["index"] == 3:
                messages.give(number, order)

        return answer

    donor = run(job, 0, Assignment(good), go(0, Order(3)), messages)
    follower = run(job, 1, Assignment(bad), go(1, Order(3, donor=0, setting=good)), messages)
    assert [each["index"] for each in follower] == [1, 2, 3, 4, 5, 6]
    assert without_times(follower[2]) != without_times(donor[2])
    for one, other in zip(donor[3:], follower[3:], strict=True):
        assert one["values"]["outcome/gold_reward"] == other["values"]["outcome/gold_reward"]
        assert one["clocks"] == other["clocks"]
    assert trial(job, 1).experiment["judge"]["aggregate"]["penalty"] == 0.01
    events = [row.detail for row in read_journal(trial(job, 1).seed(1).journal) if isinstance(row, EventRow)]
    assert {"index": 3, "donor": 0, "real_step": 3} in events


def test_change_that_a_killed_process_had_not_followed_is_followed_by_the_next(tmp_path: Path) -> None:
    job = job_in(tmp_path, scheduler={"kind": "pbt", "every": 3}, trials=2, concurrency=2)
    good, bad = {"judge.aggregate.penalty": 0.01}, {"judge.aggregate.penalty": 10.0}

    def until_three(number: int, setting: dict[str, float]) -> None:
        messages = Messages()

        def stop(report: dict[str, Any]) -> None:
            if report.get("index") == 3:
                messages.stop("killed")

        run(job, number, Assignment(setting), stop, messages)

    until_three(0, good)
    until_three(1, bad)
    donor = run(job, 0, Assignment(good, reported=3, compared=True))
    follower = run(job, 1, Assignment(good, reported=3, change={"index": 3, "donor": 0}, compared=True))
    assert [each["index"] for each in follower] == [4, 5, 6]
    gold = [[each["values"]["outcome/gold_reward"] for each in reports] for reports in (donor, follower)]
    assert gold[0] == gold[1]
