"""The page of a sweep: one self-contained HTML file, figures as PNG and tables as CSV beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError
from proxygap.report.drawing import Drawing
from proxygap.report.html import write_page
from proxygap.report.page import Column, Page, Row, Section, Table
from proxygap.report.records import IntervalLike, Statistics
from proxygap.report.sweep_figures import sides
from proxygap.report.sweep_heat import HeatMap, draw_heat_map, heat_maps
from proxygap.report.sweep_records import Front, SweepInput, Trial
from proxygap.report.sweep_space import importance, parallel
from proxygap.report.sweep_tracks import coverage, fronts, schedule, weights
from proxygap.report.sweep_verdict import clock_name, judge_sweep, setting_words
from proxygap.report.verdict import correlation_text, interval_text, label, number_text, plural

_ENDS = ("", "_low", "_high")
Sheet = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Names of columns, and rows."""


def write_sweep_report(records: SweepInput, out_folder: Path, statistics: Statistics) -> Path:
    """Write ``report.html``, a PNG per figure and a CSV per table; the page's path.

    Args:
        records: of the sweep.
        out_folder: created if absent; files of an earlier report are replaced.
        statistics: the estimators, i.e. the module ``proxygap.probe.statistics``.

    Raises:
        StorageError: the folder cannot be written.
    """
    maps = heat_maps(records, statistics)
    sections, drawings = _sections(records, maps)
    verdict = judge_sweep(records)
    seeds = ", ".join(str(seed) for seed in records.seeds)
    subtitle = (records.question, f"Seeds {seeds} for every setting; intervals cover {records.confidence:.0%}.")
    footer = "Figures as PNG and tables as CSV beside this file; every trial's own measurements are in its folder."
    page = Page(records.name, verdict.kind, verdict.sentence, verdict.remarks, subtitle, sections, footer)
    write_page(page, drawings, out_folder, "report.html")
    _write_sheets(_sheets(records, maps), out_folder)
    return out_folder / "report.html"


def _sections(records: SweepInput, maps: Sequence[HeatMap]) -> tuple[tuple[Section, ...], list[Drawing]]:
    """All sections in their order, and the figures in them."""
    found: list[Drawing | str | Section] = [sides(records), _chosen(records)]
    if records.front is not None:
        drawing = fronts(records.front)
        found += [
            Section(drawing.title, drawings=(drawing,), tables=(_coverage(records.front),)),
            coverage(records.front),
        ]
    found += [weights(records), schedule(records), parallel(records), importance(records)]
    for number, each in enumerate(maps, start=1):
        drawing = draw_heat_map(each, number, records)
        found.append(Section(drawing.title, drawings=(drawing,), tables=(_cells(each, records),)))
    if not maps:
        found.append("Heat maps: no two of the searched fields have few enough values.")
    found.append(_trials(records))
    missing = [*(each for each in found if isinstance(each, str)), *records.notes]
    sections = [Section(each.title, drawings=(each,)) if isinstance(each, Drawing) else each for each in found
                if not isinstance(each, str)]  # fmt: skip
    if missing:
        sections.append(Section("Not shown", " ".join(missing)))
    rows = tuple(Row((key, str(value))) for key, value in records.provenance.items() if not isinstance(value, Mapping))
    tables = (Table((Column("what"), Column("value")), rows),) if rows else ()
    sections.append(Section("Provenance", tables=tables, pre=records.resolved_yaml, summary="Resolved sweep"))
    return tuple(sections), [drawing for section in sections for drawing in section.drawings]


