"""Weighted answers: the one record that every measurement of a language policy is a sum over.

An exact table, a best-of-n selection, a tilted distribution and plain samples differ only in their weights.

Shape legend: B answers, P prompts, T answer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from proxygap.base.language import Answers, Float64
from proxygap.base.records import Int64
from proxygap.probe import weighted

KlEstimator = Literal["exact", "k1", "best_of_n"]
"""``exact``: summed over all answers. ``k1``: mean log-ratio of samples. ``best_of_n``: log n - (n - 1)/n."""


@dataclass(frozen=True, slots=True)
class AnswerSample:
    """Answers of one policy, each with the share of the policy's answers that it stands for.

    Args:
        answers: the answers, with the policy's own log-probabilities.
        weight_B: sums to 1 over all rows; every prompt has the same total in an evaluation.
        gold_B: gold reward, 0 at the reference's mean, in standard deviations of the reference.
        raw_gold_B: gold reward in the task's own unit.
        log_prob_B: of the whole answer under the policy, nats.
        reference_log_prob_B: of the whole answer under the reference, nats.
        kl: KL(policy || reference), nats per answer, mean over prompts.
        kl_estimator: where ``kl`` comes from.

    Raises:
        ValueError: weights that are negative or do not sum to 1.
    """

    answers: Answers
    weight_B: Float64
    gold_B: Float64
    raw_gold_B: Float64
    log_prob_B: Float64
    reference_log_prob_B: Float64
    kl: float
    kl_estimator: KlEstimator

    def __post_init__(self) -> None:
        if (self.weight_B < 0).any() or not abs(self.weight_B.sum() - 1.0) < 1e-9:
            raise ValueError(f"weights must be at least 0 and sum to 1; their sum is {self.weight_B.sum()}")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.weight_B)

    @property
    def prompt_B(self) -> Int64:
        """The prompt of each row."""
        return self.answers.prompt_B

    @property
    def log_ratio_B(self) -> Float64:
        """Log pi - log pi_ref of each row; minus infinity where the policy never answers so."""
        never_B = np.isneginf(self.log_prob_B)
        safe_B = np.where(never_B, 0.0, self.log_prob_B)
        return np.where(never_B, -np.inf, safe_B - self.reference_log_prob_B)

    def drawn(self, rng: np.random.Generator, count: int) -> Int64:
        """Rows drawn by weight, with replacement: answers for what knows no weights (labels, calibration, pages)."""
        rows_C: Int64 = rng.choice(len(self), count, p=self.weight_B / self.weight_B.sum())
        return rows_C

    def weighted(self, weight_B: Float64, kl: float | None = None, kl_estimator: KlEstimator = "exact") -> AnswerSample:
        """The same answers under another distribution over them: best-of-n, a tilt, a selection.

        Args:
            weight_B: the other distribution's weights; 0 where this one's are.
            kl: its KL to the reference in nats; None sums it over the rows, for an exact table alone.
            kl_estimator: where ``kl`` comes from.

        Raises:
            ValueError: ``kl`` is None and these are not all answers, or weight on a row that this one excludes.
        """
        seen_B = weight_B > 0
        if (seen_B & (self.weight_B <= 0)).any():
            raise ValueError("an answer that never occurs cannot be given weight")
        ratio_B = np.divide(weight_B, self.weight_B, out=np.zeros_like(weight_B), where=seen_B)
        log_ratio_B = np.log(ratio_B, out=np.full_like(ratio_B, -np.inf), where=seen_B)
        log_prob_B = np.where(seen_B, np.where(seen_B, self.log_prob_B, 0.0) + log_ratio_B, -np.inf)
        if kl is None:
            if self.kl_estimator != "exact" or kl_estimator != "exact":
                raise ValueError("the KL of a selection among samples cannot be summed: give it")
            kl = weighted.mean(log_prob_B - self.reference_log_prob_B, weight_B)
        answers = replace(self.answers, log_prob_BT=np.full_like(self.answers.log_prob_BT, np.nan))
        return replace(
            self, answers=answers, weight_B=weight_B, log_prob_B=log_prob_B, kl=kl, kl_estimator=kl_estimator
        )
