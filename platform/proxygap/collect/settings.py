"""How real experience is gathered; importing this loads no torch. Shape legend: O observation size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from proxygap.base.config import Settings

if TYPE_CHECKING:
    import numpy as np

    from proxygap.base.records import Float32


class RewardNoise(Settings):
    """Noise on the reward of lived experience, as a bad sensor would add it; evaluation and outcomes never have it."""

    kind: Literal["none", "gaussian", "student_t"] = "none"
    """Its distribution; Student's t has heavy tails."""
    scale: PositiveFloat = 1.0
    """Deviation of the Gaussian, or scale of Student's t, in units of the reward."""
    degrees: float = Field(default=2.0, ge=1.0)
    """Degrees of freedom of Student's t: fewer make heavier tails; up to 2, the variance is infinite."""
    where: Literal["everywhere", "first_positive"] = "everywhere"
    """Which states pay noisily: all, or those whose first observation is above 0, so that noise depends on state."""

    def draw(self, rng: np.random.Generator, obs_O: Float32) -> float:
        """What is added to the reward of a step from ``obs_O``; every step draws once, wherever it is."""
        if self.kind == "none":
            return 0.0
        value = rng.standard_normal() if self.kind == "gaussian" else rng.standard_t(self.degrees)
        return self.scale * float(value) if self.where == "everywhere" or obs_O[0] > 0 else 0.0


class Collect(Settings):
    """Environment runners and the replay that they fill."""

    env_runners: int = Field(default=0, ge=0, le=4096)
    """Remote environment runners; 0 steps in the process of the loop, which is what exact resume needs."""
    envs_per_runner: int = Field(default=1, ge=1, le=1024)
    """Environments stepped together by each runner, with one policy call for all of them."""
    cpus_per_runner: NonNegativeFloat = 1.0
    """CPUs reserved per remote runner."""
    random_steps: int = Field(default=500, ge=0)
    """Real steps taken with uniform random actions before the policy acts."""
    replay_capacity: int = Field(default=1_000_000, ge=1)
    """Transitions kept; the oldest are dropped first."""
    keep_episodes: bool = False
    """Write all real experience as parquet beside the run when it ends."""
    reward_noise: RewardNoise = RewardNoise()
    """Noise on the rewards that are learned from (and kept); what is measured as an outcome is without it."""
