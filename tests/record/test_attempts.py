"""Two folders of one execution, as two nodes have them: the older attempt delivers nothing once the newer one has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from proxygap.base.errors import Superseded
from proxygap.record.delivery import Delivery
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.shipper import Shipper, sync
from proxygap.record.sweep_delivery import SweepDelivery
from proxygap.record.sweep_folder import SweepFolder
from tests.record.runs import assert_exactly_once, runs_of, write_rows
from tests.record.sweeps import Study, assert_delivered, named

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")]


def claim(path: Path, number: int, token: str) -> None:
    """What whoever takes up a folder writes into it."""
    (path / "attempt.json").write_text(json.dumps({"number": number, "token": token}))


def copy_of(folder: ExperimentFolder, number: int, token: str) -> ExperimentFolder:
    """The same execution, taken up on another node as another attempt."""
    path = folder.path.with_name(f"{folder.path.name}-on-{token}")
    shutil.copytree(folder.path, path, ignore=shutil.ignore_patterns("tracking.json", "*.lock"))
    for place in (path, *(run.path for run in ExperimentFolder(path).seeds())):
        claim(place, number, token)
    return ExperimentFolder(path)


def test_the_older_attempt_delivers_nothing_once_the_newer_one_has(folder: ExperimentFolder, uri: str) -> None:
    late = Delivery(folder)
    assert late.deliver().delivered == 6
    newer = copy_of(folder, 1, "aaaaaaaa")
    write_rows(newer, 0, range(4, 6))
    sync(newer)
    assert runs_of(uri, folder)["quickstart"].data.tags["proxygap.attempt"] == "attempt-0001-aaaaaaaa"
    write_rows(folder, 0, range(4, 9))
    folder.seed(1).set_status(RunState.FAILED, "the node is gone")
    report = late.deliver()
    assert (report.delivered, report.pending) == (0, 5)
    assert isinstance(report.superseded, Superseded)
    told = json.loads((folder.path / "tracking.json").read_text())["last"]["error"]
    assert told == report.error == str(report.superseded)
    assert "Follow attempt-0001-aaaaaaaa" in told
    with pytest.raises(Superseded, match="newer attempt"):
        sync(folder)
    assert runs_of(uri, folder)["quickstart/seed-1"].info.status == "RUNNING"
    for seed in (0, 1):
        assert_exactly_once(uri, newer, seed)
    raised = copy_of(newer, 2, "00000000")  # the number decides before the token does
    sync(raised)
    with pytest.raises(Superseded):
        sync(newer)
    assert runs_of(uri, folder)["quickstart"].data.tags["proxygap.attempt"] == "attempt-0002-00000000"


def test_equal_numbers_are_ordered_by_their_tokens(folder: ExperimentFolder, uri: str) -> None:
    first, second = copy_of(folder, 1, "aaaaaaaa"), copy_of(folder, 1, "bbbbbbbb")
    sync(first)
    sync(second)
    with pytest.raises(Superseded):
        sync(first)
    assert runs_of(uri, folder)["quickstart"].data.tags["proxygap.attempt"] == "attempt-0001-bbbbbbbb"


def test_a_shipper_ends_when_its_run_was_taken_up_elsewhere(folder: ExperimentFolder) -> None:
    sync(copy_of(folder, 1, "aaaaaaaa"))
    shipper = Shipper(folder, every_s=0.1)
    shipper.start()
    assert shipper._process is not None
    assert shipper._process.wait(120) == 1  # by itself: its input is open
    assert "newer attempt" in shipper.status().error


def test_a_journal_of_another_attempt_is_delivered_from_its_start(folder: ExperimentFolder, uri: str) -> None:
    """A seed that was taken up elsewhere comes back with other rows, which may end where the old ones did."""
    sync(folder)
    run = folder.seed(0)
    other = run.journal.read_text().replace('"iteration":3,"real_step":30', '"iteration":7,"real_step":70')
    assert len(other) == run.journal.stat().st_size  # nothing but the attempt tells the two apart
    run.journal.write_text(other)
    claim(run.path, 1, "aaaaaaaa")
    assert sync(folder).delivered == 3
    steps = {metric.step for metric in _history(uri, folder)}
    assert steps == {10, 20, 30, 70}


def _history(uri: str, folder: ExperimentFolder) -> list[object]:
    from mlflow import MlflowClient

    run = runs_of(uri, folder)["quickstart/seed-0"]
    return list(MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "outcome/return"))


def test_a_sweep_is_fenced_as_a_whole(tmp_path: Path, uri: str) -> None:
    study = Study(tmp_path, tracking_uri=uri)
    study.whole(0)
    late = SweepDelivery(study.folder)
    late.deliver()
    newer = SweepFolder(tmp_path / "elsewhere" / study.folder.path.name)
    shutil.copytree(study.folder.path, newer.path, ignore=shutil.ignore_patterns("*.lock"))
    claim(newer.path, 3, "cccccccc")
    sync(newer)
    study.whole(1)
    study.ledger.close()
    report = late.deliver()
    assert (report.delivered, report.superseded is not None) == (0, True)
    assert set(named(uri)) == {"weights", "00000", "00000/seed-0", "00000/seed-1"}
    assert_delivered(uri, newer)
