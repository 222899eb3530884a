"""Aggregates: the scores of an ensemble's members become one score per row. Settings and mathematics in one part each.

All of them refuse a score that is not finite. Variances are the biased ones (divided by M), here and wherever members
are compared, so that a penalty means the same in best-of-n and in training (one peer mixes 1/M and 1/(M-1)).
Shape legend: M members, B rows (answers or segments).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment, NonFiniteValue

if TYPE_CHECKING:
    import torch


class Single(Settings):
    """The score of one member: what most people train on, and the baseline of every ensemble."""

    kind: Literal["single"] = "single"
    member: NonNegativeInt = 0
    """Which member, counted from 0; another one is another reward model of the same kind."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """That member's score, shape (B,). Raises `InvalidExperiment` where there is no such member."""
        if self.member >= len(scores_MB):
            raise InvalidExperiment(
                f"the reward model has {len(scores_MB)} members, counted from 0",
                field="judge.aggregate.member",
                value=self.member,
                remedy="Choose a member that exists or add members",
            )
        return _finite(scores_MB)[self.member]


class Mean(Settings):
    """The mean of the members."""

    kind: Literal["mean"] = "mean"

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Mean score, shape (B,)."""
        return _finite(scores_MB).mean(dim=0)


class Median(Settings):
    """The median of the members; the mean of the middle two where their number is even."""

    kind: Literal["median"] = "median"

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Median score, shape (B,)."""
        return _quantile(_finite(scores_MB), 0.5)


class WorstCase(Settings):
    """The lowest score of any member (WCO; Coste et al. 2024, 2310.02743, section 3.2)."""

    kind: Literal["worst_case"] = "worst_case"

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Lowest score, shape (B,)."""
        return _finite(scores_MB).amin(dim=0)


class UncertaintyWeighted(Settings):
    """Mean minus a penalty times the members' variance (UWO; Coste et al. 2024, 2310.02743, section 3.2).

    The variance is the biased one: M members divide by M. To reproduce a source that divides by M - 1, multiply the
    penalty by M / (M - 1).
    """

    kind: Literal["uncertainty_weighted"] = "uncertainty_weighted"
    penalty: NonNegativeFloat = 0.5
    """Larger trusts the ensemble less where its members disagree; 0 is the plain mean. The paper: 0.5 for best-of-n,
    0.1 for PPO."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Penalized mean, shape (B,)."""
        scores_MB = _finite(scores_MB)
        return scores_MB.mean(dim=0) - self.penalty * scores_MB.var(dim=0, correction=0)


class LowerConfidenceBound(Settings):
    """Mean minus a multiple of the members' standard deviation (biased, as everywhere here)."""

    kind: Literal["lower_confidence_bound"] = "lower_confidence_bound"
    deviations: NonNegativeFloat = 1.0
    """How many standard deviations below the mean; 0 is the plain mean."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Lower bound, shape (B,)."""
        scores_MB = _finite(scores_MB)
        return scores_MB.mean(dim=0) - self.deviations * scores_MB.std(dim=0, correction=0)


class Quantile(Settings):
    """A quantile of the members, interpolated linearly between them."""

    kind: Literal["quantile"] = "quantile"
    level: float = Field(default=0.25, ge=0.0, le=1.0)
    """0 is the worst case, 0.5 the median, 1 the best case."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """That quantile, shape (B,)."""
        return _quantile(_finite(scores_MB), self.level)


class KlRobust(Settings):
    """The mean under the worst re-weighting of members near the uniform one: ``-b log mean exp(-score / b)``.

    It runs from the worst case (b near 0) to the mean (b large) and is ``mean - variance / (2 b)`` to second order in
    1 / b, so b = 1 / (2 penalty) resembles UWO. Dual form of distributionally robust optimization with a KL ball
    around uniform weights; written down from the derivation, not from one paper.
    """

    kind: Literal["kl_robust"] = "kl_robust"
    breadth: PositiveFloat = 1.0
    """b: smaller trusts only the lowest members, larger averages them."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """Soft minimum, shape (B,)."""
        exponents_MB = -_finite(scores_MB) / self.breadth
        return -self.breadth * (exponents_MB.logsumexp(dim=0) - math.log(len(scores_MB)))


AnyAggregate = Annotated[
    Single | Mean | Median | WorstCase | UncertaintyWeighted | LowerConfidenceBound | Quantile | KlRobust,
    Field(discriminator="kind"),
]


def _finite(scores_MB: torch.Tensor) -> torch.Tensor:
    """The scores themselves, once they are known to be numbers."""
    bad_MB = ~scores_MB.isfinite()
    if bool(bad_MB.any()):
        member, row = bad_MB.nonzero()[0].tolist()
        raise NonFiniteValue(
            f"member {member} of {len(scores_MB)} gives row {row} no finite score "
            f"({int(bad_MB.sum())} such scores in all)",
            field=f"score of member {member}",
            value=float(scores_MB[member, row]),
            remedy="Lower the reward model's learning rate, or look at that item for features out of range",
        )
    return scores_MB


def _quantile(scores_MB: torch.Tensor, level: float) -> torch.Tensor:
    """Linear interpolation between order statistics, as numpy's; torch's own limits the size of its input."""
    ordered_MB = scores_MB.sort(dim=0).values
    place = level * (len(scores_MB) - 1)
    lower = min(math.floor(place), len(scores_MB) - 1)
    upper = min(lower + 1, len(scores_MB) - 1)
    return ordered_MB[lower].lerp(ordered_MB[upper], place - lower)
