"""All numbers of a report, computed once; figures, verdict and tables only show them.

Signs are adjusted to the directions, as in ``proxygap.probe.gap``: a positive correlation says that a better objective
went with a better outcome. Intervals are drawn from generators of their own, so that a report made again is equal.

Shape legend: S seeds, T evaluations of one seed, G points of a common grid of real steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from proxygap.base.seeds import generator
from proxygap.report.records import COLUMNS, METHODS, IntervalLike, Method, ReportInput, Statistics

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Objective and outcome of one seed at the same evaluations, in order of time; signs as measured."""

    seed: int
    real_step_T: Float
    objective_T: Float
    outcome_T: Float


@dataclass(frozen=True, slots=True)
class Link:
    """One objective against the first outcome.

    Args:
        objective: name without side.
        lower_is_better: whether the objective is to be small.
        unit: of the objective.
        pairs: per seed.
        pooled: per method, the mean over seeds of the correlation within each.
        per_seed: per seed, the Spearman correlation.
        across_seeds: Spearman of last objective and last outcome, one point per seed.
    """

    objective: str
    lower_is_better: bool
    unit: str
    pairs: tuple[Pairs, ...]
    pooled: Mapping[Method, IntervalLike]
    per_seed: Mapping[int, IntervalLike]
    across_seeds: IntervalLike

    @property
    def evaluations(self) -> int:
        """Finite pairs over all seeds."""
        return sum(int((np.isfinite(one.objective_T) & np.isfinite(one.outcome_T)).sum()) for one in self.pairs)


@dataclass(frozen=True, slots=True)
class Final:
    """An outcome at the end: per seed, and over seeds (interquartile mean)."""

    outcome: str
    unit: str
    per_seed: Mapping[int, tuple[float, float]]
    """Seed to (value, its best during the run); NaN for a seed that gave none."""
    overall: IntervalLike


@dataclass(frozen=True, slots=True)
class Loss:
    """What an attack on models took from them, at its last rung; means over seeds that finished (Student's t)."""

    returns: IntervalLike
    likelihood: IntervalLike


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything a report says in numbers.

    ``link`` is None where objective and outcome never met, ``lost`` where no model was attacked.
    """

    input: ReportInput
    outcome: str
    links: tuple[Link, ...]
    link: Link | None
    finals: tuple[Final, ...]
    lost: Loss | None

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, failed ones included, in the order of the experiment."""
        return tuple(record.seed for record in self.input.seeds)


def analyze(report_input: ReportInput, statistics: Statistics) -> Analysis:
    """Compute all numbers of a report."""
    outcome = report_input.outcomes[0]
    links = tuple(_link(report_input, name, outcome, statistics) for name in objectives(report_input))
    met = {link.objective: link for link in links if link.evaluations}
    chosen = met.get(report_input.objective) if report_input.objective else next(iter(met.values()), None)
    finals = tuple(_final(report_input, name, statistics) for name in report_input.outcomes)
    return Analysis(report_input, outcome, links, chosen, finals, _lost(report_input, statistics))


def objectives(report_input: ReportInput) -> list[str]:
    """Names of the measured objectives, the experiment's own first, ``_member_mean`` variants left out."""
    table = report_input.measurements
    names = dict.fromkeys(str(name) for name in table.loc[table["side"] == "objective", "name"])
    shown = [name for name in names if not name.endswith("_member_mean") or name == report_input.objective]
    return sorted(shown, key=lambda name: name != report_input.objective)


def series(report_input: ReportInput, key: str, seed: int) -> tuple[Float, Float]:
    """Real steps and values of one key of one seed, in order; of rows at equal steps the last one counts."""
    table = report_input.measurements
    rows = table[(table["key"] == key) & (table["seed"] == seed)].sort_values(["real_step", "time"], kind="stable")
    rows = rows.drop_duplicates("real_step", keep="last")
    return rows["real_step"].to_numpy(dtype=np.float64), rows["value"].to_numpy(dtype=np.float64)


def trait(report_input: ReportInput, key: str, column: str) -> str:
    """Unit or direction of a key; empty where it was never measured."""
    table = report_input.measurements
    found = table.loc[table["key"] == key, column]
    return str(found.iloc[0]) if len(found) else ""


def paired(report_input: ReportInput, left: str, right: str, seed: int) -> tuple[Float, Float, Float]:
    """Real steps at which both keys of one seed were measured, and both values there (which may be NaN)."""
    left_steps, left_values = series(report_input, left, seed)
    right_steps, right_values = series(report_input, right, seed)
    steps, left_rows, right_rows = np.intersect1d(left_steps, right_steps, assume_unique=True, return_indices=True)
    return steps, left_values[left_rows], right_values[right_rows]


def last_value(report_input: ReportInput, key: str, seed: int) -> float:
    """The last value of a key, or the mean of exchangeable ones; NaN where there is none."""
    _, values_T = series(report_input, key, seed)
    return settled(report_input, values_T) if len(values_T) else math.nan


