"""Settings of the loops; importing them loads neither torch nor Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from proxygap.base.config import Settings

if TYPE_CHECKING:
    from proxygap.loops.off_policy import OffPolicy


class SacLoop(Settings):
    """Model-free soft actor-critic on RLlib: the baseline in the same frame (Haarnoja et al. 2018)."""

    kind: Literal["sac"] = "sac"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 50
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 1
    """Real steps per environment between two calls of the Learner."""
    updates_per_step: PositiveInt = 1
    """Gradient steps of the policy per real step."""

    def algorithm(self) -> type[OffPolicy]:
        """The RLlib Algorithm."""
        from proxygap.loops.sac import Sac

        return Sac


class MbpoLoop(Settings):
    """Model-based policy optimization on RLlib's SAC (Janner et al. 2019, 1906.08253)."""

    kind: Literal["mbpo"] = "mbpo"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 50
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 1
    """Real steps per environment between two calls of the Learner."""
    updates_per_step: PositiveInt = 20
    """Gradient steps of the policy per real step (G)."""
    refit_every: PositiveInt = 250
    """Real steps between two fits of the ensemble (F)."""
    real_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of real transitions in each policy batch."""

    def algorithm(self) -> type[OffPolicy]:
        """The RLlib Algorithm."""
        from proxygap.loops.mbpo import Mbpo

        return Mbpo
