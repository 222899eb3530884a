"""Estimates with intervals: correlations, interquartile means, differences on equal seeds.

An estimate that cannot be made (too few pairs, a constant side, every seed failed) is an `Interval` of NaN with the
reason in words, because a report has to show it either way. The bootstrap is by percentile: a resample is a row of
indices, and all resamples are evaluated together.

Shape legend: N pairs in order of time, R resamples, S seeds, T tasks, K values pooled over seeds and tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Float = NDArray[np.float64]
Indices = NDArray[np.int64]
Method = Literal["pearson", "spearman", "kendall"]
Center = Literal["iqm", "mean", "median"]

METHODS: tuple[Method, ...] = ("pearson", "spearman", "kendall")
TRUSTED_PAIRS = 8
"""Fewer pairs than this leave a bootstrap interval too narrow: three in perfect order give [1, 1]."""
TRUSTED_SEEDS = 5
"""Fewer seeds than this cannot fill an interval: resamples never leave the range of what was seen."""
_CHUNK = 4_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, the interval around it, and what it was made of.

    Args:
        estimate: the number; NaN when it cannot be made.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: nominal coverage.
        samples: pairs or values that entered, after dropping those that were not finite.
        dropped: pairs or values left out because they were not finite.
        reason: why there is no estimate, or why the interval deserves little trust; empty when all is well.
    """

    estimate: float
    low: float
    high: float
    confidence: float
    samples: int
    dropped: int = 0
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether estimate and both ends are finite."""
        return all(math.isfinite(number) for number in (self.estimate, self.low, self.high))


def rank_correlation(
    x: ArrayLike,
    y: ArrayLike,
    method: Method,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    block_length: int | None = None,
) -> Interval:
    """Correlation of two columns with a bootstrap interval over pairs.

    Args:
        x: (N,) one side, in order of time.
        y: (N,) the other side, at the same moments.
        method: Pearson's r, Spearman's rho, or Kendall's tau-b.
        rng: draws the resamples.
        resamples: bootstrap resamples.
        confidence: coverage of the interval.
        block_length: neighbors kept together in a resample, for points of one run, which depend on each other
            (moving blocks, Kunsch 1989); the interval is widened for few blocks (`expanded_level`). None draws
            single pairs, for points that do not depend on each other.
    """
    x_N, y_N, dropped = finite_pairs(x, y)
    if reason := _obstacle(x_N, y_N):
        return Interval(math.nan, math.nan, math.nan, confidence, len(x_N), dropped, reason)
    rows_RN = resample_rows(len(x_N), resamples, rng, block_length)
    draws_R = correlation_rows(x_N, y_N, rows_RN, method)
    estimate = _correlation(x_N, y_N, method)
    level = confidence if block_length is None else expanded_level(confidence, len(x_N) // block_length)
    return _interval(estimate, draws_R, confidence, len(x_N), dropped, level=level, pairs=True)


def pooled_correlation(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]],
    method: Method,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    *,
    exchangeable: bool = False,
) -> Interval:
    """Mean over seeds of the correlation within each seed, so that differences between seeds cannot make or hide one.

    The bootstrap has two stages: seeds are drawn with replacement, and within each the pairs in moving blocks of
    `default_block_length`, or one by one where they are ``exchangeable`` (models, not moments); seeds that disagree
    therefore widen the interval. Seeds without a correlation of their own (too short, constant) are left out and named
    in ``reason``. ``samples`` counts pairs over all seeds used.
    """
    length = (lambda _: None) if exchangeable else default_block_length
    clean = [finite_pairs(x, y) for x, y in pairs]
    usable = [(x_N, y_N) for x_N, y_N, _ in clean if not _obstacle(x_N, y_N)]
    dropped = sum(lost for _, _, lost in clean)
    if not usable:
        reasons = sorted({_obstacle(x_N, y_N) for x_N, y_N, _ in clean}) or ["no seed was measured"]
        return Interval(math.nan, math.nan, math.nan, confidence, 0, dropped, "; ".join(reasons))
    draws_SR = np.stack(
        [
            correlation_rows(x_N, y_N, resample_rows(len(x_N), resamples, rng, length(len(x_N))), method)
            for x_N, y_N in usable
        ]
    )
    seed_SR = rng.integers(0, len(usable), draws_SR.shape)
    estimate = float(np.mean([_correlation(x_N, y_N, method) for x_N, y_N in usable]))
    left_out = len(clean) - len(usable)
    note = f"{left_out} of {len(clean)} seeds had no correlation of their own" if left_out else ""
    samples = sum(len(x_N) for x_N, _ in usable)
    blocks = sum(len(x_N) // default_block_length(len(x_N)) for x_N, _ in usable)
    level = confidence if exchangeable else expanded_level(confidence, blocks)
    pooled_R = np.take_along_axis(draws_SR, seed_SR, axis=0).mean(axis=0)
    return _interval(estimate, pooled_R, confidence, samples, dropped, note, level=level, pairs=True)


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: without the lowest and the highest quarter of values (Agarwal et al. 2021, section 4.3).

    Args:
        values: (S, T) or any shape; runs of all seeds and tasks are pooled, non-finite ones left out. NaN for none.
    """
    flat_K = np.asarray(values, dtype=np.float64).ravel()
    return float(_center_rows(flat_K[np.isfinite(flat_K)][None, :], "iqm")[0])


