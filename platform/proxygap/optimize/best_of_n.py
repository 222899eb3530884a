"""Best-of-n without a policy: its exact distribution and KL, and the unbiased estimate from a pool of samples.

Shape legend: P prompts, K answers that can be written down, S samples of a pool, C values of n. All in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxygap.base.errors import InvalidExperiment

Float64 = NDArray[np.float64]


def best_of_n_kl(n: ArrayLike) -> Float64:
    """Log n - (n - 1) / n nats, the KL divergence from the reference to its best of n (same shape as ``n``).

    Exact for continuous proxies, an upper bound with ties or few answers (Gao et al. 2023, 2210.10760, section 2;
    Beirami et al. 2024, 2401.01879, for the bound).
    """
    n = np.asarray(n, dtype=np.float64)
    return np.asarray(np.log(n) - (n - 1.0) / n, dtype=np.float64)


def best_of_n_weights(samples: int, n_C: Sequence[int]) -> Float64:
    """Chance that sample i of a pool, by ascending proxy, is the best of n drawn without replacement; shape (C, S).

    w_i = C(i - 1, n - 1) / C(S, n), so that sum_i w_i g_i is the unbiased estimate of the gold of best-of-n (Nakano
    et al. 2021, 2112.09332, appendix; used by Gao et al. 2023). Computed from the top down by the ratio
    w_{i-1} / w_i = (i - n) / (i - 1) in logarithms, which keeps 13 digits for pools of 100,000.

    Raises:
        InvalidExperiment: an n below 1 or above the size of the pool.
    """
    n = _checked(n_C)[:, None]
    if int(n.max()) > samples:
        raise InvalidExperiment(
            f"the best of n cannot be estimated from {samples} samples",
            field="best_of_n",
            value=int(n.max()),
            remedy="Draw at least n samples per prompt, or lower n",
        )
    rank_S = np.arange(samples, 1, -1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        step_CS = np.log(np.maximum(rank_S - n, 0.0)) - np.log(rank_S - 1.0)
    log_CS = np.concatenate((np.zeros((len(n), 1)), step_CS.cumsum(axis=1)), axis=1) + np.log(n / samples)
    return np.ascontiguousarray(np.exp(log_CS)[:, ::-1])


def best_of_n_estimates(proxy_PS: Float64, value_PS: Float64, n_C: Sequence[int]) -> Float64:
    """Unbiased estimate of the value of best-of-n from S samples per prompt of the reference, shape (C, P).

    Args:
        proxy_PS: what best-of-n selects by. Tied samples are selected alike often, so their values are averaged.
        value_PS: what is wanted of the selected answer: gold, proxy, length.
        n_C: values of n, each at most S.

    Raises:
        InvalidExperiment: see `best_of_n_weights`.
    """
    order_PS = np.argsort(proxy_PS, axis=-1, kind="stable")
    proxy_PS = np.take_along_axis(np.asarray(proxy_PS, dtype=np.float64), order_PS, axis=-1)
    value_PS = np.take_along_axis(np.asarray(value_PS, dtype=np.float64), order_PS, axis=-1)
    fair_PS = np.stack([_tie_means(*row) for row in zip(proxy_PS, value_PS, strict=True)])
    return best_of_n_weights(proxy_PS.shape[-1], n_C) @ fair_PS.T


def best_of_n_distribution(log_reference_PK: Float64, proxy_PK: Float64, n_C: Sequence[int]) -> Float64:
    """Exact distribution of best-of-n over the answers of each prompt, shape (C, P, K).

    The best of n independent draws is at most s with chance F(s)^n, where F is the reference's distribution function
    of the proxy; so each value of the proxy has F(s)^n - F(s-)^n, shared among tied answers in proportion to the
    reference. For a uniform reference without ties that is u^n - (u - 1/K)^n at rank u.

    Args:
        log_reference_PK: normalized over K, in nats.
        proxy_PK: what best-of-n selects by.
        n_C: values of n; they may exceed K.
    """
    n = _checked(n_C)[:, None]
    rows = [_row_distribution(*row, n) for row in zip(np.exp(log_reference_PK), proxy_PK, strict=True)]
    return np.stack(rows, axis=1)


def kl_from_reference(policy_PK: Float64, log_reference_PK: Float64) -> Float64:
    """Exact KL(policy || reference) of each prompt in nats; leading axes are kept, the last is summed."""
    present = policy_PK > 0.0
    log_policy_PK = np.log(np.where(present, policy_PK, 1.0))
    terms_PK = np.where(present, policy_PK * (log_policy_PK - np.where(present, log_reference_PK, 0.0)), 0.0)
    return np.asarray(terms_PK.sum(axis=-1), dtype=np.float64)


def _row_distribution(reference_K: Float64, proxy_K: Float64, n: NDArray[np.int64]) -> Float64:
    _, group_K = np.unique(proxy_K, return_inverse=True)
    mass_G = np.bincount(group_K, weights=reference_K)
    mass_G = mass_G / mass_G.sum()
    below_G = np.concatenate(([0.0], mass_G.cumsum()[:-1]))
    above_G = np.concatenate((mass_G[:0:-1].cumsum()[::-1], [0.0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        # log F from the side that is small; F^n - F(s-)^n = F^n (1 - (1 - mass / F)^n), again without cancellation.
        log_upto_G = np.where(above_G < 0.5, np.log1p(-above_G), np.log(below_G + mass_G))
        share_G = np.minimum(mass_G / np.exp(log_upto_G), 1.0)
        best_CG = np.exp(n * log_upto_G) * -np.expm1(n * np.log1p(-share_G))
        best_CG[:, mass_G == 0.0] = 0.0
        within_K = np.where(mass_G[group_K] > 0.0, reference_K / reference_K.sum() / mass_G[group_K], 0.0)
    return np.asarray(best_CG[:, group_K] * within_K, dtype=np.float64)


def _tie_means(proxy_S: Float64, value_S: Float64) -> Float64:
    """Values of one sorted pool, with those of tied proxies replaced by their mean."""
    starts = np.flatnonzero(np.concatenate(([True], proxy_S[1:] != proxy_S[:-1])))
    if len(starts) == len(proxy_S):
        return value_S
    counts = np.diff(np.concatenate((starts, [len(proxy_S)])))
    means: Float64 = np.repeat(np.add.reduceat(value_S, starts) / counts, counts)
    return means


def _checked(n_C: Sequence[int]) -> NDArray[np.int64]:
    n = np.asarray(n_C, dtype=np.int64)
    if n.ndim != 1 or not len(n) or int(n.min()) < 1:
        raise InvalidExperiment("n must be whole numbers from 1", field="best_of_n", value=n_C, remedy="Give e.g. 1, 4")
    return n
