"""How far and how often the loop imagines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from proxygap.base.config import Settings


class HorizonSchedule(Settings):
    """Rollout length over real steps: linear, truncated to an integer (MBPO, Janner et al. 2019, appendix C)."""

    start: PositiveInt = 1
    """Length before ``from_step``."""
    end: PositiveInt = 1
    """Length from ``to_step`` on."""
    from_step: int = Field(default=0, ge=0)
    """Real step at which the length begins to change."""
    to_step: int = Field(default=0, ge=0)
    """Real step at which the length has reached ``end``."""

    @model_validator(mode="after")
    def _forward(self) -> HorizonSchedule:
        if self.to_step < self.from_step:
            raise ValueError(f"to_step = {self.to_step} lies before from_step = {self.from_step}; swap them")
        return self

    def __call__(self, real_step: int) -> int:
        """Rollout length at a real step."""
        if self.to_step == self.from_step:
            return self.end if real_step >= self.to_step else self.start
        share = min(max((real_step - self.from_step) / (self.to_step - self.from_step), 0.0), 1.0)
        return int(self.start + share * (self.end - self.start))


class Imagine(Settings):
    """Branched rollouts from real states (MBPO, Janner et al. 2019, algorithm 2)."""

    horizon: HorizonSchedule = HorizonSchedule()
    """Length of a rollout."""
    rollouts_per_step: PositiveInt = 400
    """Rollouts started per real step; they are run together after each fit (MBPO: 400)."""
    batch_size: PositiveInt = 10_000
    """Most rollouts advanced together; bounds memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic inside the model; bfloat16 is faster on processors that have it, and coarser."""
    keep_fits: PositiveInt = 1
    """Fits whose imagined transitions stay in the buffer (MBPO: retained epochs)."""
