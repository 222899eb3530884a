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
from proxygap.report.analysis import last_value, objectives, series, settled, trait
from proxygap.report.drawing import Drawing
from proxygap.report.figures import compare_distances
from proxygap.report.html import write_page
from proxygap.report.page import Column, Page, Row, Section, Table
from proxygap.report.records import Distance, IntervalLike, ReportInput, Statistics
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
        real_step: last real step that all experiments reached; one whose seeds all failed does not count.
        entries: one per experiment, the baseline first.
        population: per objective measured in all, the Spearman correlation over all runs (signed so that positive says
            that a better objective went with a better outcome), and the same within the better half by objective.
        confidence: coverage of all intervals.
        study: name of the study whose variants they are; empty for experiments of several files.
    """

    outcome: str
    unit: str
    lower_is_better: bool
    real_step: float
    entries: tuple[Entry, ...]
    population: Mapping[str, tuple[IntervalLike, IntervalLike]]
    confidence: float
    study: str = ""


def compare(inputs: Sequence[ReportInput], outcome: str, statistics: Statistics) -> Comparison:
    """Compare experiments on one outcome.

    Args:
        inputs: at least two; the first is the baseline. Intervals use its confidence and resamples.
        outcome: name of an outcome that all of them measure.
        statistics: the estimators, i.e. the module ``proxygap.probe.statistics``.

    Raises:
        InvalidExperiment: fewer than two experiments, or one that never measured the outcome. An experiment whose seeds
            all failed before they measured anything is a row without numbers instead.
    """
    if len(inputs) < 2:
        raise InvalidExperiment("a comparison needs two experiments", field="compare", remedy="Name another one")
    key = f"outcome/{outcome}"
    measured = _measured(inputs, key)
    going = [one for one in measured if any(record.state != "failed" for record in one.seeds)] or measured
    step = min(float(one.measurements.loc[one.measurements["key"] == key, "real_step"].max()) for one in going)
    scores = [_scores(one, key, step) for one in inputs]
    return Comparison(
        outcome,
        trait(measured[0], key, "unit"),
        trait(measured[0], key, "direction") == "lower",
        step,
        tuple(_entry(inputs, scores, index, statistics) for index in range(len(inputs))),
        _population(measured, key, statistics),
        inputs[0].confidence,
        _study([one.name for one in inputs]),
    )


def _measured(inputs: Sequence[ReportInput], key: str) -> list[ReportInput]:
    """The experiments that measured an outcome; all others must have failed before they measured any."""
    measured = [one for one in inputs if (one.measurements["key"] == key).any()]
    for one in inputs:
        others = sorted(set(one.measurements.loc[one.measurements["side"] == "outcome", "name"]))
        came_to_nothing = not others and all(record.state != "finished" for record in one.seeds)
        if not (one.measurements["key"] == key).any() and not (measured and came_to_nothing):
            raise InvalidExperiment(
                f"{one.name} never measured this outcome",
                field="outcome",
                value=key.partition("/")[2],
                remedy=f"It measured: {', '.join(others) or 'no outcome'}",
            )
    return measured


def write_comparison(
    comparison: Comparison,
    out_folder: Path,
    question: str = "",
    inputs: Sequence[ReportInput] = (),
    links: Sequence[tuple[str, IntervalLike]] = (),
) -> Path:
    """Write ``comparison.html`` in the look of a report; its path.

    Args:
        comparison: what `compare` found.
        out_folder: created if absent.
        question: what the study asks, for the head of the page.
        inputs: the experiments, for those sections that need more than the outcome at the end.
        links: correlations over variants from the reward model to gold, by name.

    Raises:
        StorageError: the folder cannot be written.
    """
    sections, drawings = _distance_sections(inputs)
    sections += _links_sections(links)
    write_page(comparison_page(comparison, question, sections), drawings, out_folder, "comparison.html")
    return out_folder / "comparison.html"


def comparison_page(comparison: Comparison, question: str = "", extra: Sequence[Section] = ()) -> Page:
    """The page: which experiment had the better outcome, and how sure that is."""
    baseline = comparison.entries[0].name
    sentences = [_sentence(comparison, entry) for entry in comparison.entries[1:]]
    subtitle: tuple[str, ...] = (
        f"Against {baseline}, up to real step {comparison.real_step:,.0f}.",
        f"Intervals cover {comparison.confidence:.0%}.",
    )
    names = ", ".join(entry.name for entry in comparison.entries)
    sections = (*extra, _entries_section(comparison), _population_section(comparison))
    subtitle = (question, *subtitle) if question else subtitle
    footer = f"{plural(len(comparison.entries), 'experiment')}: {names}."
    title = f"Variants of {comparison.study}" if comparison.study else "Comparison"
    return Page(title, "comparison", sentences[0], tuple(sentences[1:]), subtitle, sections, footer)


def _links_sections(links: Sequence[tuple[str, IntervalLike]]) -> tuple[Section, ...]:
    """From the reward model to gold: where the chain of hopes breaks."""
    if not links:
        return ()
    rows = tuple(Row((name, interval_text(it), str(it.samples), it.reason)) for name, it in links)
    columns = (Column("link"), Column("Spearman over variants"), Column("seeds"), Column("remark"))
    note = (
        "Within each seed over all variants, then the mean over seeds with Student's interval. A link whose interval "
        "holds 0 cannot be relied on."
    )
    return (Section("From the reward model to gold", tables=(Table(columns, rows, note),)),)


def short_names(names: Sequence[str]) -> list[str]:
    """Names of variants without that of their study; others as they are."""
    study = _study(names)
    return [name.removeprefix(f"{study}.") for name in names] if study else list(names)


def _study(names: Sequence[str]) -> str:
    """The study whose variants have these names, else nothing. A variant's name holds a letter: ``1`` ends a number."""
    parts = [name.rpartition(".") for name in names]
    told_apart = all(any(sign.isalpha() for sign in variant) for _, _, variant in parts)
    return parts[0][0] if told_apart and len({study for study, _, _ in parts}) == 1 else ""


