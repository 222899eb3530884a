"""Losses of a dynamics model, in normalized units: settings and mathematics in one small part each.

Shape legend: M members, B batch, T predicted targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from proxygap.base.config import Settings

if TYPE_CHECKING:
    import torch


class Likelihood(Settings):
    """Gaussian negative log-likelihood up to a constant (PETS; Chua et al. 2018, section 4, Eq. 1)."""

    kind: Literal["likelihood"] = "likelihood"

    def __call__(
        self, mean_MBT: torch.Tensor, log_var_MBT: torch.Tensor, target_MBT: torch.Tensor, weight_MB: torch.Tensor
    ) -> torch.Tensor:
        """Loss per member, shape (M,), averaged over batch and targets, in nats of the normalized target times two."""
        per_row_MB = ((mean_MBT - target_MBT).square() * (-log_var_MBT).exp() + log_var_MBT).mean(dim=-1)
        return (weight_MB * per_row_MB).mean(dim=-1)


class SquaredError(Settings):
    """Mean squared error of the normalized target; the predictive deviation is then that of the held-out residuals."""

    kind: Literal["mse"] = "mse"

    def __call__(
        self,
        mean_MBT: torch.Tensor,
        log_var_MBT: torch.Tensor,  # noqa: ARG002 - the seam's signature
        target_MBT: torch.Tensor,
        weight_MB: torch.Tensor,
    ) -> torch.Tensor:
        """Loss per member, shape (M,), averaged over batch and targets, in squared normalized units."""
        return (weight_MB * (mean_MBT - target_MBT).square().mean(dim=-1)).mean(dim=-1)
