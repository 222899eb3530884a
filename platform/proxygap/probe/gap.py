"""How far objective and outcome part: within a run, from which point on, and across models.

Signs are adjusted to the directions: a positive correlation always says that a better objective went with a better
outcome. Two curves that both trend in time correlate for that reason alone, so a correlation within a run describes
that run; whether a better model makes a better outcome is what `population` asks.

Shape legend: T evaluations in order of time, N models, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.probe.statistics import (
    METHODS,
    Interval,
    Method,
    default_block_length,
    finite_pairs,
    rank_correlation,
    resample_rows,
)

Float = NDArray[np.float64]
_MIN_EVALUATIONS = 8
_MIN_AFTER = 4


@dataclass(frozen=True, slots=True)
class Onset:
    """Where the outcome turned down while the objective still improved.

    Args:
        index: evaluation at which the smoothed outcome was best.
        clock: its reading of the clock.
        drop: fall of the outcome from there to the end, sign-adjusted and therefore positive.
        drop_p: probability of a fall that large from noise alone.
        slope: the objective's improvement per tick of the clock after that point, with its interval.
    """

    index: int
    clock: float
    drop: float
    drop_p: float
    slope: Interval


@dataclass(frozen=True, slots=True)
class Population:
    """Correlations across models, and what choosing by the objective costs.

    Args:
        everywhere: per method, over all models.
        top_half: per method, over the models whose objective is at least the median. Bad models that are bad at
            everything make any two scores correlate; the top half is where a choice is made (Lambert et al. 2020).
        outcome_lost: outcome of the model with the best outcome minus that of the model with the best objective;
            0 says that the objective chose well. The best outcome is itself picked from noisy ones, so it flatters.
        best_by_objective: row of the best objective (the first of equals).
        best_by_outcome: row of the best outcome.
    """

    everywhere: Mapping[Method, Interval]
    top_half: Mapping[Method, Interval]
    outcome_lost: Interval
    best_by_objective: int
    best_by_outcome: int

    def measurements(self, prefix: str = "population") -> tuple[Measurement, ...]:
        """``gap/PREFIX/METHOD``, ``gap/PREFIX_top_half/METHOD``, ``gap/PREFIX/outcome_lost``, each with its ends."""
        everywhere = correlation_measurements(self.everywhere, f"{prefix}/")
        top_half = correlation_measurements(self.top_half, f"{prefix}_top_half/")
        lost = _with_ends(f"{prefix}/outcome_lost", self.outcome_lost, "", Direction.LOWER)
        return everywhere + top_half + lost


def within_run(
    objective_T: ArrayLike,
    outcome_T: ArrayLike,
    *,
    rng: np.random.Generator,
    objective_direction: Direction = Direction.HIGHER,
    outcome_direction: Direction = Direction.HIGHER,
    resamples: int = 2000,
    confidence: float = 0.95,
    prefix: str = "",
) -> tuple[Measurement, ...]:
    """Pearson, Spearman and Kendall over the evaluations of one run: ``gap/PREFIXspearman`` and ``_low``, ``_high``.

    Args:
        objective_T: the objective, in order of time.
        outcome_T: the outcome at the same evaluations.
        rng: draws the resamples (moving blocks).
        objective_direction: LOWER turns its sign.
        outcome_direction: LOWER turns its sign.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.
        prefix: before the name, e.g. ``held_out_mse/``.
    """
    x_T, y_T = better_is_higher(objective_T, objective_direction), better_is_higher(outcome_T, outcome_direction)
    length = default_block_length(len(x_T))
    intervals = {m: rank_correlation(x_T, y_T, m, rng, resamples, confidence, length) for m in METHODS}
    return correlation_measurements(intervals, prefix)


def onset(
    objective_T: ArrayLike,
    outcome_T: ArrayLike,
    clock_T: ArrayLike,
    rng: np.random.Generator,
    *,
    noise_T: ArrayLike | None = None,
    objective_direction: Direction = Direction.HIGHER,
    outcome_direction: Direction = Direction.HIGHER,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> Onset | None:
    """The point after which the objective still improves and the outcome falls; None where that cannot be said.

    Smooth the outcome (centered mean); its maximum is the candidate. It is an onset when both hold:

    1. The fall from the maximum to the mean of the last quarter is larger than ``confidence`` of the falls that the
       same procedure finds in pure noise. A flat outcome is the least favorable case among all that never turn down
       (a rise only shortens the fall, draw by draw), so the test keeps its level for each of them. The noise of an
       evaluation is the larger of ``noise_T`` and what second differences of the outcome show (the policy's own
       wobble, which the spread of the episodes does not contain).
    2. The least-squares slope of the objective over the clock after the maximum is above 0 at one-sided
       ``confidence``, by moving-block bootstrap.

    Args:
        objective_T: the objective, in order of time.
        outcome_T: the outcome at the same evaluations.
        clock_T: increasing readings of one clock.
        rng: draws noise and resamples.
        noise_T: standard error of each evaluation's outcome (its spread over sqrt of the episodes), if known.
        objective_direction: LOWER turns its sign.
        outcome_direction: LOWER turns its sign.
        resamples: draws behind each test.
        confidence: of each of both tests.

    Returns:
        The onset; None with fewer than 8 evaluations, or fewer than 4 after the maximum.
    """
    columns = [better_is_higher(objective_T, objective_direction), better_is_higher(outcome_T, outcome_direction)]
    columns += [np.asarray(clock_T, dtype=np.float64), _noise(columns[1], noise_T)]
    x_T, y_T, clock, noise = np.stack(columns)[:, np.isfinite(columns).all(axis=0)]
    if len(y_T) < _MIN_EVALUATIONS:
        return None
    peak_1, drop_1 = _fall(y_T[None, :])
    peak, drop = int(peak_1[0]), float(drop_1[0])
    if len(y_T) - peak <= _MIN_AFTER:
        return None
    _, null_R = _fall(noise * rng.standard_normal((resamples, len(y_T))))
    drop_p = (1 + int((null_R >= drop).sum())) / (resamples + 1)
    slope = _slope(clock[peak:], x_T[peak:], rng, resamples, confidence)
    if drop_p >= 1 - confidence or not slope.low > 0:
        return None
    return Onset(peak, float(clock[peak]), drop, drop_p, slope)


def onset_measurements(found: Onset | None, clock: str = "real_step", prefix: str = "") -> tuple[Measurement, ...]:
    """``gap/PREFIXonset_found`` (1 or 0) and, where found, ``onset_CLOCK``, ``onset_drop`` and ``onset_drop_p``."""
    flag = Measurement(f"{prefix}onset_found", float(found is not None), Side.GAP, "", Direction.LOWER)
    if found is None:
        return (flag,)
    return (
        flag,
        Measurement(f"{prefix}onset_{clock}", found.clock, Side.GAP, "steps", Direction.HIGHER),
        Measurement(f"{prefix}onset_drop", found.drop, Side.GAP, "", Direction.LOWER),
        Measurement(f"{prefix}onset_drop_p", found.drop_p, Side.GAP),
    )


def optimism(both: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """``gap/optimism``: imagined return minus the real return of as many steps, where both were measured."""
    values = {measurement.key: measurement.value for measurement in both}
    if not {"objective/imagined_return", "outcome/opening_return"} <= values.keys():
        return ()
    value = values["objective/imagined_return"] - values["outcome/opening_return"]
    return (Measurement("optimism", value, Side.GAP, "reward"),)


def population(
    objective_N: ArrayLike,
    outcome_N: ArrayLike,
    *,
    rng: np.random.Generator,
    objective_direction: Direction = Direction.HIGHER,
    outcome_direction: Direction = Direction.HIGHER,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Population:
    """Across models (members, runs, or experiments), each with one objective and one outcome.

    Args:
        objective_N: per model; say in the record how its spread arose, because under-training alone makes it correlate.
        outcome_N: per model.
        rng: draws the resamples (single models).
        objective_direction: LOWER turns its sign.
        outcome_direction: LOWER turns its sign.
        resamples: bootstrap resamples.
        confidence: coverage of the intervals.

    Raises:
        ValueError: no model has both numbers.
    """
    x_N, y_N = better_is_higher(objective_N, objective_direction), better_is_higher(outcome_N, outcome_direction)
    both_N = np.isfinite(x_N) & np.isfinite(y_N)
    if not both_N.any():
        raise ValueError("no model has a finite objective and a finite outcome")
    top_N = both_N & (x_N >= np.median(x_N[both_N]))
    return Population(
        {m: rank_correlation(x_N, y_N, m, rng, resamples, confidence) for m in METHODS},
        {m: rank_correlation(x_N[top_N], y_N[top_N], m, rng, resamples, confidence) for m in METHODS},
        _outcome_lost(x_N, y_N, rng, resamples, confidence),
        int(np.argmax(np.where(both_N, x_N, -np.inf))),
        int(np.argmax(np.where(both_N, y_N, -np.inf))),
    )


def across_models(
    objective_N: ArrayLike,
    outcome_N: ArrayLike,
    *,
    rng: np.random.Generator,
    objective_direction: Direction = Direction.HIGHER,
    outcome_direction: Direction = Direction.HIGHER,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[Measurement, ...]:
    """What `within_run` says, of a run whose evaluations are models that do not follow from each other.

    ``gap/METHOD`` over all models and ``gap/top_half/METHOD`` over those of the better half by the objective, both with
    intervals over single models; ``gap/selection_loss`` is the outcome that choosing by the objective costs. Arguments
    as in `population`; nothing before a model has both numbers.
    """
    x_N, y_N, _ = finite_pairs(objective_N, outcome_N)
    if not len(x_N):
        return ()
    found = population(
        x_N,
        y_N,
        rng=rng,
        objective_direction=objective_direction,
        outcome_direction=outcome_direction,
        resamples=resamples,
        confidence=confidence,
    )
    return (
        *correlation_measurements(found.everywhere),
        *correlation_measurements(found.top_half, "top_half/"),
        *_with_ends("selection_loss", found.outcome_lost, "", Direction.LOWER),
    )


def correlation_measurements(intervals: Mapping[Method, Interval], prefix: str = "") -> tuple[Measurement, ...]:
    """``gap/PREFIXmethod`` with ``_low`` and ``_high`` of each method."""
    named = [_with_ends(f"{prefix}{method}", it, "", Direction.HIGHER) for method, it in intervals.items()]
    return tuple(measurement for three in named for measurement in three)


def better_is_higher(values: ArrayLike, direction: Direction) -> Float:
    """The values as float64, their sign turned where lower is better."""
    return np.asarray(values, dtype=np.float64).ravel() * (-1.0 if direction is Direction.LOWER else 1.0)


def _with_ends(name: str, interval: Interval, unit: str, direction: Direction) -> tuple[Measurement, ...]:
    ends = {"": interval.estimate, "_low": interval.low, "_high": interval.high}
    return tuple(Measurement(f"{name}{end}", value, Side.GAP, unit, direction) for end, value in ends.items())


def _noise(outcome_T: Float, noise_T: ArrayLike | None) -> Float:
    """Standard deviation per evaluation; second differences of white noise have sqrt(6) times its own."""
    finite = outcome_T[np.isfinite(outcome_T)]
    wobble = 0.0
    if len(finite) >= 3:
        wobble = float(np.median(np.abs(np.diff(finite, 2)))) / (0.6745 * math.sqrt(6))
    known_T = np.zeros_like(outcome_T) if noise_T is None else np.asarray(noise_T, dtype=np.float64).ravel()
    return np.maximum(np.nan_to_num(known_T), wobble)


def _fall(outcome_RT: Float) -> tuple[NDArray[np.int64], Float]:
    """Per row: index of the smoothed maximum, and how far the mean of the last quarter lies below it."""
    total = outcome_RT.shape[1]
    reach = max(1, total // 16)
    padded = np.pad(outcome_RT, ((0, 0), (reach, reach)), mode="edge")
    smooth_RT = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=1).mean(axis=2)
    tail_R = outcome_RT[:, -max(3, total // 4) :].mean(axis=1)
    return smooth_RT.argmax(axis=1), smooth_RT.max(axis=1) - tail_R


def _slope(clock_T: Float, x_T: Float, rng: np.random.Generator, resamples: int, confidence: float) -> Interval:
    """Least-squares slope with an interval whose lower end is a one-sided bound at ``confidence``."""
    rows_RT = resample_rows(len(x_T), resamples, rng, default_block_length(len(x_T)))
    rows_RT = np.concatenate([np.arange(len(x_T))[None, :], rows_RT])
    t_RT = clock_T[rows_RT] - clock_T[rows_RT].mean(axis=1, keepdims=True)
    spread_R = (t_RT**2).sum(axis=1)
    slope_R = np.divide(
        (t_RT * x_T[rows_RT]).sum(axis=1), spread_R, out=np.full_like(spread_R, np.nan), where=spread_R > 0
    )
    low, high = np.nanquantile(slope_R[1:], [1 - confidence, confidence])
    return Interval(float(slope_R[0]), float(low), float(high), 2 * confidence - 1, len(x_T))


def _outcome_lost(
    objective_N: Float, outcome_N: Float, rng: np.random.Generator, resamples: int, confidence: float
) -> Interval:
    x_N, y_N, dropped = finite_pairs(objective_N, outcome_N)
    rows_RN = np.concatenate([np.arange(len(x_N))[None, :], resample_rows(len(x_N), resamples, rng)])
    chosen_R = rows_RN[np.arange(len(rows_RN)), x_N[rows_RN].argmax(axis=1)]
    lost_R = y_N[rows_RN].max(axis=1) - y_N[chosen_R]
    tail = (1 - confidence) / 2
    low, high = np.quantile(lost_R[1:], [tail, 1 - tail])
    return Interval(float(lost_R[0]), float(low), float(high), confidence, len(x_N), dropped)
