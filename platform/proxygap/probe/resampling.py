"""Resampling until an imperfect verifier passes: the accuracy it can reach, and the number of samples that pays.

A verifier that passes some wrong answers caps the accuracy of any number of samples (Stroebl et al. 2024, "Inference
scaling fLaws: the limits of LLM resampling with imperfect verifiers"; the closed forms are derived here).

Shape legend: I items of differing difficulty, K budgets (samples per item).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proxygap.base.language import Float64


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier as two rates.

    Args:
        true_positive: probability that a right answer passes.
        false_positive: probability that a wrong answer passes.
    """

    true_positive: float
    false_positive: float

    def __post_init__(self) -> None:
        if not (0 <= self.false_positive <= 1 and 0 < self.true_positive <= 1):
            raise ValueError(f"rates lie in [0, 1], and some right answers must pass; got {self}")


def accuracy_given_pass(right_I: Float64, verifier: Verifier) -> Float64:
    """P(right | passed) = p TPR / (p TPR + (1 - p) FPR), p the single-sample accuracy of each item.

    It does not depend on how many samples were drawn before the first pass. 0 where nothing ever passes.
    """
    passes_I = pass_rate(right_I, verifier)
    return np.divide(right_I * verifier.true_positive, passes_I, out=np.zeros_like(passes_I), where=passes_I > 0)


def pass_rate(right_I: Float64, verifier: Verifier) -> Float64:
    """Probability that one sample passes."""
    return right_I * verifier.true_positive + (1 - right_I) * verifier.false_positive


def passed_within(right_I: Float64, verifier: Verifier, budget_K: Float64) -> Float64:
    """Probability that a sample passes within each budget, (K, I)."""
    passed_KI: Float64 = -np.expm1(
        np.asarray(budget_K)[:, None] * np.log1p(-np.minimum(pass_rate(right_I, verifier), 1 - 1e-16))
    )
    return passed_KI


def accuracy_at(right_I: Float64, verifier: Verifier, budget_K: Float64) -> Float64:
    """Share of items answered rightly within each budget, (K,); an item without a pass counts as not answered."""
    accuracy_K: Float64 = (passed_within(right_I, verifier, budget_K) * accuracy_given_pass(right_I, verifier)).mean(
        axis=1
    )
    return accuracy_K


def plateau(right_I: Float64, verifier: Verifier) -> float:
    """Accuracy of an unlimited budget: the mean over items of `accuracy_given_pass`."""
    return float(accuracy_given_pass(right_I, verifier).mean())


def utility(
    right_I: Float64, verifier: Verifier, budget_K: Float64, wrong_cost: float = 1.0, sample_cost: float = 0.0
) -> Float64:
    """Mean worth of each budget, (K,): P(pass) (acc - wrong_cost (1 - acc)) - sample_cost * budget.

    A right answer is worth 1, a wrong one -``wrong_cost``, none 0; the whole budget is paid for.
    """
    accuracy_I = accuracy_given_pass(right_I, verifier)
    worth_I = accuracy_I - wrong_cost * (1 - accuracy_I)
    mean_K: Float64 = (passed_within(right_I, verifier, budget_K) * worth_I).mean(axis=1)
    return mean_K - sample_cost * np.asarray(budget_K)


def best_budget(
    right_I: Float64, verifier: Verifier, wrong_cost: float = 1.0, sample_cost: float = 0.0, limit: int = 10_000
) -> int | None:
    """The number of samples with the highest utility, 0 (do not answer) included.

    None where no budget up to ``limit`` beats an unlimited one (nor not answering), or the best is ``limit`` itself.
    """
    budget_K = np.arange(limit + 1, dtype=np.float64)
    worth_K = utility(right_I, verifier, budget_K, wrong_cost, sample_cost)
    best = int(worth_K.argmax())
    endless = sample_cost == 0 and _unlimited(right_I, verifier, wrong_cost) > worth_K[best] - 1e-9
    return None if best == limit or (best > 0 and endless) else best


def _unlimited(right_I: Float64, verifier: Verifier, wrong_cost: float) -> float:
    accuracy_I = accuracy_given_pass(right_I, verifier)
    ever_I = pass_rate(right_I, verifier) > 0
    return float((ever_I * (accuracy_I - wrong_cost * (1 - accuracy_I))).mean())
