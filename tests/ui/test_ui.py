"""What a person sees: the report, and the run on MLflow's own pages, in headless Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.loops.command import Command
from tests.ui.browser import Page

pytestmark = [pytest.mark.ui, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
OBJECTIVE, OUTCOME = "objective/held_out_log_likelihood", "outcome/return"


def run_ids(command: Command) -> dict[str, str]:
    runs = json.loads((command.run_folder.path / "tracking.json").read_text())["runs"]
    return {name: position["run_id"] for name, position in runs.items()}


def hosts_asked(page: Page) -> set[str]:
    addresses = map(urlsplit, page.requests)
    return {address.netloc for address in addresses if address.scheme in ("http", "https", "ws", "wss")}


def test_the_report_answers_first_shows_figures_and_asks_nobody(finished: Command, page: Page, shots: Path) -> None:
    page.open((finished.run_folder.report / "report.html").as_uri())
    text = page.wait_for("Objective against outcome", "Does it run?")
    page.screenshot(shots / "report.png")
    verdict = page.evaluate("document.querySelector('.verdict').innerText")
    assert text.lstrip().startswith(verdict)
    assert "Spearman" in verdict
    drawn = page.evaluate(
        "[...document.querySelectorAll('figure svg, figure img')].map(each => { const box = "
        "each.getBoundingClientRect(); return [box.width, box.height, each.querySelectorAll('path').length] })"
    )
    assert len(drawn) >= 4
    assert all(width > 300 and height > 100 and paths > 10 for width, height, paths in drawn), drawn
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
    assert hosts_asked(page) == set()
    assert page.errors == []


def test_a_runs_page_has_both_sides(finished: Command, ui: str, page: Page, shots: Path) -> None:
    page.open(f"{ui.partition('?')[0].removesuffix('/runs')}/runs/{run_ids(finished)['0']}")
    page.wait_for("small/seed-0", OBJECTIVE, OUTCOME)
    page.screenshot(shots / "run.png")
    assert {host.split(":")[0] for host in hosts_asked(page)} == {"127.0.0.1"}
