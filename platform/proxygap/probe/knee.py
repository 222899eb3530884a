"""The knee: whether gold turns down along the optimization, and where, without assuming a law.

No knee is reported unless the fall after the highest point is more than noise of the seeds, so a rising or flat curve
has none.

Shape legend: S seeds, T points of a curve, R resamples, K candidate points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.probe.overoptimization import Curve, with_ends
from proxygap.probe.statistics import Interval, expanded_level, paired_difference

HIGHEST_AT_END = "gold is highest at the end"
"""The reason of a curve that does not turn down."""
_ALL_SIGNS = 12
"""Up to this many seeds every pattern of signs is tried."""
_SIGNS = 4096
_CLEARLY_LOWER = 2.0
"""A point whose gold lies this many standard errors below the end's is no candidate for the peak."""


@dataclass(frozen=True, slots=True)
class Knee:
    """Whether gold turns down, and where. Without a knee, ``d``, ``kl`` and ``gold`` are NaN with the reason.

    Args:
        found: gold ends below its peak with confidence.
        reason: why no knee is reported; empty where one is.
        index: point at which the seeds' mean gold is highest, found or not.
        d: distance there, mean over seeds; the interval holds the peaks of resampled seeds, each widened to the
            neighboring points, because a peak is not known better than the points are spaced.
        kl: likewise, nats.
        gold: mean gold at the peak, with Student's t interval over seeds. The peak was picked, so it flatters.
        drop: gold at the peak minus gold at the end, paired per seed; each seed's peak is placed by the others, so that
            picking the highest point does not make a fall of its own.
        drop_p: probability of so clear a fall at any point if no point truly lay above the end.
        proxy_rise: proxy at the end minus proxy at the peak, paired per seed: above 0, the optimizer saw progress.
    """

    found: bool
    reason: str
    index: int
    d: Interval
    kl: Interval
    gold: Interval
    drop: Interval
    drop_p: float
    proxy_rise: Interval

    @property
    def rising(self) -> bool:
        """Whether there is no knee because gold is highest at the end, not because of noise."""
        return self.reason == HIGHEST_AT_END

    def measurements(self, prefix: str = "") -> tuple[Measurement, ...]:
        """``gap/PREFIX`` + ``knee_found`` (1 or 0), ``knee_drop``, ``knee_drop_p``, ``knee_proxy_rise``.

        Where found also ``knee_d``, ``knee_kl`` and ``knee_gold``. Estimates come with ``_low`` and ``_high``.
        """
        found = [Measurement(f"{prefix}knee_found", float(self.found), Side.GAP, "", Direction.LOWER)]
        found += with_ends(f"{prefix}knee_drop", self.drop, Direction.LOWER)
        found.append(Measurement(f"{prefix}knee_drop_p", self.drop_p, Side.GAP))
        found += with_ends(f"{prefix}knee_proxy_rise", self.proxy_rise, Direction.NEITHER)
        if self.found:
            for name, interval in (("d", self.d), ("kl", self.kl), ("gold", self.gold)):
                found += with_ends(f"{prefix}knee_{name}", interval, Direction.HIGHER)
        return tuple(found)


def knee(
    curves: Sequence[Curve],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    tail: float = 0.1,
) -> Knee:
    """Where mean gold is highest, reported only if gold really turns down after it.

    Point t is the same stage of optimization in every seed: the same n, the same evaluation, or the same distance
    (`by_distance`). The test asks whether any point lies above the end: differences "gold at t minus gold at the end"
    are paired per seed, the largest studentized mean over t is compared with its distribution under random signs of
    whole seeds (max-statistic, Westfall and Young 1993), which is exact for differences symmetric about 0, whatever
    their correlation over t, and conservative for curves that rise. Points clearly below the end are no candidates
    (moment selection, as in Hansen 2005). Curves are smoothed with a centered mean over T // 16 neighbors.

    Fewer than log2(1 / (1 - confidence)) seeds can never show a fall (five are needed at 95%).

    Args:
        curves: one per seed, all of the same length; seeds with a value that is not finite are left out and counted.
        rng: draws resamples and signs.
        resamples: bootstrap resamples behind the intervals of the position.
        confidence: of the test and of the intervals.
        tail: share of the last points whose mean is the end; at least one point.

    Raises:
        ValueError: no curves, or curves of different lengths.
    """
    if len({len(curve.gold_T) for curve in curves}) != 1:
        raise ValueError("curves of one length are needed: align them by evaluation, or with by_distance")
    whole = [curve for curve in curves if np.isfinite([curve.kl_T, curve.gold_T, curve.proxy_T]).all()]
    dropped = len(curves) - len(whole)
    if not whole or len(whole[0].gold_T) < 3:
        return _no_knee(0, confidence, len(whole), dropped, "no finite curve of at least three points")
    gold_ST = _smooth(np.stack([curve.gold_T for curve in whole]))
    proxy_ST = _smooth(np.stack([curve.proxy_T for curve in whole]))
    last = max(1, round(tail * gold_ST.shape[1]))
    end_S = np.stack([curve.gold_T for curve in whole])[:, -last:].mean(axis=1)
    proxy_end_S = np.stack([curve.proxy_T for curve in whole])[:, -last:].mean(axis=1)
    candidates = gold_ST.shape[1] - last
    index = int(gold_ST.mean(axis=0).argmax())
    drop_p = _fall_p(gold_ST[:, :candidates] - end_S[:, None], rng)
    drop = paired_difference(_placed_by_others(gold_ST, end_S, candidates), np.zeros(len(whole)), confidence)
    rise = paired_difference(proxy_end_S, proxy_ST[:, index], confidence)
    reason = _why_no_knee(index, candidates, drop_p, len(whole), confidence)
    if reason:
        return _no_knee(index, confidence, len(whole), dropped, reason, drop, drop_p, rise)
    d_ST = _smooth(np.stack([curve.d_T for curve in whole]))
    kl_ST = _smooth(np.stack([curve.kl_T for curve in whole]))
    d, kl = _position(gold_ST, (d_ST, kl_ST), rng, resamples, confidence, dropped)
    gold = paired_difference(gold_ST[:, index], np.zeros(len(whole)), confidence)
    return Knee(True, "", index, d, kl, gold, drop, drop_p, rise)


