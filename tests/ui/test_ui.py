"""What a person sees: the report, the run on MLflow's own pages, and objective against outcome one click away."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.loops.command import Command
from tests.ui.browser import Page

pytestmark = [pytest.mark.ui, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
OBJECTIVE, OUTCOME = "objective/held_out_log_likelihood", "outcome/return"
NAME = "return against held_out_log_likelihood, by seed"


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


def test_the_link_shows_both_sides_at_once(ui: str, page: Page, shots: Path) -> None:
    assert "viewStateShareKey=proxygap-" in ui
    page.open(ui)
    assert scatter(page, OBJECTIVE, OUTCOME) == 2  # one point per seed
    page.screenshot(shots / "scatter.png")
    page.wait_for(NAME, "Objective against outcome", f"{OBJECTIVE} vs. {OUTCOME}")
    for metric in (OUTCOME, OBJECTIVE):
        page.wait(card(metric))
        page.evaluate(f"{card(metric)}.scrollIntoView()")  # out of sight it is not drawn
        page.wait(f"{card(metric)}.querySelector('.xtitle')?.textContent === 'Step'")
        page.wait(f"{card(metric)}.querySelectorAll('.scatterlayer path.js-line').length >= 2")
    page.screenshot(shots / "curves.png")
    assert {host.split(":")[0] for host in hosts_asked(page)} == {"127.0.0.1"}


def test_from_the_experiment_it_is_one_click(ui: str, page: Page, shots: Path) -> None:
    page.open(f"{base_of(ui)}/#/experiments/1")  # as from MLflow's list of experiments: its pages for agents
    page.wait_for(NAME, "Reports: small")
    page.screenshot(shots / "experiment.png")
    page.open(f"{base_of(ui)}/#/experiments/1/runs?workflowType=machine_learning")
    page.wait_for("3 matching runs", NAME)
    page.evaluate(f"{anchor('viewStateShareKey')}.target = '_self'")  # else it opens beside this tab
    page.click(NAME, "a")
    assert scatter(page, OBJECTIVE, OUTCOME) == 2
    page.click(NAME, "button")  # the list of views, which now bears the name of this one
    page.wait_for("Save as new view")
    page.screenshot(shots / "views.png")


def test_the_report_is_drawn_in_the_artifact_viewer(finished: Command, ui: str, page: Page, shots: Path) -> None:
    page.open(f"{base_of(ui)}/#/experiments/1/runs?workflowType=machine_learning")
    page.wait(anchor("/artifacts/"))
    report = page.evaluate(f"{anchor('/artifacts/')}.href")
    assert report.endswith(f"/#/experiments/1/runs/{run_ids(finished)['parent']}/artifacts/report/report.html")
    page.open(report)
    page.wait_for("report/report.html", "experiment.yaml", "provenance.json")
    page.wait("document.querySelector('iframe')?.getBoundingClientRect().height > 300")
    page.wait("document.querySelector('.verdict')?.getBoundingClientRect().width > 300", inside=True)
    assert "Spearman" in page.inside("document.querySelector('.verdict').innerText")
    drawn = "[...document.querySelectorAll('figure svg, figure img')].filter(each => each.clientWidth > 200)"
    assert page.inside(f"{drawn}.length") >= 4
    page.screenshot(shots / "artifacts.png")


def base_of(ui: str) -> str:
    address = urlsplit(ui)
    return f"{address.scheme}://{address.netloc}"


def scatter(page: Page, x: str, y: str) -> int:
    """Points of the chart with these axes, once it is drawn."""
    plots = "[...document.querySelectorAll('.js-plotly-plot')]"
    title = "each.querySelector('.{}title')?.textContent"
    found = f"{plots}.find(each => {title.format('x')} === '{x}' && {title.format('y')} === '{y}')"
    points = f"{found}?.querySelectorAll('.scatterlayer path.point').length"
    page.wait(f"{points} > 0", within_s=120)
    return int(page.evaluate(points))


def card(metric: str) -> str:
    """The last chart of a metric, as an expression."""
    cards = "[...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')]"
    return f"{cards}.filter(each => each.innerText.split('\\n')[0] === '{metric}').at(-1)"


def anchor(part: str) -> str:
    """The first link whose address has this in it, as an expression."""
    return f"[...document.querySelectorAll('a')].find(each => each.href.includes('{part}'))"
