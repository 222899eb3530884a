"""Several experiments side by side, at equal real steps and on equal seeds.

The first experiment is the baseline. An experiment's outcome is looked at twice: at the last real step that all
experiments reached, and averaged over real steps up to there (the area under the curve, divided by its width).

Shape legend: S seeds, N runs of all experiments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proxygap.base.errors import InvalidExperiment
from proxygap.base.seeds import generator
from proxygap.report.analysis import last_value, objectives, series, trait
from proxygap.report.html import Column, Page, Row, Section, Table, write_page
from proxygap.report.records import IntervalLike, ReportInput, Statistics
from proxygap.report.verdict import correlation_text, interval_text, label, plural


@dataclass(frozen=True, slots=True)
class Entry:
    """One experiment of a comparison; NaN for a seed that gave nothing up to the common step."""

    name: str
    seeds: int
    failed: int
    final: IntervalLike
    area: IntervalLike
    final_minus_baseline: IntervalLike | None
    area_minus_baseline: IntervalLike | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Experiments against the first one.

    Args:
        outcome: name of the outcome.
        unit: of the outcome.
        lower_is_better: whether the outcome is to be small.
        real_step: last real step that all experiments reached; NaN where one has no outcome at all.
        entries: one per experiment, the baseline first.
        population: per objective measured in all, the Spearman correlation over all runs (signed so that positive says
            that a better objective went with a better outcome), and the same within the better half by objective.
        confidence: coverage of all intervals.
    """

    outcome: str
    unit: str
    lower_is_better: bool
    real_step: float
    entries: tuple[Entry, ...]
    population: Mapping[str, tuple[IntervalLike, IntervalLike]]
    confidence: float


def compare(inputs: Sequence[ReportInput], outcome: str, statistics: Statistics) -> Comparison:
    """Compare experiments on one outcome.

    Args:
        inputs: at least two; the first is the baseline. Intervals use its confidence and resamples.
        outcome: name of an outcome that all of them measure.
        statistics: the estimators, i.e. the module ``proxygap.probe.statistics``.

    Raises:
        InvalidExperiment: fewer than two experiments, or one that never measured the outcome.
    """
    if len(inputs) < 2:
        raise InvalidExperiment("a comparison needs two experiments", field="compare", remedy="Name another one")
    key = f"outcome/{outcome}"
    for one in inputs:
        if not (one.measurements["key"] == key).any():
            measured = sorted(set(one.measurements.loc[one.measurements["side"] == "outcome", "name"]))
            remedy = f"It measured: {', '.join(measured) or 'no outcome'}"
            raise InvalidExperiment(
                f"{one.name} never measured this outcome", field="outcome", value=outcome, remedy=remedy
            )
    step = min(float(one.measurements.loc[one.measurements["key"] == key, "real_step"].max()) for one in inputs)
    scores = [_scores(one, key, step) for one in inputs]
    return Comparison(
        outcome,
        trait(inputs[0], key, "unit"),
        trait(inputs[0], key, "direction") == "lower",
        step,
        tuple(_entry(inputs, scores, index, statistics) for index in range(len(inputs))),
        _population(inputs, key, statistics),
        inputs[0].confidence,
    )


def write_comparison(comparison: Comparison, out_folder: Path) -> Path:
    """Write ``comparison.html`` in the look of a report; its path. Raises StorageError."""
    write_page(comparison_page(comparison), (), out_folder, "comparison.html")
    return out_folder / "comparison.html"


def comparison_page(comparison: Comparison) -> Page:
    """The page: which experiment had the better outcome, and how sure that is."""
    baseline = comparison.entries[0].name
    sentences = [_sentence(comparison, entry) for entry in comparison.entries[1:]]
    subtitle = (
        f"Against {baseline}, up to real step {comparison.real_step:,.0f}.",
        f"Intervals cover {comparison.confidence:.0%}.",
    )
    names = ", ".join(entry.name for entry in comparison.entries)
    sections = (_entries_section(comparison), _population_section(comparison))
    footer = f"{plural(len(comparison.entries), 'experiment')}: {names}."
    return Page("Comparison", "comparison", sentences[0], tuple(sentences[1:]), subtitle, sections, footer)


def _sentence(comparison: Comparison, entry: Entry) -> str:
    baseline, it = comparison.entries[0].name, entry.final_minus_baseline
    outcome = label(comparison.outcome)
    if it is None or math.isnan(it.estimate):
        return f"{entry.name} and {baseline} share no seed on which both gave a {outcome}."
    evidence = f"difference {interval_text(it)} on {plural(it.samples, 'equal seed')}"
    if not it.known or it.low <= 0 <= it.high or it.samples < 3:
        return f"Undecided whether {entry.name} or {baseline} gives the better {outcome}: {evidence}."
    better = (it.estimate < 0) if comparison.lower_is_better else (it.estimate > 0)
    word = "better" if better else "worse"
    return f"{entry.name} gave a {word} {outcome} than {baseline}: {evidence}."


