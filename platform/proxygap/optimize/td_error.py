"""Losses of the critics: settings and mathematics in one small part each; importing them loads no torch.

Source of the generalized Gaussian: Kim et al. 2024, 2408.02295; its released code is named where we differ from it.
Shape legend: K critics (both twins' members, the first twin's first), S sets of networks whose errors are compared,
N networks of a set, B batch. A batch stands for the paper's time axis.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field, NonNegativeFloat, PositiveInt

from proxygap.base.config import Settings

if TYPE_CHECKING:
    from torch import Tensor

LEAST_SHAPE = 0.05
"""Floor of the shape: lgamma of its inverse would overflow below."""
_LEAST_ERROR = 1e-3
"""|d| is taken as sqrt(d^2 + this^2): shapes below 1 have an infinite slope at 0."""
_LOG_CAP = math.log(1e6)
"""|d|^shape is exact up to 1e6, and goes on linearly in its logarithm from there: no error overflows float32."""
_LEAST_VARIANCE = 1e-12
_POINTS, _ROUNDS = 32, 4
COVERAGE = 0.9
"""Nominal level of the interval whose coverage is told."""


class CriticLoss(Protocol):
    """What the critics minimize."""

    told: ClassVar[tuple[str, ...]]
    """Names of the numbers that `tell` gives."""

    @property
    def members(self) -> int:
        """Networks of each of the two critics."""
        ...

    @property
    def shaped(self) -> bool:
        """Whether a critic tells the shape of its error beside the value."""
        ...

    def __call__(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:
        """The scalar loss of one batch; ``target_KB`` may be broadcast."""
        ...

    def tell(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:
        """Numbers worth a curve, in the order of `told`."""
        ...


class SquaredTdError(Settings):
    """Half the mean squared temporal-difference error of both critics (Haarnoja et al. 2018, Eq. 5)."""

    told: ClassVar[tuple[str, ...]] = ()
    kind: Literal["squared"] = "squared"

    @property
    def members(self) -> int:
        """One."""
        return 1

    @property
    def shaped(self) -> bool:
        """No."""
        return False

    def __call__(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:  # noqa: ARG002 - seam
        """In squared units of the reward."""
        return 0.5 * (value_KB - target_KB).square().mean(dim=-1).sum()

    def tell(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:  # noqa: ARG002 - seam
        """Nothing."""
        return value_KB.new_empty(0)


class GeneralizedGaussianTdError(Settings):
    """Errors with a learned shape; what is noisy, or what networks disagree on, weighs less (Kim et al. 2024).

    The scale of the error is fixed at 1, as in the paper: rewards should be of that order, because errors far below 1
    are not told apart by a large shape. Each critic is an ensemble of ``members`` networks. The twins' smaller value
    makes a target for each member, and the actor climbs the smaller of the two means (released code).
    """

    told: ClassVar[tuple[str, ...]] = ("td_shape", f"td_coverage_{round(100 * COVERAGE)}")
    kind: Literal["generalized_gaussian"] = "generalized_gaussian"
    members: PositiveInt = 5
    """Networks of each of the two critics; each costs as much as a critic does. With 1, the twins are the ensemble."""
    regularizer: NonNegativeFloat = 0.1
    """Lambda: weight of the absolute error that trusts transitions on which the networks agree."""
    least_effective_batch: PositiveInt = 16
    """Rows that this absolute error is spread over at least; larger trusts agreement less."""
    weights: Literal["time", "ensemble"] = "time"
    """Over what the shapes are normalized to weights: over the batch, as the paper writes it, or over the members of
    one transition, as its released code does; then no transition weighs less than another."""
    detached: bool = True
    """Whether weights are constants to the gradient. In the released code they are not, and shapes can grow for the
    weight alone."""

    @property
    def shaped(self) -> bool:
        """Yes."""
        return True

    def __call__(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:
        """Nats plus ``regularizer`` times units of the reward, summed over the critics."""
        assert shape_KB is not None
        error_KB = value_KB - target_KB
        nll_KB = negative_log_likelihood(error_KB, shape_KB)
        likelihood = (self.risk_weights(shape_KB) * nll_KB).sum()
        agreed_KB = self.agreement_weights(error_KB)
        return likelihood + self.regularizer * (agreed_KB * error_KB.abs()).sum()

    def risk_weights(self, shape_KB: Tensor) -> Tensor:
        """Shape / sum of shapes: the heavier the tail, the lighter the transition; a critic's weights sum to 1."""
        shape_KB = shape_KB.detach() if self.detached else shape_KB
        if self.weights == "time":
            return shape_KB / shape_KB.sum(dim=-1, keepdim=True)
        batch = shape_KB.shape[-1]
        shape_2NB = shape_KB.reshape(2, self.members, batch)
        return (shape_2NB / shape_2NB.sum(dim=1, keepdim=True)).reshape(-1, batch) / batch

    def agreement_weights(self, error_KB: Tensor) -> Tensor:
        """Batch inverse error variance: v = 1 / (s^2 + xi), normalized over the batch, without gradient; (K, B).

        (The released code divides by the batch size once more, which makes its lambda smaller by that factor.)
        """
        import torch

        with torch.no_grad():
            sets = (1, 2) if self.members == 1 else (2, self.members)
            variance_SB = error_variance(error_KB.detach().reshape(*sets, -1))
            xi_S1 = least_offset(variance_SB, self.least_effective_batch)
            inverse_SB = 1.0 / (variance_SB + xi_S1)
            weight_SB = inverse_SB / inverse_SB.sum(dim=-1, keepdim=True)
            return weight_SB.repeat_interleave(sets[1], dim=0)

    def tell(self, value_KB: Tensor, shape_KB: Tensor | None, target_KB: Tensor) -> Tensor:
        """Mean shape, and the share of errors inside their own central interval of level `COVERAGE`."""
        import torch

        assert shape_KB is not None
        with torch.no_grad():
            inside_KB = central_probability(value_KB - target_KB, shape_KB) <= COVERAGE
            return torch.stack((shape_KB.mean(), inside_KB.to(shape_KB.dtype).mean()))


