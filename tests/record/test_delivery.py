"""Delivery to SQLite: every metric's history equals the journal, exactly once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.delivery import Delivery
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.journal import Journal
from proxygap.record.shipper import sync
from proxygap.record.tracker import params
from tests.record.runs import assert_exactly_once, make_folder, reading, runs_of, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")]


def test_runs_have_parents_names_params_tags_and_states(folder: ExperimentFolder, uri: str) -> None:
    assert sync(folder).delivered == 6
    runs = runs_of(uri, folder)
    assert set(runs) == {"quickstart", "quickstart/seed-0", "quickstart/seed-1"}
    parent, child = runs["quickstart"], runs["quickstart/seed-0"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["proxygap.run_key"] == folder.run_key(0)
    assert (child.data.params["fit.members"], child.data.params["seeds"]) == ("5", "[0,1]")
    assert parent.data.tags["mlflow.note.content"] == "Does it?"
    assert parent.data.tags["proxygap.commit"] == "c0ffee"
    assert {run.info.status for run in runs.values()} == {"RUNNING"}
    folder.seed(0).set_status(RunState.FINISHED)
    folder.seed(1).set_status(RunState.FAILED, "NaN in the critic")
    sync(folder)
    runs = runs_of(uri, folder)
    assert [runs[n].info.status for n in sorted(runs)] == ["FAILED", "FINISHED", "FAILED"]
    assert runs["quickstart/seed-1"].data.tags["proxygap.state"] == "failed: NaN in the critic"
    folder.seed(1).set_status(RunState.INTERRUPTED)
    sync(folder)
    assert runs_of(uri, folder)["quickstart/seed-1"].info.status == "KILLED"
    folder.seed(1).set_status(RunState.RUNNING)
    sync(folder)
    assert runs_of(uri, folder)["quickstart"].info.status == "RUNNING"


def test_delivery_is_incremental_and_exact(folder: ExperimentFolder, uri: str) -> None:
    delivery = Delivery(folder)
    assert delivery.deliver().delivered == 6
    assert delivery.deliver().delivered == 0
    write_rows(folder, 1, range(4, 60))  # more than one batch of 1000
    assert (delivery.deliver().delivered, delivery.deliver().pending) == (56, 0)
    for seed in (0, 1):
        assert_exactly_once(uri, folder, seed)


def test_a_lost_position_is_replayed_without_duplicates(folder: ExperimentFolder, uri: str) -> None:
    sync(folder)
    before = {name: run.info.run_id for name, run in runs_of(uri, folder).items()}
    (folder.path / "tracking.json").unlink()
    assert sync(folder).delivered == 6
    assert {name: run.info.run_id for name, run in runs_of(uri, folder).items()} == before
    assert_exactly_once(uri, folder, 0)


def test_a_crash_between_delivery_and_position_duplicates_nothing(
    folder: ExperimentFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(folder)
    write_rows(folder, 0, range(4, 7))
    sent = MlflowClient.log_batch

    def answer_lost(self: MlflowClient, *arguments: Any, **options: Any) -> None:
        sent(self, *arguments, **options)
        raise MlflowException("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", answer_lost)
        report = Delivery(folder).deliver()
    assert (report.delivered, report.pending, report.error) == (0, 3, "connection reset")
    assert json.loads((folder.path / "tracking.json").read_text())["last"]["error"] == "connection reset"
    write_rows(folder, 0, range(7, 9))
    assert sync(folder).delivered == 5
    assert_exactly_once(uri, folder, 0)


def test_a_rewound_and_equally_replayed_run_has_no_duplicates(folder: ExperimentFolder, uri: str) -> None:
    sync(folder)
    journal = Journal(folder.seed(0).journal)
    assert journal.rewind(1) == 2
    sync(folder)
    for iteration in (2, 3, 4):
        journal.write(reading(iteration, seconds=50.0))
    journal.close()
    sync(folder)
    assert_exactly_once(uri, folder, 0)


def test_a_run_deleted_in_mlflow_is_made_anew(folder: ExperimentFolder, uri: str) -> None:
    sync(folder)
    client = MlflowClient(tracking_uri=uri)
    client.delete_run(runs_of(uri, folder)["quickstart/seed-0"].info.run_id)
    sync(folder)
    assert_exactly_once(uri, folder, 0)
    client.delete_run(runs_of(uri, folder)["quickstart"].info.run_id)
    sync(folder)
    runs = runs_of(uri, folder)
    assert runs["quickstart/seed-1"].data.tags["mlflow.parentRunId"] == runs["quickstart"].info.run_id


def test_a_second_execution_gets_runs_of_its_own(folder: ExperimentFolder, uri: str, tmp_path: Path) -> None:
    sync(folder)
    other = make_folder(tmp_path / "elsewhere", tracking_uri=uri)
    write_rows(other, 0, range(1, 3))
    sync(other)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    keys = [run.data.tags["proxygap.run_key"] for run in client.search_runs([experiment.experiment_id])]
    assert keys.count(folder.run_key(0)) == 2


def test_odd_values_and_the_parents_aggregates(folder: ExperimentFolder, uri: str) -> None:
    values = [math.nan, math.inf, -math.inf, -0.0, 5e-324]
    taken = tuple(Measurement(f"odd{i}", v, Side.MODEL) for i, v in enumerate(values))
    journal = Journal(folder.seed(0).journal)
    journal.write(Reading(Clocks(iteration=4, real_step=40), taken))
    journal.close()
    aggregates = Journal(folder.journal)
    aggregates.write(Reading(Clocks(real_step=40), (Measurement("return/iqm", 3.5, Side.OUTCOME),)))
    aggregates.close()
    sync(folder)
    assert_exactly_once(uri, folder, 0)
    assert runs_of(uri, folder)["quickstart"].data.metrics["outcome/return/iqm"] == 3.5


def test_the_limits_of_mlflow(tmp_path: Path, uri: str) -> None:
    folder = make_folder(tmp_path, name="n" * 300, seeds=(0,), tracking_uri=uri, question="?" * 9000)
    many = tuple(Measurement(f"{'x' * 300}({i})", float(i), Side.MODEL) for i in range(1500))
    resolved = folder.experiment | {"question": "?" * 9000, "long": "v" * 7000, "k" * 300: 1, "odd@name(=)": 2}
    resolved |= {f"p{i}": i for i in range(250)}
    (folder.path / "experiment.json").write_text(json.dumps(resolved))
    journal = Journal(folder.seed(0).journal)
    journal.write(Reading(Clocks(real_step=1), many))
    journal.close()
    assert sync(folder).pending == 0
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("n" * 300)
    assert experiment is not None
    runs = {"proxygap.seed" in r.data.tags: r for r in client.search_runs([experiment.experiment_id])}
    assert len(runs[True].data.metrics) == 1500 + 6
    assert len(runs[True].data.params["long"]) == 6000
    assert runs[True].data.params == params(resolved)
    assert len(runs[False].data.tags["proxygap.question"]) == 8000


def test_artifacts_are_logged_once_and_again_when_they_change(folder: ExperimentFolder, uri: str) -> None:
    folder.report.mkdir()
    (folder.report / "report.html").write_text("<p>verdict</p>")
    delivery = Delivery(folder)
    assert delivery.deliver_artifacts().delivered == 4
    assert delivery.deliver_artifacts().delivered == 0
    (folder.report / "report.html").write_text("<p>another verdict</p>")
    assert delivery.deliver_artifacts().delivered == 1
    client = MlflowClient(tracking_uri=uri)
    run_id = runs_of(uri, folder)["quickstart"].info.run_id
    assert {a.path for a in client.list_artifacts(run_id)} == {
        "experiment.json",
        "experiment.yaml",
        "provenance.json",
        "report",
    }
    (found,) = folder.path.parent.glob("mlartifacts/*/artifacts/report/report.html")
    assert found.read_text() == "<p>another verdict</p>"


def test_nothing_lands_in_the_working_directory(
    folder: ExperimentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    sync(folder)
    assert list((tmp_path / "cwd").iterdir()) == []


def test_datasets_become_inputs_of_the_run_once(folder: ExperimentFolder, uri: str) -> None:
    told = {
        "section": "expert",
        "kind": "expert",
        "task": "ContinuousCartPole",
        "task_hash": "cd" * 32,
        "policy": {"kind": "law", "plan": {"particles": 1}},
        "seed": 0,
        "rows": 2400,
        "episodes": 12,
        "content_hash": "ab" * 32,
        "key": "ef" * 32,
    }
    journal = Journal(folder.seed(0).journal)
    journal.event("dataset", told)
    journal.event("dataset", told)  # as a run tells it again when it is resumed
    journal.close()
    sync(folder)
    (folder.path / "tracking.json").unlink()
    sync(folder)
    runs = runs_of(uri, folder)
    (given,) = runs["quickstart/seed-0"].inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("expert data of ContinuousCartPole", ("ab" * 32)[:36])
    assert json.loads(given.dataset.profile) == {"rows": 2400, "episodes": 12}
    source = json.loads(given.dataset.source)
    assert (source["policy"], source["content_hash"]) == (told["policy"], told["content_hash"])
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "expert")]
    assert not runs["quickstart/seed-1"].inputs.dataset_inputs
    assert_exactly_once(uri, folder, 0)
