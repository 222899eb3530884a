"""The optimum of a KL-regularized reward, written down exactly where the answers can be.

Maximizing E[r] - beta KL(pi || pi_ref) over all policies gives pi* = pi_ref exp(r / beta) / Z (Korbak et al. 2022,
2205.11275: the posterior of pi_ref under the evidence exp(r / beta)).
Shape legend: P prompts, K answers. Distributions are logarithms in nats, normalized over K; all in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from proxygap.base.errors import InvalidExperiment

Float64 = NDArray[np.float64]


def tilted(log_reference_PK: Float64, reward_PK: Float64, beta: float) -> Float64:
    """Log pi* = log pi_ref + r / beta - log Z, shape (P, K); beta above 0, in the reward's unit per nat."""
    raw_PK = log_reference_PK + reward_PK / beta
    return np.asarray(raw_PK - logsumexp(raw_PK, axis=-1, keepdims=True), dtype=np.float64)


def mean_kl(log_policy_PK: Float64, log_reference_PK: Float64) -> float:
    """KL(policy || reference) in nats, mean over prompts."""
    present = np.isfinite(log_policy_PK)  # an answer without mass adds 0
    log_ratio_PK = np.where(present, log_policy_PK, 0.0) - np.where(present, log_reference_PK, 0.0)
    return float((np.exp(log_policy_PK) * log_ratio_PK).sum(axis=-1).mean())


def tilted_to_kl(log_reference_PK: Float64, reward_PK: Float64, target: float) -> tuple[Float64, float]:
    """The tilted policy whose KL, averaged over prompts, is ``target`` nats.

    One beta serves all prompts, as in training. The KL falls monotonically with beta, so that the root is unique.

    Returns:
        log pi*, shape (P, K), and its beta (infinite for a target of 0).

    Raises:
        InvalidExperiment: a negative target, or one above what the best answers alone would cost.
    """
    if target == 0.0:
        return np.array(log_reference_PK, dtype=np.float64), float("inf")
    limit = _largest_kl(log_reference_PK, reward_PK)
    if not 0.0 < target < limit:
        raise InvalidExperiment(
            f"no tilt of the reference has this KL; it reaches up to {limit:.4g} nats",
            field="kl",
            value=target,
            remedy="Lower the target, or take more answers per prompt",
        )

    def excess(log_beta: float) -> float:
        return mean_kl(tilted(log_reference_PK, reward_PK, float(np.exp(log_beta))), log_reference_PK) - target

    log_beta = brentq(excess, *_bracket(excess, float(np.log(np.ptp(reward_PK)))), xtol=1e-13, rtol=1e-13)
    beta = float(np.exp(log_beta))
    return tilted(log_reference_PK, reward_PK, beta), beta


def regularized_reward(log_policy_PK: Float64, log_reference_PK: Float64, reward_PK: Float64, beta: float) -> float:
    """E[r] - beta KL(policy || reference), mean over prompts: what KL-regularized training maximizes."""
    expected = float((np.exp(log_policy_PK) * reward_PK).sum(axis=-1).mean())
    return expected - beta * mean_kl(log_policy_PK, log_reference_PK)


def inference_form(log_policy_PK: Float64, log_reference_PK: Float64, reward_PK: Float64, beta: float) -> float:
    """Beta log Z - beta KL(policy || pi*), mean over prompts: the same number as `regularized_reward`.

    Korbak et al. 2022 (2205.11275): training with a KL penalty is variational inference of pi*, so that what is lost
    against the optimum is beta times the distance from it.
    """
    log_partition_P = logsumexp(log_reference_PK + reward_PK / beta, axis=-1)
    target_PK = tilted(log_reference_PK, reward_PK, beta)
    return beta * (float(np.mean(log_partition_P)) - mean_kl(log_policy_PK, target_PK))


def _largest_kl(log_reference_PK: Float64, reward_PK: Float64) -> float:
    """Limit for beta to 0: all mass on the best answers of each prompt, minus log of what the reference gives them."""
    best_PK = reward_PK == np.where(np.isfinite(log_reference_PK), reward_PK, -np.inf).max(axis=-1, keepdims=True)
    return max(0.0, float(-logsumexp(np.where(best_PK, log_reference_PK, -np.inf), axis=-1).mean()))


def _bracket(excess: Callable[[float], float], start: float) -> tuple[float, float]:
    """A log beta where the KL is too large, and one where it is too small."""
    low = high = start
    while excess(low) <= 0.0:
        low -= 1.0
    while excess(high) >= 0.0:
        high += 1.0
    return low, high