def _scores(one: ReportInput, key: str, step: float) -> dict[int, tuple[float, float]]:
    """Seed to (outcome at ``step``, mean outcome over real steps up to it); NaN for seeds that did not get there."""
    scores = {}
    for record in one.seeds:
        steps_T, values_T = series(one, key, record.seed)
        steps_T, values_T = steps_T[np.isfinite(values_T)], values_T[np.isfinite(values_T)]
        if len(steps_T) == 0 or steps_T[-1] < step:
            scores[record.seed] = (math.nan, math.nan)
            continue
        inner = steps_T < step
        end = float(np.interp(step, steps_T, values_T))
        grid, curve = np.append(steps_T[inner], step), np.append(values_T[inner], end)
        area = float(np.trapezoid(curve, grid) / (step - grid[0])) if len(grid) > 1 else end
        scores[record.seed] = (end, area)
    return scores


def _entry(
    inputs: Sequence[ReportInput],
    scores: Sequence[Mapping[int, tuple[float, float]]],
    index: int,
    statistics: Statistics,
) -> Entry:
    one, mine, base = inputs[index], scores[index], scores[0]
    options = (inputs[0].resamples, inputs[0].confidence)
    final, area = (
        statistics.stratified_bootstrap(
            [values[which] for values in mine.values()], generator(0, f"compare/{which}/{index}"), *options
        )
        for which in (0, 1)
    )
    common = [seed for seed in mine if seed in base]
    differences = [
        statistics.paired_difference(
            [mine[seed][which] for seed in common],
            [base[seed][which] for seed in common],
            inputs[0].confidence,
        )
        for which in (0, 1)
    ]
    failed = sum(record.state != "finished" for record in one.seeds)
    if index == 0:
        return Entry(one.name, len(one.seeds), failed, final, area, None, None)
    return Entry(one.name, len(one.seeds), failed, final, area, differences[0], differences[1])


def _population(
    inputs: Sequence[ReportInput], key: str, statistics: Statistics
) -> dict[str, tuple[IntervalLike, IntervalLike]]:
    """Last objective against last outcome over all runs, for objectives that every experiment measured."""
    shared = [name for name in objectives(inputs[0]) if all(name in objectives(one) for one in inputs[1:])]
    sign_y = -1.0 if trait(inputs[0], key, "direction") == "lower" else 1.0
    y_N = sign_y * np.array([last_value(one, key, record.seed) for one in inputs for record in one.seeds])
    found = {}
    for name in shared:
        sign_x = -1.0 if trait(inputs[0], f"objective/{name}", "direction") == "lower" else 1.0
        x_N = np.array([last_value(one, f"objective/{name}", record.seed) for one in inputs for record in one.seeds])
        x_N *= sign_x
        usable_N = np.isfinite(x_N) & np.isfinite(y_N)
        top_N = usable_N & (x_N >= (np.median(x_N[usable_N]) if usable_N.any() else 0))
        rng = generator(0, f"compare/population/{name}")
        options = (rng, inputs[0].resamples, inputs[0].confidence)
        found[name] = (
            statistics.rank_correlation(x_N, y_N, "spearman", *options),
            statistics.rank_correlation(x_N[top_N], y_N[top_N], "spearman", *options),
        )
    return found


def _entries_section(comparison: Comparison) -> Section:
    rows = []
    for entry in comparison.entries:
        cells = (
            entry.name,
            interval_text(entry.final),
            "baseline" if entry.final_minus_baseline is None else interval_text(entry.final_minus_baseline),
            interval_text(entry.area),
            "baseline" if entry.area_minus_baseline is None else interval_text(entry.area_minus_baseline),
            f"{entry.final.samples} of {entry.seeds}" + (f", {entry.failed} not finished" if entry.failed else ""),
        )
        rows.append(Row(cells, failed=entry.failed == entry.seeds))
    outcome = label(comparison.outcome)
    columns = (
        Column("experiment"), Column(f"{outcome} at that step", "outcome"), Column("difference"),
        Column(f"mean {outcome} up to it", "outcome"), Column("difference"), Column("seeds"),
    )  # fmt: skip
    note = (
        "Interquartile mean over seeds that reached the step. Differences are to the baseline: the mean over equal "
        "seeds of the difference within each (Student's t). Fewer than 3 equal seeds decide nothing."
    )
    return Section("Outcomes", tables=(Table(columns, tuple(rows), note),))


def _population_section(comparison: Comparison) -> Section:
    title = f"Across all runs: objective against {label(comparison.outcome)}"
    if not comparison.population:
        return Section(title, "The experiments share no objective.")
    rows = tuple(
        Row(
            (
                label(name),
                correlation_text(everywhere),
                str(everywhere.samples),
                correlation_text(top),
                str(top.samples),
            )
        )
        for name, (everywhere, top) in comparison.population.items()
    )
    columns = (Column("objective", "objective"), Column("Spearman"), Column("n"), Column("better half"), Column("n"))
    note = (
        "One point per run, last values; positive says that a better objective went with a better outcome. Bad runs "
        "that are bad at everything make any two numbers correlate: the better half (by objective) shows whether "
        "that is all."
    )
    return Section(title, tables=(Table(columns, rows, note),))