def _chosen(records: SweepInput) -> Section:
    """Best by objective beside best by outcome, and the best by each goal of the sweep."""
    objective, outcome = label(records.objective.name), label(records.outcome.name)
    columns = (
        Column("chosen by"), Column("trial"), Column("setting"), Column(objective, "objective"),
        Column(outcome, "outcome"), Column(f"{outcome} lost", "outcome"),
    )  # fmt: skip
    numbers = [(f"outcome ({outcome})", records.compared[0].number)] if records.compared else []
    if records.price is not None:
        numbers.insert(0, (f"objective ({objective})", records.price.by_objective))
    known = {records.outcome.key, records.objective.key}
    numbers += [(f"goal {best.goal}", best.trial) for best in records.best if best.goal not in known]
    rows = tuple(_chosen_row(records, name, number) for name, number in numbers)
    ranks = (
        f"Over {plural(records.kendall.samples, 'finished trial')} with both sides, objective and outcome rank with "
        f"Kendall's tau {correlation_text(records.kendall)} and Spearman's rho {correlation_text(records.spearman)}. "
        if records.kendall.estimate == records.kendall.estimate
        else f"No rank correlation of the two sides: {records.kendall.reason}. "
    )
    note = ranks + (
        "Lost: outcome of the trial that is best by outcome less that of this one, interquartile mean over equal seeds "
        "in brackets. Only finished trials are compared."
    )
    full = f"Best by outcome, its fields in full: {setting_words(records.compared[0])}." if records.compared else ""
    return Section("Best by objective beside best by outcome", full, tables=(Table(columns, rows, note),))


def _chosen_row(records: SweepInput, name: str, number: int) -> Row:
    trial, best = records.trial(number), records.compared[0] if records.compared else None
    price, lost = records.price, "\u2013"
    if best is not None:
        shortfall = records.outcome.turned(best.outcome.estimate) - records.outcome.turned(trial.outcome.estimate)
        lost = number_text(shortfall)
        if price is not None and number == price.by_objective and price.interval.known:
            lost += f" [{number_text(price.interval.low)}, {number_text(price.interval.high)}]"
    cells = (interval_text(trial.objective), interval_text(trial.outcome), lost)
    return Row((name, str(number), setting_words(trial, short=True), *cells))


def _coverage(front: Front) -> Table:
    titles = ("hypervolume", "share of the known front's", "shortfall from it")
    columns = (Column("trials"), Column("number"), Column("real steps"), *(Column(each, "outcome") for each in titles))
    rows = []
    for each in front.coverage:
        numbers = (interval_text(it) for it in (each.volume, each.share, each.shortfall))
        rows.append(Row((each.name, str(each.trials), f"{each.real_steps:,}", *numbers)))
    if front.known is not None:
        rows.append(Row(("the known front", "", "", number_text(front.known_volume), "1", "0")))
    seeds = max((each.volume.samples for each in front.coverage), default=0)
    note = (
        "Of all vectors that evaluations measured, trials of one seed together, from the task's reference point; then "
        f"the interquartile mean over {plural(seeds, 'seed')}. Real steps are those of one seed: more of them cover "
        "more for that alone, so compare at equal ones. A trial alone is the luckiest of its sweep. Shortfall: IGD+."
    )
    return Table(columns, tuple(rows), note)


def _cells(found: HeatMap, records: SweepInput) -> Table:
    """The best cells, with intervals."""
    names = [name for name in (found.column, found.row, found.panel) if name]
    columns = (*map(Column, names), Column(f"mean {label(records.outcome.name)}", "outcome"), Column("trials"))
    cells = sorted(found.cells, key=lambda cell: -records.outcome.turned(cell.outcome.estimate))
    rows = [
        Row((*(each for each in (cell.column, cell.row, cell.panel)[: len(names)]), interval_text(cell.outcome),
             str(cell.trials)))
        for cell in cells[:8]
    ]  # fmt: skip
    left = f" {len(cells) - 8} cells with less are in the CSV file." if len(cells) > 8 else ""
    note = f"Intervals over trials; where a cell has one trial, over its seeds.{left}"
    return Table(columns, tuple(rows), note)


