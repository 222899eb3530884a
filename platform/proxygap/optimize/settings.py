"""Settings of the policy optimizers; importing them loads neither torch nor Ray."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.optimize.td_error import CriticLossPart, SquaredTdError


class SacSettings(Settings):
    """Soft actor-critic with the field's networks and a learned temperature (Haarnoja et al. 2018, 1812.05905)."""

    kind: Literal["sac"] = "sac"
    hidden: tuple[PositiveInt, ...] = Field(default=(256, 256), min_length=1)
    """Widths of the actor and of each of the two critics, ReLU between them."""
    critic_loss: CriticLossPart = SquaredTdError()
    """What the critics minimize: the squared error, or the likelihood of errors whose shape is learned."""
    learning_rate: PositiveFloat = 3e-4
    """Adam's step size for actor, critics and temperature."""
    batch_size: PositiveInt = 256
    """Transitions per gradient step."""
    discount: float = Field(default=0.99, gt=0.0, lt=1.0)
    """Gamma: how much a reward one step later is worth."""
    target_rate: float = Field(default=0.005, gt=0.0, le=1.0)
    """Tau: how far the target critics move to the critics after each step."""
    initial_temperature: PositiveFloat = 1.0
    """Alpha before learning; larger explores more at first."""
    target_entropy: float | None = None
    """Entropy that the temperature is adjusted to, in nats. Default: minus the number of action dimensions."""
    learners: int = Field(default=0, ge=0, le=1)
    """0 learns in the process of the loop; 1 on a remote Learner, which may hold a GPU."""
    gpus_per_learner: float = Field(default=0.0, ge=0.0)
    """GPUs of the remote Learner."""

    @model_validator(mode="after")
    def _gpus_are_remote(self) -> SacSettings:
        if self.gpus_per_learner and not self.learners:
            raise ValueError(f"gpus_per_learner = {self.gpus_per_learner:g} needs a remote Learner; set learners to 1")
        return self

    def module(self, seed: int) -> dict[str, Any]:
        """The ``model_config`` of the `SacModule` that these settings train."""
        critics = {"members": self.critic_loss.members, "shaped": self.critic_loss.shaped}
        return {"hidden": self.hidden, "initial_temperature": self.initial_temperature, "seed": seed, **critics}
