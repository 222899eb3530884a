"""Losses of a dynamics model, in normalized units: settings and mathematics in one small part each.

Shape legend: M members, B batch, T predicted targets, N rows of data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from proxygap.base.config import Settings

if TYPE_CHECKING:
    import torch

    from proxygap.base.protocols import FitContext, Normalized
    from proxygap.base.records import Float32, Transitions


class PlainLoss:
    """The defaults of a dynamics loss: one step ahead, a Gaussian, all rows alike. Mixed into a settings class."""

    @property
    def raw_units(self) -> bool:
        """Weights, if any, are meant for errors in normalized units."""
        return False

    @property
    def learns_deviation(self) -> bool:
        """The deviation is fitted."""
        return True

    @property
    def learns_shape(self) -> bool:
        """Every target is Gaussian."""
        return False

    @property
    def step_weights(self) -> tuple[float, ...]:
        """One step."""
        return (1.0,)

    def weigh(self, data: Transitions, targets: int, context: FitContext) -> Float32 | None:  # noqa: ARG002 - the seam's
        """All alike."""
        return None


class Likelihood(PlainLoss, Settings):
    """Gaussian negative log-likelihood up to a constant (PETS; Chua et al. 2018, section 4, Eq. 1)."""

    kind: Literal["likelihood"] = "likelihood"

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """Loss per member, shape (M,), averaged over batch and targets, in nats of the normalized target times two."""
        per_target_MBT = (output.mean - target_MBT).square() * (-output.log_var).exp() + output.log_var
        return (weight_MBT * per_target_MBT).mean(dim=(1, 2))


class SquaredError(PlainLoss, Settings):
    """Mean squared error of the target; the predictive deviation is then that of the held-out residuals."""

    kind: Literal["mse"] = "mse"
    scale: Literal["normalized", "raw"] = "normalized"
    """Units of the error: deviations of each target, or its raw units, in which the target that moves most decides (as
    where targets are not normalized: MBPO, VaGraM and mbrl-lib)."""

    @property
    def raw_units(self) -> bool:
        """Where the error is in raw units: uniform weights then become the targets' variances."""
        return self.scale == "raw"

    @property
    def learns_deviation(self) -> bool:
        """The deviation is measured on held-out rows."""
        return False

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """Loss per member, shape (M,), averaged over batch and targets, in squared normalized units."""
        return (weight_MBT * (output.mean - target_MBT).square()).mean(dim=(1, 2))


class MultiStep(PlainLoss, Settings):
    """Error of open-loop predictions of ``steps`` steps, differentiated through the model (Abbeel et al. 2005).

    From every row each member follows its own mean with the actions really taken, within the episode; the loss of a row
    is the discounted mean over the steps that the row has. A step counts only where its transition is on the same side
    of the held-out split as the row. Under the likelihood, the variance said at a step must also cover the
    error that the steps before it piled up, so that deviations come out larger than one step deserves.
    """

    kind: Literal["multi_step"] = "multi_step"
    steps: PositiveInt = 5
    """Longest prediction; the cost of a fit grows linearly. 1 is the base loss itself."""
    discount: float = Field(default=1.0, gt=0.0, le=1.0)
    """Weight of a step against the one before it; lower trusts long predictions less."""
    base: Annotated[Likelihood | SquaredError, Field(discriminator="kind")] = SquaredError()
    """Loss of each step."""

    @property
    def raw_units(self) -> bool:
        """As the base."""
        return self.base.raw_units

    @property
    def learns_deviation(self) -> bool:
        """As the base."""
        return self.base.learns_deviation

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Powers of the discount."""
        return tuple(self.discount**step for step in range(self.steps))

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """The base loss of one step, shape (M,)."""
        return self.base(output, target_MBT, weight_MBT)
