"""How good a learned reward is before anything is optimized against it: accuracy, calibration, distance to gold.

A pair's ``probability_N`` is what the model gives to the first item being preferred, ``truth_N`` is 1 where it is, 0
where the second is, 0.5 for a tie. Nothing changes when a pair is turned around. With labels, pairs stand chosen
first, so ``truth_N`` is all 1; with gold, it is the order of gold.

Shape legend: N pairs, M members, B answers, Q bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.records import Int64
from proxygap.probe import weighted

Bins = Literal["equal_width", "equal_mass"]
FLOOR = 1e-12
"""Smallest probability that the log-likelihood sees: one certain error costs 27.6 nats, not infinity."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: per bin that is not empty, the mean confidence, the accuracy, and the share of pairs."""

    confidence_Q: Float64
    accuracy_Q: Float64
    share_Q: Float64

    @property
    def ece(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence|, bins by their share (Naeini et al. 2015)."""
        return float(np.abs(self.accuracy_Q - self.confidence_Q) @ self.share_Q)


def preference_probability(first_score_MB: Float64, second_score_MB: Float64) -> Float64:
    """The ensemble's probability that the first is preferred: mean over members of the Bradley-Terry probability.

    Scores must be in the scale that Bradley-Terry was fitted in. Scores scaled to standard deviation 1 have lost it;
    `fitted_temperature` finds it again.
    """
    return np.asarray(special.expit(first_score_MB - second_score_MB).mean(axis=0), dtype=np.float64)


def gold_order(first_gold_N: ArrayLike, second_gold_N: ArrayLike) -> Float64:
    """1 where the first has more gold, 0 where the second has, 0.5 where they tie."""
    return 0.5 + 0.5 * np.sign(np.asarray(first_gold_N, np.float64) - np.asarray(second_gold_N, np.float64))


def accuracy(probability_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Share of pairs ranked as in ``truth_N``; a prediction of exactly one half counts half. True ties are left out.

    NaN where no pair is left.
    """
    p_N, truth = _pairs(probability_N, truth_N)
    ranked = truth != 0.5
    right_N = 0.5 + 0.5 * np.sign(p_N[ranked] - 0.5) * np.sign(truth[ranked] - 0.5)
    return float(right_N.mean()) if len(right_N) else math.nan


def brier(probability_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Mean squared distance of probability and truth (Brier 1950), 0.25 for constant one half without ties."""
    p_N, truth = _pairs(probability_N, truth_N)
    return float(((p_N - truth) ** 2).mean())


def negative_log_likelihood(probability_N: ArrayLike, truth_N: ArrayLike) -> float:
    """Mean cross-entropy in nats per pair; a tie counts half for each order. Probabilities are floored at `FLOOR`."""
    p_N, truth = _pairs(probability_N, truth_N)
    return float(-(truth * np.log(np.maximum(p_N, FLOOR)) + (1 - truth) * np.log(np.maximum(1 - p_N, FLOOR))).mean())


def reliability(
    probability_N: ArrayLike, truth_N: ArrayLike, bins: int = 10, kind: Bins = "equal_width"
) -> Reliability:
    """Confidence in the predicted winner, 0.5 to 1, against how often it really wins (ties: half).

    Args:
        probability_N: of the first item being preferred.
        truth_N: see the module.
        bins: their number; `equal_mass` gives every bin the same number of pairs (one more or less), `equal_width`
            divides [0.5, 1].
        kind: how bins are cut. Equal mass is the less noisy of the two where confidences bunch together.
    """
    p_N, truth = _pairs(probability_N, truth_N)
    confidence_N = np.maximum(p_N, 1 - p_N)
    right_N = np.where(p_N == 0.5, 0.5, np.where(p_N > 0.5, truth, 1 - truth))
    if kind == "equal_mass":
        bin_N = np.empty(len(p_N), dtype=np.int64)
        bin_N[np.argsort(confidence_N, kind="stable")] = np.arange(len(p_N)) * bins // max(1, len(p_N))
    else:
        bin_N = np.minimum(((confidence_N - 0.5) * 2 * bins).astype(np.int64), bins - 1)
    count_Q = np.bincount(bin_N, minlength=bins).astype(np.float64)
    full_Q = count_Q > 0
    sums = [np.bincount(bin_N, values_N, minlength=bins)[full_Q] for values_N in (confidence_N, right_N)]
    return Reliability(sums[0] / count_Q[full_Q], sums[1] / count_Q[full_Q], count_Q[full_Q] / max(1, len(p_N)))


def wrong_at_high_confidence(probability_N: ArrayLike, truth_N: ArrayLike, confidence: float = 0.9) -> float:
    """Share of all pairs that the model gets wrong while at least ``confidence`` sure; ties are not wrong."""
    p_N, truth = _pairs(probability_N, truth_N)
    sure_N = np.maximum(p_N, 1 - p_N) >= confidence
    return float((sure_N & (truth != 0.5) & ((p_N > 0.5) != (truth > 0.5))).mean())


def fitted_temperature(margin_N: ArrayLike, truth_N: ArrayLike) -> float:
    """The temperature t that makes sigmoid(margin / t) most likely (Guo et al. 2017, section 4.2).

    Args:
        margin_N: score of the first minus that of the second, in any scale.
        truth_N: see the module.

    Returns:
        t; infinity where margins say nothing or the opposite of the truth (any finite t would claim too much), 0 where
        they separate all pairs perfectly.
    """
    margin, truth = np.asarray(margin_N, np.float64), np.asarray(truth_N, np.float64)

    def slope(inverse: float) -> float:
        """Derivative of the mean log-likelihood: falls in ``inverse``, because the likelihood is concave."""
        return float((margin * (truth - special.expit(inverse * margin))).mean())

    scale = float(np.abs(margin).max(initial=0.0))
    if scale == 0 or slope(0.0) <= 0:
        return math.inf
    top = 1.0 / scale
    if (((margin > 0) == (truth == 1)) & ((margin < 0) == (truth == 0)))[margin != 0].all():
        return 0.0
    while slope(top) > 0:
        top *= 2
    return 1.0 / float(optimize.brentq(slope, 0.0, top, xtol=1e-14 * top))


def preference_quality(
    probability_N: ArrayLike,
    truth_N: ArrayLike,
    prefix: str = "reward_",
    *,
    bins: int = 10,
    confidence: float = 0.9,
) -> tuple[Measurement, ...]:
    """``objective/PREFIXaccuracy``, and calibration as ``model/PREFIX...``; nothing for no pairs.

    ``ece``, ``ece_equal_mass``, ``brier``, ``nll``, ``wrong_at_high_confidence``: see the functions of those names.
    """
    if np.size(probability_N) == 0:
        return ()
    pairs = (probability_N, truth_N)
    lower = {
        "ece": reliability(*pairs, bins).ece,
        "ece_equal_mass": reliability(*pairs, bins, "equal_mass").ece,
        "brier": brier(*pairs),
        "nll": negative_log_likelihood(*pairs),
        "wrong_at_high_confidence": wrong_at_high_confidence(*pairs, confidence),
    }
    return (
        Measurement(f"{prefix}accuracy", accuracy(*pairs), Side.OBJECTIVE, "", Direction.HIGHER),
        *(
            Measurement(f"{prefix}{name}", value, Side.MODEL, "nats" if name == "nll" else "", Direction.LOWER)
            for name, value in lower.items()
        ),
    )


def epic_distance(proxy_B: Float64, gold_B: Float64, prompt_B: Int64, weight_B: Float64) -> float:
    """Distance of two rewards over a distribution of answers, without any policy: sqrt((1 - r) / 2), in [0, 1].

    Both are centered per prompt, the one-step form of canonical shaping, and r is their weighted Pearson correlation
    (Gleave et al. 2021, "Quantifying differences in reward functions", Definitions 4.1 and 4.3 for one step). 0 for
    rewards that differ by a positive scale and a constant per prompt, 1 for opposite ones, NaN where one is constant.
    """
    r = weighted.pearson(
        weighted.centered(proxy_B, prompt_B, weight_B), weighted.centered(gold_B, prompt_B, weight_B), weight_B
    )
    return math.sqrt(max(0.0, (1.0 - r) / 2)) if math.isfinite(r) else math.nan


def style_correlation(
    score_B: Float64, style_B: Float64, prompt_B: Int64, weight_B: Float64, gold_B: Float64 | None = None
) -> float:
    """Rank correlation of a reward with a statistic of style (length above all) within prompts.

    Args:
        score_B: the reward.
        style_B: the statistic.
        prompt_B: the prompt of each answer.
        weight_B: weights of the answers.
        gold_B: if given, the partial correlation at equal gold rank: what style explains beyond deserving it.

    Returns:
        The correlation; NaN where a side is constant, or gold alone explains one of them.
    """
    pairs = ((score_B, style_B), (score_B, gold_B), (style_B, gold_B))
    rho = [
        weighted.spearman_within_prompts(x, y, prompt_B, weight_B) for x, y in pairs if x is not None and y is not None
    ]
    if gold_B is None:
        return rho[0]
    rest = (1 - rho[1] ** 2) * (1 - rho[2] ** 2)
    return float(np.clip((rho[0] - rho[1] * rho[2]) / math.sqrt(rest), -1, 1)) if rest > 1e-12 else math.nan


def tail_slope(proxy_B: Float64, gold_B: Float64, prompt_B: Int64, weight_B: Float64, share: float = 0.1) -> float:
    """Slope of gold on proxy among the ``share`` of answers that the proxy likes most, both centered per prompt.

    In standard deviations of each over all given answers: about the correlation where the two are jointly normal, near
    0 or below where the proxy's favorites are its errors. NaN where the tail is constant.
    """
    x_B, y_B = (weighted.centered(values_B, prompt_B, weight_B) for values_B in (proxy_B, gold_B))
    scales = [weighted.std(values_B, weight_B) for values_B in (x_B, y_B)]
    if min(scales) == 0:
        return math.nan
    tail_B = x_B >= weighted.quantile(x_B, weight_B, 1 - share)
    return weighted.slope(x_B[tail_B] / scales[0], y_B[tail_B] / scales[1], weight_B[tail_B])


def _pairs(probability_N: ArrayLike, truth_N: ArrayLike) -> tuple[Float64, Float64]:
    p_N, truth = np.asarray(probability_N, np.float64), np.asarray(truth_N, np.float64)
    if p_N.shape != truth.shape or p_N.ndim != 1:
        raise ValueError(f"probabilities of shape {p_N.shape} and truths of shape {truth.shape} are not pairs")
    if ((p_N < 0) | (p_N > 1) | (truth < 0) | (truth > 1)).any() or not np.isfinite(p_N + truth).all():
        raise ValueError("probabilities and truths lie in [0, 1]")
    return p_N, truth
