"""A trial whose records are copied to a storage that may not answer: real seeds, a real storage, no Ray."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxygap.base.errors import Superseded
from proxygap.record.attempt import newest_published
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.mirror import Mirror, fetch
from proxygap.record.storage import Storage
from proxygap.record.sweep_folder import SweepFolder
from proxygap.sweep import trial_records
from proxygap.sweep.copies import SweepCopies
from proxygap.sweep.messages import Assignment, Messages, Order
from proxygap.sweep.trial import Job, run_trial
from proxygap.sweep.trial_records import OWN, Shelf, TrialRecords
from tests.sweep import small
from tests.unit.sweep.inbox import DirectInbox

SETTING = {"judge.aggregate.penalty": 0.25}
LAST = 6


class Store:
    """A folder that can be taken away: whoever asks then finds a file in its place."""

    def __init__(self, path: Path) -> None:
        self.path, self._hidden = path, path.with_name("hidden")
        path.mkdir()

    def __call__(self, name: str = "trial-0000") -> Storage:
        return Storage(self.path.as_uri()).below("sweep", name)

    def leave(self) -> None:
        self.path.rename(self._hidden)
        self.path.write_text("no folder")

    def come_back(self) -> None:
        self.path.unlink()
        self._hidden.rename(self.path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def job_in(folder: Path, store: Store, **sweep: Any) -> Job:
    folder.mkdir(exist_ok=True)
    made, place = small.loaded(folder, **sweep), SweepFolder(folder / "sweep")
    place.create(sweep_hash=made.identity, yaml_text=made.text, resolved=made.resolved, provenance={})
    return Job(made, Shelf(place, Storage(store.path.as_uri()).below("sweep")), made.identity, {})


def run(job: Job, number: int = 0, messages: Messages | None = None, after: Any = None, **told: Any) -> list[Any]:
    """All reports; ``after`` hears each of them before the trial goes on."""
    reports: list[Any] = []
    messages = messages or Messages()
    messages.assign(number, Assignment(**{"setting": SETTING, **told}))

    def report(message: dict[str, Any]) -> None:
        reports.append(json.loads(message["report"]))
        if after is not None:
            after(reports[-1])

    run_trial(job, number, report, DirectInbox(messages, number))
    return reports


def journals(place: ExperimentFolder) -> list[bytes]:
    return [run.journal.read_bytes() for run in place.seeds()]


def test_what_a_trial_ends_with_is_published_before_it_is_reported(tmp_path: Path, store: Store) -> None:
    job, seen = job_in(tmp_path / "here", store), list[bool]()

    def look(report: dict[str, Any]) -> None:
        copy = ExperimentFolder(tmp_path / f"copy-{len(seen)}")
        fetch(store(), copy.path)
        seen.append(journals(copy) == journals(job.shelf.folder.trial(0)))

    assert [each["index"] for each in run(job, after=look)] == list(range(1, LAST + 1))
    assert seen[-1]
    there = newest_published(store())
    assert there is not None
    assert not {"tracking.json", "attempt.json"} & there.files.keys()


def test_store_that_leaves_for_a_while_costs_time_and_no_report(tmp_path: Path, store: Store) -> None:
    job = job_in(tmp_path / "here", store)
    back = threading.Timer(2.5, store.come_back)

    def leave(report: dict[str, Any]) -> None:
        if report["index"] == 2:
            store.leave()
            back.start()

    assert [each["index"] for each in run(job, after=leave)] == list(range(1, LAST + 1))
    back.join()
    fetch(store(), tmp_path / "copy")
    assert journals(ExperimentFolder(tmp_path / "copy")) == journals(job.shelf.folder.trial(0))


def test_trial_that_cannot_be_taken_up_waits_until_it_is_stopped_and_has_not_failed(
    tmp_path: Path, store: Store
) -> None:
    job, messages = job_in(tmp_path / "here", store), Messages()
    store.leave()
    stop = threading.Timer(1.0, messages.stop, ["enough"])
    stop.start()
    (report,) = run(job, messages=messages)
    assert report.keys() == {"interrupted"}
    assert "storage did not answer" in report["interrupted"]
    stop.join()
    store.come_back()
    assert len(run(job)) == LAST


def test_population_waits_for_the_store_until_it_is_asked_to_stop(tmp_path: Path, store: Store) -> None:
    """What others would go on from is not there, so the trial does not say that it is."""
    job = job_in(tmp_path / "here", store, scheduler={"kind": "pbt", "every": 3}, trials=2, concurrency=2)
    messages = Messages()
    stop = threading.Timer(2.0, messages.stop, ["enough"])

    def leave(report: dict[str, Any]) -> None:
        if report.get("index") == 2:
            store.leave()
            stop.start()

    reports = run(job, messages=messages, after=leave)
    stop.join()
    assert [each.get("index") for each in reports][:2] == [1, 2]
    store.come_back()
    order = Messages()

    def go_on(report: dict[str, Any]) -> None:
        if report.get("index") == 3:
            order.give(0, Order(3))

    heard = max(each.get("index", 0) for each in reports)
    again = run(job, messages=order, after=go_on, reported=heard, compared=heard == 3)
    assert again[-1]["last"]


def test_state_of_a_donor_on_another_node_is_taken_from_the_store(tmp_path: Path, store: Store) -> None:
    section: dict[str, Any] = {"scheduler": {"kind": "pbt", "every": 3}, "trials": 2, "concurrency": 2}
    there, here = (job_in(tmp_path / name, store, **section) for name in ("there", "here"))
    good, bad = {"judge.aggregate.penalty": 0.01}, {"judge.aggregate.penalty": 10.0}

    def go(messages: Messages, number: int, order: Order) -> Any:
        return lambda report: messages.give(number, order) if report["index"] == 3 else None

    one, two = Messages(), Messages()
    donor = run(there, 0, one, go(one, 0, Order(3)), setting=good)
    follower = run(here, 1, two, go(two, 1, Order(3, donor=0, setting=good)), setting=bad)
    gold = [[each["values"]["outcome/gold_reward"] for each in reports[3:]] for reports in (donor, follower)]
    assert gold[0] == gold[1]
    assert len(gold[0]) == 3
    assert not (here.shelf.folder.trial(1).path / ".donor").exists()


def test_late_process_is_superseded_and_reports_so_without_writing_to_the_store(tmp_path: Path, store: Store) -> None:
    job = job_in(tmp_path / "here", store)
    later = Mirror(store(), tmp_path / "other", skip=OWN)

    def take_over(report: dict[str, Any]) -> None:
        if report.get("index") == 1:
            time.sleep(trial_records.PUBLISH_EVERY_S)
            later.take_up()
            later.publish()

    reports = run(job, after=take_over)
    assert reports[-1].keys() == {"superseded"}
    assert "attempt-0002" in reports[-1]["superseded"]
    there = newest_published(store())
    assert there is not None
    assert there.attempt == later.attempt


def test_records_of_another_setting_fail_the_trial_by_name(tmp_path: Path, store: Store) -> None:
    """A ledger that was lost with its node may propose anew what a store already has records of."""
    assert len(run(job_in(tmp_path / "there", store))) == LAST
    (report,) = run(job_in(tmp_path / "here", store), setting={"judge.aggregate.penalty": 1.0})
    assert "judge.aggregate.penalty = 0.25: was recorded, but 1.0 was proposed" in report["failed"]


def test_trial_of_this_node_that_the_store_lacks_is_made_up_for_by_the_sweep(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_records, "PATIENCE_S", 0.5)
    job = job_in(tmp_path / "here", store)
    assert len(run(job, after=lambda report: store.leave() if report["index"] == 5 else None)) == LAST
    store.come_back()
    Journal(job.shelf.folder.journal).close()  # of a process that is over
    copies = SweepCopies(job.shelf)
    copies.take_up()
    assert copies.gather()
    fetch(store(), tmp_path / "copy")
    assert journals(ExperimentFolder(tmp_path / "copy")) == journals(job.shelf.folder.trial(0))


def test_folder_of_another_node_is_its_own_and_goes_when_storage_has_all(tmp_path: Path, store: Store) -> None:
    shelf = replace(job_in(tmp_path / "here", store).shelf, home="a" * 56)
    records = TrialRecords(shelf, 7, "b" * 56)
    assert records.away
    assert records.place.path == tmp_path / "here" / ".nodes" / ("b" * 12) / "sweep" / "trial-0007"
    records.take_up(lambda: True)
    assert records.publish(lambda: True)
    records.forget()
    assert not records.place.path.exists()
    home = TrialRecords(shelf, 7, "a" * 56)
    assert not home.away
    assert home.place == shelf.folder.trial(7)
    home.take_up(lambda: True)
    with pytest.raises(Superseded):
        records.publish(lambda: True)


def test_storage_that_only_this_node_reaches_is_told_of(tmp_path: Path, store: Store, caplog: Any) -> None:
    """A trial that ended elsewhere has left nothing here: its node has a folder of the same name for itself."""
    copies = SweepCopies(job_in(tmp_path / "here", store).shelf)
    copies.take_up()
    copies.ended(4)
    assert not copies.gather()
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith("trial 4 left no records in ")
    assert "do all nodes reach the same storage?" in told