def _trials(records: SweepInput) -> Section:
    """All trials, those that failed as rows like any other."""
    clocks = _clocks(records)
    columns = (
        Column("trial"), Column("state"), Column("setting"), Column(label(records.objective.name), "objective"),
        Column(label(records.outcome.name), "outcome"), *(Column(f"{clock_name(clock)}s") for clock in clocks),
        Column("seconds"),
    )  # fmt: skip
    rows = []
    for trial in records.trials:
        state = trial.state + (f": {trial.reason}" if trial.reason else "")
        words = (state, setting_words(trial, short=True))
        sides = (interval_text(trial.objective), interval_text(trial.outcome))
        cells: tuple[str, ...] = (str(trial.number), *words, *sides)
        spent = (f"{trial.clocks.get(clock, 0):,}" for clock in clocks)
        rows.append(
            Row(
                (*cells, *spent, number_text(trial.seconds)), failed=trial.state == "failed", link=f"../{trial.folder}/"
            )
        )
    note = (
        "Interquartile means over seeds with bootstrap intervals; clocks are summed over seeds. Seconds: from the "
        "proposal of a trial to its end, waiting included. Journals and settings of trial 7 are in trials/00007."
    )
    return Section("All trials", tables=(Table(columns, tuple(rows), note),))


def _clocks(records: SweepInput) -> list[str]:
    """Clocks that any trial has moved."""
    names = [name for name in Clocks().as_dict() if name != "iteration"]
    return [name for name in names if any(trial.clocks.get(name, 0) for trial in records.trials)]


def _sheets(records: SweepInput, maps: Sequence[HeatMap]) -> dict[str, Sheet]:
    """Tables in full precision, by the name of their file."""
    sheets = {"trials": _trial_sheet(records)}
    shares = [[name, *_ends(share), share.samples] for name, share in records.importance.shares.items()]
    sheets["importance"] = (["field", *_named("share"), "trials"], shares)
    price = records.price
    chosen: list[Sequence[Any]] = [["outcome", records.compared[0].number, 0.0, 0.0, 0.0]] if records.compared else []
    chosen += [["objective", price.by_objective, price.lost, price.interval.low, price.interval.high]] if price else []
    sheets["best_by_objective_and_outcome"] = (["chosen_by", "trial", *_named("outcome_lost")], chosen)
    for number, each in enumerate(maps, start=1):
        rows = [[c.column, c.row, c.panel, *_ends(c.outcome), c.trials, len(records.seeds)] for c in each.cells]
        names = [each.column, each.row, each.panel or "-", *_named(records.outcome.name), "trials", "seeds"]
        sheets[f"heat_map_{number}"] = (names, rows)
    if records.front is not None:
        names = [*_named("hypervolume"), *_named("share"), *_named("igd_plus")]
        rows = [
            [c.name, c.trials, c.real_steps, *_ends(c.volume), *_ends(c.share), *_ends(c.shortfall)]
            for c in records.front.coverage
        ]
        sheets["fronts"] = (["trials", "number", "real_steps", *names], rows)
    return sheets


def _trial_sheet(records: SweepInput) -> Sheet:
    axes, clocks = [axis.name for axis in records.axes], list(Clocks().as_dict())
    sides = [*_named(records.objective.key), *_named(records.outcome.key)]
    names = ["trial", "state", "reason", *axes, *sides, "seeds", *clocks, "seconds", "folder"]
    return names, [_trial_row(trial, axes, clocks) for trial in records.trials]


def _trial_row(trial: Trial, axes: Sequence[str], clocks: Sequence[str]) -> list[Any]:
    places = [trial.at.get(name, "") for name in axes]
    sides = [*_ends(trial.objective), *_ends(trial.outcome), trial.outcome.samples]
    spent = [trial.clocks.get(clock, 0) for clock in clocks]
    return [trial.number, trial.state, trial.reason, *places, *sides, *spent, trial.seconds, trial.folder]


def _ends(it: IntervalLike) -> list[float | str]:
    """Estimate and ends; empty cells for what is not known."""
    return [value if math.isfinite(value) else "" for value in (it.estimate, it.low, it.high)]


def _named(name: str) -> list[str]:
    return [f"{name}{end}" for end in _ENDS]


def _write_sheets(sheets: Mapping[str, Sheet], folder: Path) -> None:
    for name, (columns, rows) in sheets.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        try:
            (folder / f"{name}.csv").write_text(text.getvalue(), encoding="utf-8")
        except OSError as error:
            raise StorageError(
                f"the report cannot be written: {error.strerror or error}",
                field=str(folder),
                remedy="Free space, or choose a folder that may be written",
            ) from error
