"""Settings of the estimates of a dynamics model's error; importing them loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings

if TYPE_CHECKING:
    from proxygap.fit.uncertainty.deup import Deup
    from proxygap.fit.uncertainty.disagreement import Disagreement

Feature = Literal["density", "variance", "seen", "inputs"]


class DisagreementSettings(Settings):
    """Variance of the members' mean predictions (Lakshminarayanan et al. 2017): blind to what all members get wrong."""

    kind: Literal["disagreement"] = "disagreement"

    def build(self, *, seed: int) -> Disagreement:  # noqa: ARG002 - nothing is random; the seam's signature
        """The estimate itself."""
        from proxygap.fit.uncertainty.disagreement import Disagreement

        return Disagreement()


class DeupSettings(Settings):
    """A predictor of the model's error on transitions it was not trained on, less the noise (Lahlou et al. 2023)."""

    kind: Literal["deup"] = "deup"
    features: tuple[Feature, ...] = Field(default=("density", "variance", "seen", "inputs"), min_length=1)
    """What the error is predicted from: log-density of the training data, log-variance of the members, whether the
    transition was trained on, and observation and action themselves, which let bias be placed. Variances of few
    members are peculiar to a model: leave them out where most errors were those of other models (folds)."""
    aleatoric: Literal["none", "predicted", "neighbors"] = "none"
    """What noise is taken off: nothing (the estimate is then of the whole error); the variance that the members
    predict, which holds their own bias as well; or half the squared difference of neighboring residuals, which needs
    neighbors that are near, so few dimensions."""
    neighbors: PositiveInt = 30
    """Neighbors that the noise is averaged over; more are smoother."""
    loss: Literal["likelihood", "squared"] = "likelihood"
    """What fits the predicted error e to an error l: l / e + log e, whose minimum is at the mean of l whatever its
    size, or the squared difference (the paper's), which large errors rule."""
    hidden: tuple[PositiveInt, ...] = (64, 64, 64)
    """Widths of the error predictor's hidden layers."""
    learning_rate: PositiveFloat = 1e-2
    """Adam's step size."""
    weight_decay: float = Field(default=1e-4, ge=0.0)
    """L2 penalty of the error predictor; larger makes it smoother."""
    updates: PositiveInt = 1000
    """Gradient steps of a fit, which starts anew each time."""
    batch_size: PositiveInt = 128
    """Examples per gradient step."""
    sample: PositiveInt = 1000
    """Training transitions that stand for all where densities and neighbors are computed; the cost is linear in it."""
    logged: PositiveInt = 5000
    """Errors that are remembered from before a refit, the newest; 1 all but forgets them."""

    @model_validator(mode="after")
    def _features_differ(self) -> DeupSettings:
        if len(set(self.features)) < len(self.features):
            raise ValueError("one of the features is named twice; remove the repeats")
        return self

    def build(self, *, seed: int) -> Deup:
        """The estimate itself."""
        from proxygap.fit.uncertainty.deup import Deup

        return Deup(self, seed=seed)
