"""The view of objective against outcome: its keys come from the journals, its form is MLflow's."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.page import KEPT, description
from proxygap.record.sweep_folder import Ledger, SweepFolder
from proxygap.record.view import View, view_address

OBJECTIVES, GAPS = ("log_likelihood", "mse"), ("model_exploitation", "pearson", "spearman")


def experiment(root: Path, objective: str = "", **resolved: Any) -> ExperimentFolder:
    folder = ExperimentFolder.place(root, "small", "abcdef0123456789")
    told = {"name": "small", "outcomes": ["return"], "seeds": [0], **resolved}
    noted = {"objective": objective} if objective else {}
    folder.create(experiment_hash="abcdef0123456789", yaml_text="", resolved=told, provenance=noted)
    return folder


def measure(journal: Path, end: str = "") -> None:
    taken = [Measurement(f"return{end}", 1.0, Side.OUTCOME)]
    taken += [Measurement(f"{name}{end}", 2.0, Side.OBJECTIVE) for name in OBJECTIVES]
    taken += [Measurement(f"{name}{end}", 0.5, Side.GAP) for name in GAPS]
    written = Journal(journal)
    early = Measurement(f"return{end}", 1.0, Side.OUTCOME), Measurement(f"value_estimate{end}", 1.0, Side.OBJECTIVE)
    written.write(Reading(Clocks(), early))  # before a model was fitted
    written.write(Reading(Clocks(real_step=10), tuple(taken)))
    written.close()


def unpacked(tag: str) -> dict[str, Any]:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_an_experiments_first_objective_is_set_against_its_first_outcome(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    assert View.of(folder) is None
    measure(folder.seed(0).journal)
    gaps = ("gap/model_exploitation", "gap/spearman")
    assert View.of(folder) == View("seed", "objective/log_likelihood", "outcome/return", gaps)
    assert View.of(folder, over=False) is None  # a fuller reading may come


@pytest.mark.parametrize("told", [{"objective": "mse"}, {"probe": {"objective": "mse"}}])
def test_the_objective_that_counts_is_the_one_that_was_noted_or_chosen(tmp_path: Path, told: dict[str, Any]) -> None:
    folder = experiment(tmp_path, **told)
    measure(folder.seed(0).journal)
    view = View.of(folder, over=False)
    assert view is not None
    assert view.objective == "objective/mse"


def test_a_side_that_was_not_measured_leaves_no_view(tmp_path: Path) -> None:
    folder = experiment(tmp_path, outcomes=["win_rate"])
    measure(folder.seed(0).journal)
    assert View.of(folder) is None


def test_a_sweeps_trials_are_told_over_their_seeds_with_their_settings(tmp_path: Path) -> None:
    folder = SweepFolder.place(tmp_path, "sweep", "0123456789abcdef")
    told = {"name": "sweep", "outcomes": ["return"]}
    folder.create(sweep_hash="0123456789abcdef", yaml_text="", resolved=told, provenance={})
    ledger = Ledger(folder.ledger)
    ledger.proposed(0, {"fit.members": 3, "judge.weighting.weights": {"brief": 1.0, "helpful": 0.0}})
    ledger.close()
    assert View.of(folder) is None
    place = folder.trial(0)
    place.create(experiment_hash="a", yaml_text="", resolved=told, provenance={})
    measure(place.journal, "/iqm")
    view = View.of(folder)
    assert view is not None
    assert (view.kind, view.objective, view.outcome) == ("trial", "objective/log_likelihood/iqm", "outcome/return/iqm")
    weights = ("setting.judge.weighting.weights.brief", "setting.judge.weighting.weights.helpful")
    assert view.settings == ("setting.fit.members", *weights)
    assert [chart["type"] for chart in view.state()["compareRunCharts"]] == ["SCATTER", "PARALLEL", *["BAR"] * 4]


@pytest.mark.parametrize("kind", ["seed", "trial"])
def test_the_scatter_has_the_objective_on_x_and_all_charts_one_section(kind: str) -> None:
    state = View(kind, "objective/a", "outcome/b", ("gap/c",)).state()
    first, *others = state["compareRunCharts"]
    assert first["type"] == "SCATTER"
    assert first["xaxis"] == {"key": "objective/a", "type": "METRIC"}
    assert first["yaxis"] == {"key": "outcome/b", "type": "METRIC"}
    section = state["compareRunSections"][0]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(others) + 1
    drawn = [chart["metricKey"] for chart in others]
    assert drawn[-3:] == ["outcome/b", "objective/a", "gap/c"]
    assert state["searchFilter"] == f"tags.`proxygap.kind` = '{kind}'"


def test_a_tag_changes_only_with_its_view_and_keeps_when_it_was_made() -> None:
    view = View("seed", "objective/a", "outcome/b")
    first = view.tag("", 5)
    assert view.tag(first, 9) == first
    assert unpacked(first) == view.state()
    wider = View("seed", "objective/a", "outcome/b", ("gap/c",))
    assert wider.id == view.id
    told = json.loads(wider.tag(first, 9))
    assert (told["createdAt"], told["updatedAt"]) == (5, 9)
    assert unpacked(view.tag('{"name": 1}', 3)) == view.state()
    assert len(View("trial", "o" * 250, "p" * 250, ("g" * 250,) * 2, ("s" * 250,) * 8).tag("", 1)) < 5000


def test_the_description_links_every_view_and_report_in_its_first_line() -> None:
    views = [View("seed", "objective/a", "outcome/b"), View("seed", "objective/c", "outcome/b")]
    tags = {f"mlflow.sharedViewState.{view.id}": view.tag("", 1) for view in views}
    tags["mlflow.sharedViewState.of-a-person"] = json.dumps({"name": "mine", "createdAt": 1, "state": "{}"})
    tags["proxygap.report.x"] = json.dumps({"name": "small", "run_id": "r1", "path": "report/report.html"})
    line, last = description("7", tags).split("\n\n")
    assert last == KEPT
    for view in views:
        assert f"**[{view.name}]({view_address('', '7', view.id)})**" in line
    assert line.endswith("Reports: [small](#/experiments/7/runs/r1/artifacts/report/report.html)")
    assert "mine" not in line