def stratified_bootstrap(
    values: ArrayLike,
    rng: np.random.Generator,
    resamples: int = 2000,
    confidence: float = 0.95,
    center: Center = "iqm",
) -> Interval:
    """Center of the runs of all seeds and tasks, resampling seeds within each task (Agarwal et al. 2021, section 4.2).

    Args:
        values: (S,) for one task or (S, T); a failed run is NaN and is counted in ``dropped``.
        rng: draws the resamples.
        resamples: bootstrap resamples.
        confidence: coverage; the percentiles are widened for few seeds (`expanded_level`).
        center: interquartile mean, mean or median of the pooled runs.
    """
    values_ST = np.asarray(values, dtype=np.float64)
    values_ST = values_ST[:, None] if values_ST.ndim == 1 else values_ST
    tasks = [column[np.isfinite(column)] for column in values_ST.T]
    tasks = [column for column in tasks if len(column)]
    samples = sum(len(column) for column in tasks)
    if samples == 0:
        return Interval(math.nan, math.nan, math.nan, confidence, 0, values_ST.size, "no run gave a finite value")
    estimate = float(_center_rows(np.concatenate(tasks)[None, :], center)[0])
    if max(len(column) for column in tasks) == 1:
        return Interval(estimate, math.nan, math.nan, confidence, samples, values_ST.size - samples, "one seed")
    draws = [column[rng.integers(0, len(column), (resamples, len(column)))] for column in tasks]
    draws_R = _center_rows(np.concatenate(draws, axis=1), center)
    seeds = min(len(column) for column in tasks)
    level = expanded_level(confidence, seeds)
    note = f"only {seeds} seeds" if seeds < TRUSTED_SEEDS else ""
    return _interval(estimate, draws_R, confidence, samples, values_ST.size - samples, note, level=level)


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of ``a - b`` over equal seeds, both (S,), with Student's t interval; failed seeds are dropped and counted.

    The t interval is exact for normal differences. Resampling is not used: three seeds that happen to agree in sign
    (one time in four without any difference) would exclude zero, because resamples never leave their range.
    """
    a_S, b_S, dropped = finite_pairs(a, b)
    seeds, difference_S = len(a_S), a_S - b_S
    if seeds < 2:
        reason = "one seed" if seeds else "no seed finished on both sides"
        estimate = float(difference_S[0]) if seeds else math.nan
        return Interval(estimate, math.nan, math.nan, confidence, seeds, dropped, reason)
    mean, error = float(difference_S.mean()), float(difference_S.std(ddof=1)) / math.sqrt(seeds)
    reach = float(stats.t.ppf(0.5 + confidence / 2, seeds - 1)) * error
    return Interval(mean, mean - reach, mean + reach, confidence, seeds, dropped)


def expanded_level(confidence: float, samples: int) -> float:
    """Coverage to ask of the percentiles so that few samples really cover ``confidence`` (Hesterberg 2015, 1411.5279).

    Percentiles of a mean of n values are too narrow by sqrt((n - 1) / n) and use normal instead of t quantiles. Fewer
    than 2 samples count as 2.
    """
    samples = max(2, samples)
    quantile = stats.t.ppf(0.5 + confidence / 2, samples - 1) * math.sqrt(samples / (samples - 1))
    return float(2 * stats.norm.cdf(quantile) - 1)


def default_block_length(samples: int) -> int:
    """Block length for points of one run: the cube root of their number, rounded up (Hall et al. 1995), at least 1."""
    return max(1, math.ceil(round(math.cbrt(samples), 6)))


def finite_pairs(x: ArrayLike, y: ArrayLike) -> tuple[Float, Float, int]:
    """The pairs in which both are finite, and how many were not. Raises ValueError for unequal lengths."""
    x_N, y_N = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if len(x_N) != len(y_N):
        raise ValueError(f"{len(x_N)} values on one side and {len(y_N)} on the other are not pairs")
    both_N = np.isfinite(x_N) & np.isfinite(y_N)
    return x_N[both_N], y_N[both_N], int(len(x_N) - both_N.sum())


def resample_rows(samples: int, resamples: int, rng: np.random.Generator, block_length: int | None = None) -> Indices:
    """Row indices (R, N) of bootstrap resamples, of single rows or of moving blocks of neighbors."""
    if block_length is None or block_length <= 1:
        return rng.integers(0, samples, (resamples, samples))
    length = min(block_length, samples)
    starts = rng.integers(0, samples - length + 1, (resamples, -(-samples // length)))
    return (starts[:, :, None] + np.arange(length)).reshape(resamples, -1)[:, :samples]


def correlation_rows(x_N: Float, y_N: Float, rows_RN: Indices, method: Method) -> Float:
    """Correlation within each resample, (R,); NaN where a resample is constant on one side."""
    chunk = max(1, _CHUNK // rows_RN.shape[1])
    parts = [rows_RN[start : start + chunk] for start in range(0, len(rows_RN), chunk)]
    if method == "kendall":
        return _kendall_rows(x_N, y_N, parts)
    if method == "spearman":
        ranked = [(stats.rankdata(x_N[rows], axis=1), stats.rankdata(y_N[rows], axis=1)) for rows in parts]
        return np.concatenate([_pearson_rows(x_RN, y_RN) for x_RN, y_RN in ranked])
    return np.concatenate([_pearson_rows(x_N[rows], y_N[rows]) for rows in parts])


def _pearson_rows(x_RN: Float, y_RN: Float) -> Float:
    x_RN = x_RN - x_RN.mean(axis=1, keepdims=True)
    y_RN = y_RN - y_RN.mean(axis=1, keepdims=True)
    scale_R = np.sqrt((x_RN**2).sum(axis=1) * (y_RN**2).sum(axis=1))
    product_R = (x_RN * y_RN).sum(axis=1)
    ratio_R = np.divide(product_R, scale_R, out=np.full_like(scale_R, np.nan), where=scale_R > 0)
    clipped_R: Float = np.clip(ratio_R, -1.0, 1.0)
    return clipped_R


def _kendall_rows(x_N: Float, y_N: Float, parts: Sequence[Indices]) -> Float:
    """Tau-b from the counts c of drawn rows, S the signs of differences: c'(Sx Sy)c / sqrt(c'Sx^2 c * c'Sy^2 c)."""
    x_NN, y_NN = np.sign(x_N[:, None] - x_N), np.sign(y_N[:, None] - y_N)
    tau = []
    for rows_RN in parts:
        count_RN = np.zeros((len(rows_RN), len(x_N)))
        np.add.at(count_RN, (np.arange(len(rows_RN))[:, None], rows_RN), 1.0)
        agree_R, x_R, y_R = (((count_RN @ m_NN) * count_RN).sum(axis=1) for m_NN in (x_NN * y_NN, x_NN**2, y_NN**2))
        scale_R = np.sqrt(x_R * y_R)
        tau.append(np.divide(agree_R, scale_R, out=np.full_like(scale_R, np.nan), where=scale_R > 0))
    return np.concatenate(tau)


