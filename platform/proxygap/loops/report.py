"""Reports and aggregates from records alone: nothing is run again for a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.base.seeds import generator
from proxygap.experiment import Experiment, validate
from proxygap.loops.links import study_links
from proxygap.probe import gap, overoptimization, statistics
from proxygap.probe.knee import knee
from proxygap.probe.over_seeds import over_seeds
from proxygap.probe.overoptimization import Curve
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.journal import Journal
from proxygap.record.rows import EventRow, Row, read_journal, to_table
from proxygap.record.samples import read_samples
from proxygap.report.analysis import analyze
from proxygap.report.compare import compare, write_comparison
from proxygap.report.html import write_report
from proxygap.report.records import Distance, EventRecord, ReportInput, SeedRecord
from proxygap.report.verdict import judge

ROUTINE = frozenset({"fitted"})
"""Events of every run, which only the journal keeps."""


def make_report(folder: Path) -> tuple[Path, str]:
    """Write the report of an experiment's folder.

    Returns:
        The HTML file, and its first line: the verdict in words.

    Raises:
        StorageError: the folder holds no experiment, or its journals cannot be read.
    """
    records = read_records(folder)
    page = write_report(records, ExperimentFolder(folder.absolute()).report, statistics)
    return page, judge(analyze(records, statistics)).sentence


def make_comparison(folders: Sequence[Path], out: Path, question: str = "") -> Path:
    """Write the comparison of several experiments; the first is the baseline."""
    inputs = [read_records(folder) for folder in folders]
    found = compare(inputs, inputs[0].outcomes[0], statistics)
    return write_comparison(found, out, question, inputs, study_links(inputs))


def read_records(folder: Path) -> ReportInput:
    """Everything that a report is made of, from a folder on disk."""
    place, experiment = ExperimentFolder(folder.absolute()), recorded_experiment(folder)
    journals = {run.seed: read_journal(run.journal) for run in place.seeds() if run.journal.exists()}
    table, seeds = to_table(journals).to_pandas(), _seed_records(place, experiment)
    return ReportInput(
        name=experiment.name,
        question=experiment.question,
        resolved_yaml=place.yaml_text,
        outcomes=experiment.outcomes,
        objective=experiment.objective,
        seeds=seeds,
        measurements=table,
        provenance=place.provenance,
        events=tuple(_events(journals)),
        confidence=experiment.probe.confidence,
        resamples=experiment.probe.resamples,
        distance=_distance(experiment, table, seeds),
        samples={run.seed: read_samples(run.path / "samples.parquet") for run in place.seeds()},
        exchangeable=getattr(experiment.loop, "exchangeable", False),
    )


def _distance(experiment: Experiment, table: pd.DataFrame, seeds: Sequence[SeedRecord]) -> Distance | None:
    """Proxy and gold along the distance from the reference policy, where the loop has one."""
    if experiment.loop.family != "language" or table.empty:
        return None
    keys = ("model/sqrt_kl", f"outcome/{experiment.outcomes[0]}", "objective/proxy_reward")
    wide = table[table["key"].isin(keys)].pivot_table(index=["seed", "iteration"], columns="key", values="value")
    if not set(keys) <= set(wide.columns):
        return None
    curves: dict[int, Curve] = {}
    for seed in sorted(set(wide.index.get_level_values("seed"))):
        d_T, gold_T, proxy_T = (wide.loc[seed][key].to_numpy(dtype=float) for key in keys)
        curves[int(seed)] = Curve(d_T**2, gold_T, proxy_T)
    options: dict[str, Any] = {"resamples": experiment.probe.resamples, "confidence": experiment.probe.confidence}
    finished = [curves[record.seed] for record in seeds if record.state == "finished" and record.seed in curves]
    aligned = _aligned(finished or list(curves.values()))
    found = knee(aligned, generator(0, "report/knee"), **options)
    return Distance(curves, found, _law(experiment, list(curves.values()), options), aligned)


def _aligned(curves: Sequence[Curve]) -> Sequence[Curve]:
    """The same evaluation of every seed: a policy may fall back toward its reference, so distance is no clock."""
    shortest = min(len(curve.gold_T) for curve in curves)
    return [Curve(c.kl_T[:shortest], c.gold_T[:shortest], c.proxy_T[:shortest]) for c in curves]


def _law(experiment: Experiment, curves: Sequence[Curve], options: dict[str, Any]) -> overoptimization.LawFit | None:
    if experiment.outcomes[0] != "gold_reward":  # the laws start from 0 at the reference; other outcomes do not
        return None
    law: overoptimization.Law = "best_of_n" if experiment.loop.kind == "best_of_n" else "rl"
    try:
        return overoptimization.fit_law(curves, law, generator(0, "report/law"), **options)
    except ValueError:  # fewer than two distances
        return None


def recorded_experiment(folder: Path) -> Experiment:
    """The experiment that a folder records. Raises StorageError where there is none."""
    recorded = ExperimentFolder(folder.absolute()).experiment
    if not recorded:
        raise StorageError("holds no experiment", field=str(folder), remedy="Name a folder that `proxygap run` made")
    return validate(recorded)


def write_aggregates(folder: ExperimentFolder) -> None:
    """Final values over seeds, with intervals, into the parent run's journal. A second call replaces the first."""
    records = read_records(folder.path)
    table = records.measurements
    if table.empty:
        return
    clocks = Clocks(**{name: int(table[name].max()) for name in Clocks().as_dict()})
    last = table.sort_values("real_step").groupby(["key", "seed"], sort=True).tail(1)
    shown = last[last["side"].isin(["objective", "outcome"])]
    finals = [m for key, rows in shown.groupby("key") for m in _over_seeds(rows, records)]
    journal = Journal(folder.journal)
    try:
        journal.rewind(-1)
        journal.write(Reading(clocks, (*finals, *_population(records))))
    finally:
        journal.close()


