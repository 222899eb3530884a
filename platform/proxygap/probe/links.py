"""Objective mismatch in RLHF as three links: accuracy of the reward model -> proxy reward -> gold outcome.

The stages are often taken to move together; each link says over trials (reward models that differ in size, labels or
noise) whether they do (Lambert and Calandra 2023, "The alignment ceiling"; the correlations are our reading of it).

Shape legend: N trials, G stages of optimization (KL or n), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.probe.knee import Knee, knee
from proxygap.probe.overoptimization import Curve
from proxygap.probe.statistics import Interval, Method, correlation_rows, rank_correlation, resample_rows


@dataclass(frozen=True, slots=True)
class ThreeLinks:
    """Rank correlation over trials of each pair of stages, with bootstrap intervals."""

    accuracy_to_proxy: Interval
    proxy_to_gold: Interval
    accuracy_to_gold: Interval

    def measurements(self, prefix: str = "link/") -> tuple[Measurement, ...]:
        """``gap/PREFIXaccuracy_to_proxy``, ``proxy_to_gold``, ``accuracy_to_gold``, each with ``_low``, ``_high``."""
        found = []
        for field in fields(self):
            interval: Interval = getattr(self, field.name)
            ends = {"": interval.estimate, "_low": interval.low, "_high": interval.high}
            found += [
                Measurement(f"{prefix}{field.name}{end}", v, Side.GAP, "", Direction.HIGHER) for end, v in ends.items()
            ]
        return tuple(found)

    @property
    def broken(self) -> tuple[str, ...]:
        """Links whose interval does not lie above 0: with these trials they cannot be relied on."""
        return tuple(field.name for field in fields(self) if not getattr(self, field.name).low > 0)


def three_links(
    accuracy_N: ArrayLike,
    proxy_N: ArrayLike,
    gold_N: ArrayLike,
    rng: np.random.Generator,
    *,
    method: Method = "spearman",
    resamples: int = 2000,
    confidence: float = 0.95,
) -> ThreeLinks:
    """The three links over trials that do not depend on each other.

    Args:
        accuracy_N: held-out accuracy of each trial's reward model (or any score of it where higher is better).
        proxy_N: proxy reward of the policy it induced.
        gold_N: gold reward of that policy.
        rng: draws the resamples (single trials).
        method: kind of correlation.
        resamples: bootstrap resamples.
        confidence: coverage.
    """
    return ThreeLinks(
        rank_correlation(accuracy_N, proxy_N, method, rng, resamples, confidence),
        rank_correlation(proxy_N, gold_N, method, rng, resamples, confidence),
        rank_correlation(accuracy_N, gold_N, method, rng, resamples, confidence),
    )


@dataclass(frozen=True, slots=True)
class LinksAlong:
    """The links at each stage of optimization, and whether gold turns down over the trials."""

    kl_G: Float64
    links: tuple[ThreeLinks, ...]
    knee: Knee


def links_along(
    accuracy_N: ArrayLike,
    curves: Sequence[Curve],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> LinksAlong:
    """The links at every common stage of the trials' curves, with the knee of their mean gold.

    Args:
        accuracy_N: of each trial's reward model.
        curves: one per trial, aligned (the same n, evaluation or distance; see `proxygap.probe.knee`).
        rng: draws the resamples.
        resamples: bootstrap resamples.
        confidence: coverage, and confidence of the knee.
    """
    found = knee(curves, rng, resamples=resamples, confidence=confidence)
    proxy_NG, gold_NG, kl_NG = (
        np.stack([getattr(curve, name) for curve in curves]) for name in ("proxy_T", "gold_T", "kl_T")
    )
    links = tuple(
        three_links(accuracy_N, proxy_N, gold_N, rng, resamples=resamples, confidence=confidence)
        for proxy_N, gold_N in zip(proxy_NG.T, gold_NG.T, strict=True)
    )
    return LinksAlong(kl_NG.mean(axis=0), links, found)


def predictor_difference(
    first_N: ArrayLike,
    second_N: ArrayLike,
    gold_N: ArrayLike,
    rng: np.random.Generator,
    *,
    method: Method = "spearman",
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """How much better one score of reward models predicts gold than another: difference of their correlations.

    Both correlations are taken on the same resampled trials, because they share the trials and the gold.

    Args:
        first_N: e.g. one-to-many accuracy.
        second_N: e.g. pairwise accuracy.
        gold_N: gold reward of the policy that each reward model induced.
        rng: draws the resamples.
        method: kind of correlation.
        resamples: bootstrap resamples.
        confidence: coverage.
    """
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in (first_N, second_N, gold_N)])
    whole_N = np.isfinite(columns).all(axis=0)
    first, second, gold = columns[:, whole_N]
    dropped = int((~whole_N).sum())
    if len(gold) < 3 or any(np.ptp(column) == 0 for column in (first, second, gold)):
        reason = f"trials: {len(gold)}; a correlation needs 3 that differ"
        return Interval(np.nan, np.nan, np.nan, confidence, len(gold), dropped, reason)
    rows_RN = np.concatenate([np.arange(len(gold))[None, :], resample_rows(len(gold), resamples, rng)])
    draw_R = correlation_rows(first, gold, rows_RN, method) - correlation_rows(second, gold, rows_RN, method)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draw_R[1:], [tail, 1 - tail])
    return Interval(float(draw_R[0]), float(low), float(high), confidence, len(gold), dropped)
