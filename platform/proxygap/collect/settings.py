"""How real experience is gathered."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat

from proxygap.base.config import Settings


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