CriticLossPart = Annotated[SquaredTdError | GeneralizedGaussianTdError, Field(discriminator="kind")]


def shape_of(raw: Tensor) -> Tensor:
    """A network's output as a shape: softplus above `LEAST_SHAPE`."""
    import torch

    return LEAST_SHAPE + torch.nn.functional.softplus(raw)


def negative_log_likelihood(error: Tensor, shape: Tensor) -> Tensor:
    """|d|^b - log b + lgamma(1/b) + log 2: exact, in nats, for scale 1 (Kim et al. 2024; Subbotin 1923), elementwise.

    At shape 2 it is that of a Gaussian of variance 1/2, at shape 1 that of a Laplacian of scale 1. (The released code
    has |d| * b in place of the power: its best shape stays below 1 however light the tails are.)
    """
    log_power = shape * _log_abs(error)
    power = log_power.clamp(max=_LOG_CAP).exp() * (1.0 + (log_power - _LOG_CAP).clamp(min=0.0))
    return power - shape.log() + (1.0 / shape).lgamma() + math.log(2.0)


def central_probability(error: Tensor, shape: Tensor) -> Tensor:
    """Probability of an absolute error below |d|: the regularized incomplete gamma function P(1/b, |d|^b)."""
    import torch

    power = (shape * _log_abs(error)).clamp(max=_LOG_CAP).exp()
    probability: Tensor = torch.special.gammainc(1.0 / shape, power)
    return probability


def error_variance(error_SNB: Tensor) -> Tensor:
    """Variance of each transition's error over the N networks of a set, shrunk for few of them, (S, B).

    Var_0 / (k / N + (N + 1) / (N - 1)) with the excess kurtosis k of the errors (Kim et al. 2024, BIEV): of all
    multiples of the sample variance about the one of least squared error (Searls and Intarapanich 1990), biased
    by almost a half at N = 5: good for weights, not to be read as an uncertainty. Fewer than 4 networks have no
    kurtosis, and it counts as 0.
    """
    import torch

    count = error_SNB.shape[1]
    centered_SNB = error_SNB - error_SNB.mean(dim=1, keepdim=True)
    variance_SB = centered_SNB.square().mean(dim=1)
    kurtosis_SB = torch.zeros_like(variance_SB)
    if count > 3:
        z_SNB = centered_SNB * variance_SB.clamp(min=1e-30).rsqrt().unsqueeze(1)
        biased_SB = z_SNB.pow(4).mean(dim=1) - 3.0
        unbiased_SB = (count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * biased_SB + 6.0)
        kurtosis_SB = torch.where(variance_SB > 1e-30, unbiased_SB, kurtosis_SB)
    return (variance_SB / (kurtosis_SB / count + (count + 1) / (count - 1))).clamp(min=_LEAST_VARIANCE)


def effective_batch(variance: Tensor) -> Tensor:
    """(sum v)^2 / sum v^2 of the inverse variances v along the last axis: rows that a weighted mean is made of."""
    inverse = 1.0 / variance
    return inverse.sum(dim=-1).square() / inverse.square().sum(dim=-1)


def least_offset(variance_SB: Tensor, least_effective_batch: int) -> Tensor:
    """The smallest xi, (S, 1), with an effective batch of 1 / (s^2 + xi) of at least so many rows, or of B - 1.

    The effective batch grows with xi. A section search on the logarithm of xi, `_POINTS` points at once and without
    leaving the device; the upper end of the last section is returned, so that the bound holds.
    """
    import torch

    wanted = min(least_effective_batch, variance_SB.shape[-1] - 1)
    top_S1 = variance_SB.amax(dim=-1, keepdim=True).log()
    low_S1, width = top_S1 - math.log(1e15), math.log(1e18)
    section_P = torch.linspace(0.0, 1.0, _POINTS, device=variance_SB.device, dtype=variance_SB.dtype)
    for _ in range(_ROUNDS):
        xi_SP = (low_S1 + width * section_P).exp()
        enough_SP = effective_batch(variance_SB.unsqueeze(1) + xi_SP.unsqueeze(2)) >= wanted
        first_S1 = (~enough_SP).sum(dim=1, keepdim=True).clamp(max=_POINTS - 1)
        low_S1 = low_S1 + width * section_P[(first_S1 - 1).clamp(min=0)]
        width = width / (_POINTS - 1)
    xi_S1 = (low_S1 + width).exp()
    return torch.where(effective_batch(variance_SB).unsqueeze(1) >= wanted, torch.zeros_like(xi_S1), xi_S1)


def _log_abs(error: Tensor) -> Tensor:
    return 0.5 * (error.square() + _LEAST_ERROR**2).log()
