"""Errors with tails of any weight: density p(e) = beta / (2 alpha Gamma(1/beta)) exp(-(|e| / alpha)^beta).

beta is the shape (2 Gaussian, 1 Laplace, lower heavier), alpha the scale (Subbotin 1923; as used by Kim et al. 2024,
2408.02295, section 3). Shape legend: M members, B batch, T predicted targets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from proxygap.base.config import Settings
from proxygap.fit.dynamics.losses import PlainLoss

if TYPE_CHECKING:
    import torch

    from proxygap.base.protocols import Normalized

_SMALLEST = 1e-6
"""|e| / alpha below which the density is flat: for beta < 1 its slope has no bound at 0."""
_LARGEST_EXPONENT = 40.0
"""beta log(|e| / alpha) beyond which (|e| / alpha)^beta goes on linearly in it, so that float32 does not overflow."""


def negative_log_density(scaled: torch.Tensor, log_scale: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """-log p of errors ``scaled`` = e / alpha, elementwise, in nats, every constant included.

    The released code of Kim et al. has |e| beta for |e|^beta; that loss has no minimum at the true shape.
    """
    exponent = shape * scaled.abs().clamp(min=_SMALLEST).log()
    bounded = exponent.clamp(max=_LARGEST_EXPONENT)
    power = bounded.exp() * (1.0 + exponent - bounded)
    return power - shape.log() + log_scale + (1.0 / shape).lgamma() + math.log(2.0)


def log_deviation(shape: torch.Tensor) -> torch.Tensor:
    """Logarithm of standard deviation over scale: half of lgamma(3/beta) - lgamma(1/beta)."""
    return 0.5 * ((3.0 / shape).lgamma() - (1.0 / shape).lgamma())


class GeneralizedGaussian(PlainLoss, Settings):
    """Exact negative log-likelihood of a generalized Gaussian whose scale and shape the networks say per target."""

    kind: Literal["generalized_gaussian"] = "generalized_gaussian"

    @property
    def learns_shape(self) -> bool:
        """Yes."""
        return True

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """Loss per member, shape (M,), averaged over batch and targets; equal to `Likelihood`'s at shape 2.

        Raises:
            ValueError: the output has no shape.
        """
        if output.shape is None:
            raise ValueError("the networks say no shape; build them with learns_shape")
        log_scale_MBT = 0.5 * (output.log_var + math.log(2.0))  # alpha = sqrt(2) sigma
        scaled_MBT = (output.mean - target_MBT) * (-log_scale_MBT).exp()
        nats_MBT = negative_log_density(scaled_MBT, log_scale_MBT, output.shape)
        return (weight_MBT * (2.0 * nats_MBT - math.log(2.0 * math.pi))).mean(dim=(1, 2))
