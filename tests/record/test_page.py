"""What delivery tells of an experiment as a whole: a view and a description, once, and never a person's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.delivery import Delivery
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.page import KEPT
from proxygap.record.shipper import sync
from proxygap.record.view import View
from tests.record.runs import make_folder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")]
NOTE = "mlflow.note.content"


@pytest.fixture
def measured(tmp_path: Path, uri: str) -> ExperimentFolder:
    """An experiment with both sides and a report."""
    return measured_in(tmp_path, uri, "quickstart")


def measured_in(root: Path, uri: str, name: str) -> ExperimentFolder:
    folder = make_folder(root, name, seeds=(0,), tracking_uri=uri, tracking_experiment="shared")
    (folder.path / "experiment.json").write_text(json.dumps({**folder.experiment, "outcomes": ["return"]}))
    (folder.path / "provenance.json").write_text(json.dumps({**folder.provenance, "objective": "likelihood"}))
    journal = Journal(folder.seed(0).journal)
    sides = Measurement("return", 1.0, Side.OUTCOME), Measurement("likelihood", 2.0, Side.OBJECTIVE)
    journal.write(Reading(Clocks(real_step=10), sides))
    journal.close()
    folder.report.mkdir()
    (folder.report / "report.html").write_text("<p>verdict</p>")
    return folder


def tags_of(uri: str) -> dict[str, str]:
    found = MlflowClient(tracking_uri=uri).get_experiment_by_name("shared")
    assert found is not None
    return dict(found.tags)


def test_the_view_and_the_description_are_told_once(
    measured: ExperimentFolder, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    sent = MlflowClient.set_experiment_tag

    def counted(self: MlflowClient, experiment_id: str, key: str, value: Any) -> None:
        told.append(key)
        sent(self, experiment_id, key, value)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", counted)
    delivery, view = Delivery(measured), View("seed", "objective/likelihood", "outcome/return")
    delivery.deliver()
    assert told == [f"mlflow.sharedViewState.{view.id}", NOTE]
    delivery.deliver_artifacts()
    assert told[2:] == [f"proxygap.report.{measured.identity['execution']}", NOTE]
    delivery.deliver()
    sync(measured)
    assert len(told) == 4
    assert view.id in tags_of(uri)[NOTE]
    assert "[quickstart](#/experiments/1/runs/" in tags_of(uri)[NOTE]


def test_experiments_that_share_one_in_mlflow_share_its_description(
    measured: ExperimentFolder, uri: str, tmp_path: Path
) -> None:
    other = measured_in(tmp_path, uri, "second")
    sync(measured)
    sync(other)
    note = tags_of(uri)[NOTE]
    assert "[quickstart](" in note
    assert "[second](" in note
    assert note.count("viewStateShareKey") == 1  # the same two keys: one view
    sync(measured)
    assert tags_of(uri)[NOTE] == note


def test_a_persons_description_stays(measured: ExperimentFolder, uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    client.create_experiment("shared", tags={NOTE: "Ask before you delete this."})
    sync(measured)
    assert tags_of(uri)[NOTE] == "Ask before you delete this."
    assert any(key.startswith("mlflow.sharedViewState.") for key in tags_of(uri))
    client.set_experiment_tag("1", NOTE, f"old\n\n{KEPT}")
    (measured.path / "tracking.json").unlink()
    sync(measured)
    assert "viewStateShareKey" in tags_of(uri)[NOTE]


@pytest.mark.parametrize(("code", "error"), [(INVALID_PARAMETER_VALUE, ""), (INTERNAL_ERROR, "down")])
def test_measurements_do_not_depend_on_the_view(
    measured: ExperimentFolder, uri: str, monkeypatch: pytest.MonkeyPatch, code: int, error: str
) -> None:
    def refused(*_: Any) -> None:
        raise MlflowException("down" if error else "too long", error_code=code)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_experiment_tag", refused)
        delivery = Delivery(measured)
        report = delivery.deliver()
    assert (report.delivered, report.pending, report.error) == (1, 0, error)
    assert delivery.deliver().error == ""
    assert any(key.startswith("mlflow.sharedViewState.") for key in tags_of(uri)) == bool(error)  # told in the end