def settled(report_input: ReportInput, values_T: Float) -> float:
    """What a seed comes to: its last value, or the mean of its finite ones where evaluations are exchangeable."""
    if not report_input.exchangeable:
        return float(values_T[-1])
    finite_T = values_T[np.isfinite(values_T)]
    return float(finite_T.mean()) if len(finite_T) else math.nan


def onset_step(report_input: ReportInput, seed: int) -> float:
    """Real step of a seed's onset as of its last evaluation; NaN where none was found or looked for."""
    if last_value(report_input, "gap/onset_found", seed) != 1:
        return math.nan
    return last_value(report_input, "gap/onset_real_step", seed)


def band(
    curves: list[tuple[Float, Float]], report_input: ReportInput, statistics: Statistics, name: str
) -> tuple[Float, list[IntervalLike]]:
    """Interquartile mean over seeds, with interval, at steps that all seeds share in range (at most 60)."""
    curves = [(steps_T, values_T) for steps_T, values_T in curves if len(steps_T) > 1]
    if len(curves) < 2:
        return np.empty(0), []
    start, stop = max(steps_T[0] for steps_T, _ in curves), min(steps_T[-1] for steps_T, _ in curves)
    grid_G = np.unique(np.concatenate([steps_T for steps_T, _ in curves]))
    grid_G = grid_G[(grid_G >= start) & (grid_G <= stop)]
    grid_G = (
        grid_G[np.unique(np.linspace(0, len(grid_G) - 1, min(60, len(grid_G))).astype(int))] if len(grid_G) else grid_G
    )
    values_GS = np.stack([np.interp(grid_G, steps_T, values_T) for steps_T, values_T in curves], axis=1)
    rng = generator(0, f"report/band/{name}")
    options = (rng, min(500, report_input.resamples), report_input.confidence)
    return grid_G, [statistics.stratified_bootstrap(values_S, *options) for values_S in values_GS]


def _link(report_input: ReportInput, objective: str, outcome: str, statistics: Statistics) -> Link:
    key, lower = f"objective/{objective}", trait(report_input, f"objective/{objective}", "direction") == "lower"
    sign_x = -1.0 if lower else 1.0
    sign_y = -1.0 if trait(report_input, f"outcome/{outcome}", "direction") == "lower" else 1.0
    pairs = [Pairs(s.seed, *paired(report_input, key, f"outcome/{outcome}", s.seed)) for s in report_input.seeds]
    pairs = [one for one in pairs if len(one.real_step_T)]
    signed = {one.seed: (sign_x * one.objective_T, sign_y * one.outcome_T) for one in pairs}
    rng = generator(0, f"report/link/{objective}")
    options = (rng, report_input.resamples, report_input.confidence)
    length = (lambda _: None) if report_input.exchangeable else statistics.default_block_length
    ends = np.array([[settled(report_input, side_T) for side_T in both] for both in signed.values()]).reshape(-1, 2)
    return Link(
        objective,
        lower,
        trait(report_input, key, "unit"),
        tuple(pairs),
        {
            method: statistics.pooled_correlation(
                list(signed.values()), method, *options, exchangeable=report_input.exchangeable
            )
            for method in METHODS
        },
        {
            seed: statistics.rank_correlation(x_T, y_T, "spearman", *options, block_length=length(len(x_T)))
            for seed, (x_T, y_T) in signed.items()
        },
        statistics.rank_correlation(ends[:, 0], ends[:, 1], "spearman", *options),
    )


def _lost(report_input: ReportInput, statistics: Statistics) -> Loss | None:
    keys = ("gap/return_lost", "gap/likelihood_lost")
    ended = [record.seed for record in report_input.seeds if record.state == "finished"]  # others are at other rungs
    lost_S2 = np.array([[last_value(report_input, key, seed) for key in keys] for seed in ended]).reshape(-1, 2)
    lost_S2 = lost_S2[np.isfinite(lost_S2).all(axis=1)]
    if not len(lost_S2):
        return None
    none_S = np.zeros(len(lost_S2))
    return Loss(*(statistics.paired_difference(lost_S, none_S, report_input.confidence) for lost_S in lost_S2.T))


def _final(report_input: ReportInput, outcome: str, statistics: Statistics) -> Final:
    key = f"outcome/{outcome}"
    best = np.min if trait(report_input, key, "direction") == "lower" else np.max
    per_seed = {}
    for record in report_input.seeds:
        _, values_T = series(report_input, key, record.seed)
        finite_T = values_T[np.isfinite(values_T)]
        last = settled(report_input, values_T) if len(finite_T) else math.nan
        per_seed[record.seed] = (last, float(best(finite_T)) if len(finite_T) else math.nan)
    finished = [per_seed[record.seed][0] if record.state == "finished" else math.nan for record in report_input.seeds]
    rng = generator(0, f"report/final/{outcome}")
    overall = statistics.stratified_bootstrap(finished, rng, report_input.resamples, report_input.confidence)
    return Final(outcome, trait(report_input, key, "unit"), per_seed, overall)


def frame(report_input: ReportInput) -> pd.DataFrame:
    """The measurements as they go to parquet: the known columns, in order."""
    return report_input.measurements.loc[:, list(COLUMNS)].reset_index(drop=True)
