"""Three links over the variants of a study: accuracy of the reward model -> proxy reward -> gold reward.

A better reward model is hoped to give a better policy by way of both links (Lambert and Calandra 2023, 2311.00168).
Variants are compared within each seed, because seeds may be tasks of their own; seeds are what is averaged over.

Shape legend: S seeds, V variants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from proxygap.probe.statistics import Interval, correlation_rows, finite_pairs, paired_difference
from proxygap.report.analysis import last_value
from proxygap.report.records import ReportInput

FEWEST_VARIANTS = 4
"""Variants below which a rank correlation within a seed says nothing."""
ACCURACY, PAIRWISE, ONE_TO_MANY = (
    "objective/reward_accuracy",
    "objective/benchmark/pairwise",
    "objective/benchmark/ranked_first",
)
PROXY = "objective/proxy_reward"


def study_links(inputs: Sequence[ReportInput]) -> list[tuple[str, Interval]]:
    """Mean over seeds of the rank correlation over variants, of each link that was measured.

    Also how much better the one-to-many benchmark predicts gold than the pairwise one (Kim et al. 2024, 2410.01729).
    A seed without a correlation (a side does not vary, or fewer than `FEWEST_VARIANTS` gave both) is left out and
    counted in ``dropped``. Nothing at all for fewer variants, or where accuracy, proxy or gold were never measured.
    """
    if len(inputs) < FEWEST_VARIANTS:
        return []
    gold = f"outcome/{inputs[0].outcomes[0]}"
    last_SV = {key: _last_values(inputs, key) for key in (ACCURACY, PAIRWISE, ONE_TO_MANY, PROXY, gold)}
    measured = {key for key, values_SV in last_SV.items() if np.isfinite(values_SV).any()}
    if not {ACCURACY, PROXY, gold} <= measured:
        return []
    pairs = {
        "reward accuracy with proxy": (ACCURACY, PROXY),
        "proxy with gold": (PROXY, gold),
        "reward accuracy with gold": (ACCURACY, gold),
        "pairwise benchmark with gold": (PAIRWISE, gold),
        "one-to-many benchmark with gold": (ONE_TO_MANY, gold),
    }
    rho_S = {name: _correlations(last_SV[x], last_SV[y]) for name, (x, y) in pairs.items() if {x, y} <= measured}
    found = [(name, _mean(rho_S[name], inputs[0].confidence)) for name in rho_S]
    if {PAIRWISE, ONE_TO_MANY} <= measured:
        difference_S = rho_S["one-to-many benchmark with gold"] - rho_S["pairwise benchmark with gold"]
        found.append(("one-to-many minus pairwise", _mean(difference_S, inputs[0].confidence)))
    return found


def _mean(values_S: NDArray[np.float64], confidence: float) -> Interval:
    return paired_difference(values_S, np.zeros(len(values_S)), confidence)


def _last_values(inputs: Sequence[ReportInput], key: str) -> NDArray[np.float64]:
    """Rows are the seeds that all variants have, columns the variants; NaN where a run did not finish."""
    states_V = [{record.seed: record.state for record in one.seeds} for one in inputs]
    common = [seed for seed in states_V[0] if all(seed in states for states in states_V)]
    ends = [
        [
            last_value(one, key, seed) if states[seed] == "finished" else math.nan
            for one, states in zip(inputs, states_V, strict=True)
        ]
        for seed in common
    ]
    return np.array(ends)


def _correlations(x_SV: NDArray[np.float64], y_SV: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([_spearman(x_V, y_V) for x_V, y_V in zip(x_SV, y_SV, strict=True)])


def _spearman(x_V: NDArray[np.float64], y_V: NDArray[np.float64]) -> float:
    """Over the variants that gave both; NaN for too few of them, or where a side is constant."""
    x_V, y_V, _ = finite_pairs(x_V, y_V)
    if len(x_V) < FEWEST_VARIANTS:
        return math.nan
    return float(correlation_rows(x_V, y_V, np.arange(len(x_V))[None, :], "spearman")[0])
