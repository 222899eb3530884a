"""Settings of the dynamics ensemble and its losses; importing them loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.fit.dynamics.generalized_gaussian import GeneralizedGaussian
from proxygap.fit.dynamics.losses import Likelihood, MultiStep, SquaredError
from proxygap.fit.dynamics.weights import ExpertDistance, ValueGradient

if TYPE_CHECKING:
    from proxygap.fit.dynamics.ensemble import GaussianEnsemble

Loss: TypeAlias = Likelihood | SquaredError | MultiStep | ExpertDistance | ValueGradient | GeneralizedGaussian
"""The dynamics losses, told apart by their kind."""


class GaussianEnsembleSettings(Settings):
    """Probabilistic ensemble of Gaussian networks (PETS, Chua et al. 2018; as used by MBPO, Janner et al. 2019)."""

    kind: Literal["gaussian_ensemble"] = "gaussian_ensemble"
    members: PositiveInt = 7
    """Networks in the ensemble; more of them cost linearly and measure disagreement better."""
    elites: PositiveInt | None = None
    """Members that imagine: the best on held-out data. Default: all but two, at least one."""
    hidden: tuple[PositiveInt, ...] = Field(default=(200, 200, 200, 200), min_length=1)
    """Widths of the hidden layers."""
    loss: Annotated[Loss, Field(discriminator="kind")] = Likelihood()
    """What a member minimizes."""
    learning_rate: PositiveFloat = 1e-3
    """Adam's step size."""
    weight_decay: tuple[NonNegativeFloat, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    """Decay per layer, first to last (MBPO's values); a shorter list repeats its last entry."""
    batch_size: PositiveInt = 256
    """Transitions per member and gradient step."""
    batches: Literal["bootstrap", "shared"] = "bootstrap"
    """Whether each member draws its own sample with replacement, or all members see the same batches."""
    held_out: float = Field(default=0.2, gt=0.0, lt=1.0)
    """Share of transitions that is never trained on; a transition stays on its side for the whole run."""
    held_out_limit: PositiveInt = 5000
    """Most held-out transitions used for a score (the newest)."""
    stopping: Literal["early", "budget"] = "early"
    """When a member ends: once held-out error no longer falls, with its best weights; or after exactly its budget of
    ``max_epochs``, with its last ones. A budget is scored once, which saves the held-out pass of every other epoch."""
    patience: PositiveInt = 5
    """Epochs without a relative gain of ``min_gain`` after which a member stops early."""
    min_gain: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Relative improvement of a member's held-out squared error, weighted as in training, that counts as a gain."""
    max_epochs: PositiveInt = 200
    """Hard limit of one fit."""
    threads: PositiveInt = 1
    """Torch threads of a host; in process, the loop's own threads are used."""

    @model_validator(mode="after")
    def _elites_are_members(self) -> GaussianEnsembleSettings:
        if self.elites is not None and self.elites > self.members:
            raise ValueError(f"elites = {self.elites} exceeds members = {self.members}; lower elites or add members")
        return self

    @property
    def elite_count(self) -> int:
        """Members that imagine."""
        return self.elites if self.elites is not None else max(1, self.members - 2)

    def build(
        self,
        *,
        obs_size: int,
        action_size: int,
        learn_reward: bool,
        learn_termination: bool,
        seed: int,
        member_ids: tuple[int, ...] | None = None,
        device: str = "cpu",
    ) -> GaussianEnsemble:
        """The ensemble itself, or the shard of it that holds ``member_ids``."""
        from proxygap.fit.dynamics.ensemble import GaussianEnsemble

        return GaussianEnsemble(
            self,
            obs_size=obs_size,
            action_size=action_size,
            learn_reward=learn_reward,
            learn_termination=learn_termination,
            seed=seed,
            member_ids=tuple(range(self.members)) if member_ids is None else member_ids,
            device=device,
        )