def _smooth(values_ST: Float64) -> Float64:
    reach = values_ST.shape[1] // 16
    if reach == 0:
        return values_ST
    padded = np.pad(values_ST, ((0, 0), (reach, reach)), mode="edge")
    smooth_ST: Float64 = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=1).mean(axis=2)
    return smooth_ST


def _fall_p(difference_SK: Float64, rng: np.random.Generator) -> float:
    """P value of the largest studentized mean difference under random signs of seeds.

    With norm_K the root of the sum of squares, t = m sqrt((S - 1) / (S - m^2)) for m = sum / norm: t rises with m, and
    norm does not depend on the signs, so m is compared instead.
    """
    seeds = len(difference_SK)
    norm_K = np.sqrt((difference_SK**2).sum(axis=0))
    unit_SK = difference_SK[:, norm_K > 0] / norm_K[norm_K > 0]
    m_K = unit_SK.sum(axis=0)
    t_K = m_K * np.sqrt(seeds - 1) / np.sqrt(np.maximum(seeds - m_K**2, 1e-12))
    kept_K = t_K > -_CLEARLY_LOWER
    if seeds < 2 or not kept_K.any():
        return 1.0
    largest_R = (_signs(seeds, rng) @ unit_SK[:, kept_K]).max(axis=1)
    return float((largest_R >= m_K[kept_K].max() - 1e-9).mean())


def _signs(seeds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if seeds <= _ALL_SIGNS:
        return np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
    drawn = rng.choice([1.0, -1.0], (_SIGNS - 1, seeds))
    return np.concatenate([np.ones((1, seeds)), drawn])


def _placed_by_others(gold_ST: Float64, end_S: Float64, candidates: int) -> Float64:
    """Per seed: gold at the point where the other seeds' mean is highest, minus the seed's own end."""
    if len(gold_ST) < 2:
        return np.full(1, np.nan)
    others_ST = gold_ST.sum(axis=0) - gold_ST
    peak_S = others_ST.argmax(axis=1)
    drop_S = np.take_along_axis(gold_ST, peak_S[:, None], axis=1)[:, 0] - end_S
    return np.where(peak_S < candidates, drop_S, 0.0)


def _why_no_knee(index: int, candidates: int, drop_p: float, seeds: int, confidence: float) -> str:
    needed = math.ceil(-math.log2(1 - confidence) - 1e-9)
    if seeds < needed:
        return f"seeds: {seeds}; at least {needed} are needed to tell a fall from noise at {confidence:.0%}"
    if index >= candidates:
        return HIGHEST_AT_END
    if drop_p > 1 - confidence:
        return f"the fall after the highest point is within noise (p = {drop_p:.3f})"
    return ""


def _position(
    gold_ST: Float64,
    axes: tuple[Float64, Float64],
    rng: np.random.Generator,
    resamples: int,
    confidence: float,
    dropped: int,
) -> tuple[Interval, Interval]:
    """Intervals of the peak's distance and KL: peaks of resampled seeds, widened to the neighboring points."""
    seeds, points = gold_ST.shape
    drawn_RS = rng.integers(0, seeds, (resamples, seeds))
    share_RS = np.apply_along_axis(np.bincount, 1, drawn_RS, minlength=seeds) / seeds
    share_RS = np.concatenate([np.full((1, seeds), 1 / seeds), share_RS])
    peak_R = (share_RS @ gold_ST).argmax(axis=1)
    rows, level, found = np.arange(len(share_RS)), expanded_level(confidence, seeds), []
    for axis_ST in axes:
        axis_RT = share_RS @ axis_ST
        three_R3 = np.stack([axis_RT[rows, np.clip(peak_R + step, 0, points - 1)] for step in (-1, 0, 1)], axis=1)
        low = float(np.quantile(three_R3[1:].min(axis=1), (1 - level) / 2))
        high = float(np.quantile(three_R3[1:].max(axis=1), (1 + level) / 2))
        found.append(Interval(float(three_R3[0, 1]), low, high, confidence, seeds, dropped))
    return found[0], found[1]


def _no_knee(
    index: int,
    confidence: float,
    seeds: int,
    dropped: int,
    reason: str,
    drop: Interval | None = None,
    drop_p: float = math.nan,
    rise: Interval | None = None,
) -> Knee:
    nothing = Interval(math.nan, math.nan, math.nan, confidence, seeds, dropped, reason)
    return Knee(False, reason, index, nothing, nothing, nothing, drop or nothing, drop_p, rise or nothing)
