"""Distances between policies: estimators of KL, each named for what it is, and the distance to the objective's optimum.

Shape legend: B answers, P prompts.
"""

from __future__ import annotations

import math

import numpy as np

from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.probe import weighted
from proxygap.probe.answers import AnswerSample


def k1(log_ratio_B: Float64) -> Float64:
    """Log pi - log pi_ref: unbiased for KL(pi || pi_ref) on answers of pi, negative on single answers."""
    return log_ratio_B


def k2(log_ratio_B: Float64) -> Float64:
    """Half the squared log-ratio: never negative, biased (Schulman 2020, "Approximating KL divergence")."""
    return 0.5 * log_ratio_B**2


def k3(log_ratio_B: Float64) -> Float64:
    """exp(-l) - 1 + l of the log-ratio l: unbiased and never negative, heavy-tailed far from the reference.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return np.expm1(-log_ratio_B) + log_ratio_B


def kl_measurements(sample: AnswerSample) -> tuple[Measurement, ...]:
    """``model/kl_ESTIMATOR`` of the sample, ``model/kl_k3`` over its rows, and ``model/sqrt_kl``, the distance d.

    k3 is left out for a best-of-n selection among samples, whose rows carry no probability of their own. A k1 below 0
    (too few samples next to the reference) counts as distance 0.
    """
    found = [Measurement(f"kl_{sample.kl_estimator}", sample.kl, Side.MODEL, "nats", Direction.NEITHER)]
    if sample.kl_estimator != "best_of_n":
        with np.errstate(over="ignore"):
            seen_B = sample.weight_B > 0
            k3_B = np.where(seen_B, k3(np.where(seen_B, sample.log_ratio_B, 0.0)), 0.0)
        found.append(Measurement("kl_k3", weighted.mean(k3_B, sample.weight_B), Side.MODEL, "nats", Direction.NEITHER))
    return (*found, Measurement("sqrt_kl", math.sqrt(max(sample.kl, 0.0)), Side.MODEL, "", Direction.NEITHER))


def kl_to_optimum(sample: AnswerSample, reward_B: Float64, beta: float) -> Measurement:
    """``model/kl_to_optimum``: KL(pi || pi*), pi* proportional to pi_ref exp(reward / beta), per prompt.

    It is what is still missing of the regularized objective, in units of beta: E[r] - beta KL(pi || pi_ref) =
    -beta KL(pi || pi*) + beta E[log Z] (Korbak et al. 2022, "RL with KL penalties is better viewed as Bayesian
    inference"; derived here, checked on a table).

    Args:
        sample: an exact evaluation.
        reward_B: what the policy is trained on, per row of the sample, without the KL penalty.
        beta: weight of the KL penalty, above 0.

    Raises:
        ValueError: the sample is not exact, or beta is not above 0.
    """
    if sample.kl_estimator != "exact" or not beta > 0:
        raise ValueError(f"needs all answers and beta above 0; got {sample.kl_estimator!r} and {beta}")
    energy_B = sample.reference_log_prob_B + reward_B / beta
    log_z_B = _log_sum_exp_by_prompt(energy_B, sample)
    value = weighted.mean(sample.log_prob_B - (energy_B - log_z_B), sample.weight_B)
    return Measurement("kl_to_optimum", value, Side.MODEL, "nats", Direction.LOWER)


def _log_sum_exp_by_prompt(energy_B: Float64, sample: AnswerSample) -> Float64:
    prompt_B = sample.prompt_B
    top_P = np.full(int(prompt_B.max()) + 1, -np.inf)
    np.maximum.at(top_P, prompt_B, energy_B)
    sum_P = np.bincount(prompt_B, np.exp(energy_B - top_P[prompt_B]))
    log_z_P: Float64 = top_P + np.log(np.maximum(sum_P, 1e-300))
    return log_z_P[prompt_B]