def _over_seeds(rows: pd.DataFrame, records: ReportInput) -> tuple[Measurement, ...]:
    first = rows.iloc[0]
    side, direction = Side(first["side"]), Direction(first["direction"])
    measured = Measurement(first["name"], float(first["value"]), side, first["unit"], direction)
    return over_seeds(measured, rows["value"].tolist(), records.resamples, records.confidence)


def _population(records: ReportInput) -> tuple[Measurement, ...]:
    """Across the models of all runs: every evaluation's objective against its outcome."""
    wide = records.measurements.pivot_table(index=["seed", "real_step"], columns="key", values="value", sort=True)
    keys = [f"objective/{records.objective}", f"outcome/{records.outcomes[0]}"]
    if not set(keys) <= set(wide.columns):
        return ()
    rows = records.measurements[records.measurements["key"] == keys[0]]
    direction = Direction(rows["direction"].iloc[0]) if len(rows) else Direction.HIGHER
    found = gap.population(
        wide[keys[0]].to_numpy(),
        wide[keys[1]].to_numpy(),
        rng=generator(0, "aggregate/population"),
        objective_direction=direction,
        resamples=records.resamples,
        confidence=records.confidence,
    )
    return tuple(m for m in found.measurements() if math.isfinite(m.value))


def _seed_records(place: ExperimentFolder, experiment: Experiment) -> tuple[SeedRecord, ...]:
    statuses = {run.seed: run.status() for run in place.seeds()}
    records = []
    for seed in experiment.seeds:
        status = statuses.get(seed)
        state = status.state if status else RunState.INTERRUPTED
        reason = status.reason if status else "was not started"
        records.append(SeedRecord(seed, state.value, reason))
    return tuple(records)


def _events(journals: dict[int, list[Row]]) -> list[EventRecord]:
    """What happened besides the ordinary, in order of time."""
    rows = [(seed, row) for seed, rows in journals.items() for row in rows if isinstance(row, EventRow)]
    events = [(row.time_ms, seed, row) for seed, row in rows if row.kind not in ROUTINE]
    return [EventRecord(seed, row.kind, row.clocks.real_step, row.detail) for _, seed, row in sorted(events, key=_time)]


def _time(event: tuple[int, int, EventRow]) -> tuple[int, int]:
    return event[0], event[1]
