"""Statistics of weighted answers: moments, quantiles, ranks, and correlations within prompts.

Weights are probabilities: a row counts as the share of the population that it stands for, so an exact table, a
selection and a sample (equal weights) go through the same formulas.

Shape legend: B answers, P prompts.
"""

from __future__ import annotations

import math

import numpy as np

from proxygap.base.language import Float64
from proxygap.base.records import Int64


def mean(values_B: Float64, weight_B: Float64) -> float:
    """Weighted mean. Rows of weight 0 do not count, even where their value is not finite."""
    seen_B = weight_B > 0
    return float(values_B[seen_B] @ weight_B[seen_B] / weight_B[seen_B].sum())


def std(values_B: Float64, weight_B: Float64) -> float:
    """Standard deviation of the weighted population (no correction for few rows: weights are probabilities)."""
    return math.sqrt(mean((values_B - mean(values_B, weight_B)) ** 2, weight_B))


def quantile(values_B: Float64, weight_B: Float64, share: float) -> float:
    """The smallest value at which the cumulated weight reaches ``share`` of the total (inverse distribution)."""
    order_B = np.argsort(values_B, kind="stable")
    reached_B = np.cumsum(weight_B[order_B])
    row = int(np.searchsorted(reached_B, share * reached_B[-1] * (1 - 1e-12)))
    return float(values_B[order_B[min(row, len(order_B) - 1)]])


def below_and_equal(values_B: Float64, at_C: Float64, weight_B: Float64) -> tuple[Float64, Float64]:
    """For each of ``at_C``: the weight of rows below it, and of rows equal to it."""
    order_B = np.argsort(values_B, kind="stable")
    sorted_B = values_B[order_B]
    reached = np.concatenate([[0.0], np.cumsum(weight_B[order_B])])
    low_C, high_C = np.searchsorted(sorted_B, at_C, "left"), np.searchsorted(sorted_B, at_C, "right")
    return reached[low_C], reached[high_C] - reached[low_C]


def centered(values_B: Float64, prompt_B: Int64, weight_B: Float64) -> Float64:
    """Values minus their weighted mean within the same prompt; a prompt of weight 0 keeps its values.

    Differences below 1e-13 of the largest value are rounding errors and are rounded away: ties stay ties, and a
    constant stays constant.
    """
    total_P = np.bincount(prompt_B, weight_B)
    sum_P = np.bincount(prompt_B, np.where(weight_B > 0, weight_B * values_B, 0.0))
    mean_P = np.divide(sum_P, total_P, out=np.zeros_like(sum_P), where=total_P > 0)
    scale = float(np.abs(values_B[weight_B > 0]).max(initial=0.0))
    difference_B: Float64 = values_B - mean_P[prompt_B]
    return np.round(difference_B / scale, 13) * scale if scale > 0 else difference_B


def pearson(x_B: Float64, y_B: Float64, weight_B: Float64) -> float:
    """Weighted linear correlation; NaN where a side is constant (spread below rounding error)."""
    seen_B = weight_B > 0
    if not seen_B.all():
        x_B, y_B, weight_B = x_B[seen_B], y_B[seen_B], weight_B[seen_B]
    weight_B = weight_B / weight_B.sum()
    floors = [(1e-12 * float(np.abs(values_B).max(initial=0.0))) ** 2 for values_B in (x_B, y_B)]
    x_B, y_B = x_B - x_B @ weight_B, y_B - y_B @ weight_B
    weighted_x_B = weight_B * x_B
    x_variance, y_variance = float(weighted_x_B @ x_B), float((weight_B * y_B) @ y_B)
    if x_variance <= floors[0] or y_variance <= floors[1]:
        return math.nan
    return float(np.clip(weighted_x_B @ y_B / math.sqrt(x_variance * y_variance), -1.0, 1.0))


def spearman(x_B: Float64, y_B: Float64, weight_B: Float64) -> float:
    """Spearman's rho of the weighted population: Pearson of mid-ranks, the weight below plus half the weight equal.

    Equal weights give the usual coefficient with averaged ranks. No resampling is involved, so the same weights give
    the same number.
    """
    seen_B = weight_B > 0
    x_B, y_B, weight_B = x_B[seen_B], y_B[seen_B], weight_B[seen_B]
    return pearson(_mid_rank(x_B, weight_B), _mid_rank(y_B, weight_B), weight_B)


def spearman_within_prompts(x_B: Float64, y_B: Float64, prompt_B: Int64, weight_B: Float64) -> float:
    """Weighted Spearman after each side has lost its mean per prompt.

    A reward's constant per prompt changes no choice between answers, so it must neither make nor hide an agreement.
    """
    return spearman(centered(x_B, prompt_B, weight_B), centered(y_B, prompt_B, weight_B), weight_B)


def slope(x_B: Float64, y_B: Float64, weight_B: Float64) -> float:
    """Weighted least-squares slope of y on x; NaN where x is constant."""
    x_std, y_std = std(x_B, weight_B), std(y_B, weight_B)
    if y_std == 0 and x_std > 0:
        return 0.0
    correlation = pearson(x_B, y_B, weight_B)
    return correlation * y_std / x_std if math.isfinite(correlation) else math.nan


def _mid_rank(values_B: Float64, weight_B: Float64) -> Float64:
    below_B, equal_B = below_and_equal(values_B, values_B, weight_B)
    return below_B + 0.5 * equal_B