def _distance_sections(inputs: Sequence[ReportInput]) -> tuple[tuple[Section, ...], tuple[Drawing, ...]]:
    """Gold of all experiments over the distance from the reference, and where each turns down."""
    names = short_names([one.name for one in inputs])
    found = [(name, one.distance) for name, one in zip(names, inputs, strict=True) if one.distance is not None]
    if not found:
        return (), ()
    drawn = compare_distances([(name, distance.aligned) for name, distance in found])
    drawings = () if isinstance(drawn, str) else (drawn,)
    columns = (
        Column("experiment"), Column("turning point, nats"), Column("gold there", "outcome"),
        Column("gold lost to the end", "outcome"), Column("proxy gained to the end", "objective"),
    )  # fmt: skip
    rows = tuple(Row(_turning_cells(name, distance)) for name, distance in found)
    note = (
        "Gold lost: from its peak to the end, each seed's peak placed by the others. A turning point is reported only "
        "where the fall after it is more than noise between seeds."
    )
    text = drawn if isinstance(drawn, str) else ""
    return (Section("Does gold turn down?", text, drawings=drawings, tables=(Table(columns, rows, note),)),), drawings


def _turning_cells(name: str, distance: Distance) -> tuple[str, ...]:
    knee = distance.knee
    if not knee.found:
        return name, knee.reason, "\u2013", interval_text(knee.drop), "\u2013"
    return name, *(interval_text(it) for it in (knee.kl, knee.gold, knee.drop, knee.proxy_rise))


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
    """Seed to (outcome at ``step``, mean outcome over real steps up to it); NaN for seeds that did not get there.

    Exchangeable evaluations have no end: both numbers are then their mean.
    """
    scores = {}
    for record in one.seeds:
        steps_T, values_T = series(one, key, record.seed)
        steps_T, values_T = steps_T[np.isfinite(values_T)], values_T[np.isfinite(values_T)]
        if len(steps_T) == 0 or steps_T[-1] < step:
            scores[record.seed] = (math.nan, math.nan)
            continue
        if one.exchangeable:
            mean = settled(one, values_T[steps_T <= step])
            scores[record.seed] = (mean, mean)
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
    name = short_names([each.name for each in inputs])[index]
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
        return Entry(name, len(one.seeds), failed, final, area, None, None)
    return Entry(name, len(one.seeds), failed, final, area, differences[0], differences[1])


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
        Column("experiment"), Column("at the end", "outcome"), Column("difference"),
        Column("mean over steps", "outcome"), Column("difference"), Column("seeds"),
    )  # fmt: skip
    note = (
        f"The end is real step {comparison.real_step:,.0f}; the mean is over all real steps up to it; of models side "
        "by side, both are the mean over models. Interquartile means over seeds that reached it. Differences are to "
        "the baseline: the mean over equal seeds of the "
        "difference within each (Student's t). Fewer than 3 equal seeds decide nothing."
    )
    title = f"{outcome[:1].upper()}{outcome[1:]}" + (f", {comparison.unit}" if comparison.unit else "")
    return Section(title, tables=(Table(columns, tuple(rows), note),))


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