def _correlation(x_N: Float, y_N: Float, method: Method) -> float:
    return float(correlation_rows(x_N, y_N, np.arange(len(x_N))[None, :], method)[0])


def _obstacle(x_N: Float, y_N: Float) -> str:
    if len(x_N) < 3:
        return f"pairs: {len(x_N)}; a correlation needs at least 3"
    return "one side is constant" if np.ptp(x_N) == 0 or np.ptp(y_N) == 0 else ""


def _center_rows(values_RK: Float, center: Center) -> Float:
    if values_RK.shape[1] == 0:
        return np.full(len(values_RK), np.nan)
    if center == "median":
        return np.median(values_RK, axis=1)
    cut = values_RK.shape[1] // 4 if center == "iqm" else 0
    center_R: Float = np.sort(values_RK, axis=1)[:, cut : values_RK.shape[1] - cut].mean(axis=1)
    return center_R


def _interval(
    estimate: float,
    draws_R: Float,
    confidence: float,
    samples: int,
    dropped: int,
    reason: str = "",
    *,
    level: float,
    pairs: bool = False,
) -> Interval:
    """Percentile interval at ``level`` of the draws that exist (a resample may be constant)."""
    draws_R = draws_R[np.isfinite(draws_R)]
    if len(draws_R) == 0:
        return Interval(estimate, math.nan, math.nan, confidence, samples, dropped, "every resample was constant")
    low, high = np.quantile(draws_R, [(1 - level) / 2, (1 + level) / 2])
    few = f"only {samples} pairs" if pairs and samples < TRUSTED_PAIRS else ""
    reason = "; ".join(filter(None, (reason, few)))
    return Interval(estimate, float(low), float(high), confidence, samples, dropped, reason)
