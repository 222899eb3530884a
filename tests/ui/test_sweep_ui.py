"""What a person sees of a sweep on MLflow's own pages, in headless Chromium."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.journal import Journal
from proxygap.record.shipper import sync
from proxygap.record.sweep_folder import TrialState
from proxygap.record.tracker import connect
from proxygap.record.view import View
from proxygap.ui import await_answer, experiment_page, server
from tests.record.sweeps import Study, named
from tests.ui.browser import Page
from tests.ui.test_ui import scatter

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.timeout(300)]
REPORT = "<!doctype html><title>Sweep</title><h1>Best by outcome beside best by objective</h1>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """Two trials of two seeds, one of them stopped, and a report."""
    root = tmp_path_factory.mktemp("sweep")
    connect(f"sqlite:///{root}/mlflow.db")
    made = Study(root, tracking_uri=f"sqlite:///{root}/mlflow.db")
    (made.folder.path / "sweep.json").write_text(json.dumps({**made.folder.resolved, "outcomes": ["return"]}))
    for number, readings in enumerate((3, 2)):
        made.start(number)
        made.advance(number, range(1, 1 + readings))
        over_seeds(made, number)
    made.end(0)
    made.end(1, TrialState.STOPPED, "stopped by asha at 20 real steps")
    made.folder.report.mkdir()
    (made.folder.report / "sweep.html").write_text(REPORT)
    sync(made.folder)
    yield made
    made.ledger.close()


def over_seeds(study: Study, number: int) -> None:
    """What a trial's own run is given when it ends."""
    sides = Measurement("return/iqm", -float(number), Side.OUTCOME), Measurement("m0/iqm", 2.0, Side.OBJECTIVE)
    journal = Journal(study.folder.trial(number).journal)
    journal.write(Reading(Clocks(real_step=30), sides))
    journal.close()


@pytest.fixture(scope="module")
def base(study: Study) -> Iterator[str]:
    """The address of an MLflow server on the sweep's tracker."""
    root = study.folder.path.parent
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", root / "server.log"
    with server(study.record["tracking_uri"], root, "127.0.0.1", port, log) as child:
        await_answer(address, child, log, lambda: False)
        yield address


def test_the_tree_unfolds_and_the_sweeps_run_has_the_report(study: Study, base: str, page: Page, shots: Path) -> None:
    runs = named(study.record["tracking_uri"])
    page.open(experiment_page(base, "weights"))
    page.wait_for("7 matching runs")
    ids = {name: run.info.run_id for name, run in runs.items()}
    for name in ("weights", "00000", "00001"):
        page.wait(link(ids[name]))
        unfold(page, ids[name])
    for run_id in ids.values():
        page.wait(link(run_id))
    page.screenshot(shots / "tree.png")
    left = {name: page.evaluate(f"{link(run_id)}.getBoundingClientRect().x") for name, run_id in ids.items()}
    for number in range(2):
        assert left["weights"] < left[f"0000{number}"] < left[f"0000{number}/seed-0"]
    page.open(f"{base}/#/experiments/1/runs/{ids['weights']}/artifacts/report/sweep.html")
    page.wait_for("report/sweep.html", "sweep.yaml", "ledger.jsonl")
    page.wait("document.querySelector('iframe')?.getBoundingClientRect().height > 300")
    page.screenshot(shots / "report.png")


def test_the_view_has_a_point_per_trial_and_its_settings(study: Study, base: str, page: Page, shots: Path) -> None:
    view = View.of(study.folder)
    assert view is not None
    page.open(experiment_page(base, "weights", view.id))
    assert scatter(page, "objective/m0/iqm", "outcome/return/iqm") == 2
    page.wait_for(view.name, "Parallel Coordinates")
    page.wait("document.querySelector('.parcoords')")
    page.screenshot(shots / "view.png")
    axes = page.evaluate("document.querySelectorAll('.parcoords g.dimension').length")
    assert axes == len(view.settings) + 2


def link(run_id: str) -> str:
    """The cell that names a run, as an expression."""
    return f"document.querySelector('a[href*=\"{run_id}\"]')"


def unfold(page: Page, run_id: str) -> None:
    """Press the button in a row of the table that shows the runs below."""
    button = f"{link(run_id)}.closest('[role=row]').querySelector('button')"
    page.wait(button)
    page.evaluate(f"{button}.click()")
