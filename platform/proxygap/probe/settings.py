"""When and how both sides are measured."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from proxygap.base.config import Settings


class Probe(Settings):
    """Evaluation at fixed real steps, on environments and seeds of its own."""

    every: PositiveInt = 250
    """Real steps between two evaluations."""
    episodes: PositiveInt = 5
    """Evaluation episodes each time, always from the same start seeds, with the deterministic action."""
    k_step: PositiveInt = 10
    """Longest open-loop prediction that the k-step error looks at."""
    imagined_horizon: PositiveInt = 100
    """Steps of the imagined return, from the start states of the evaluation episodes."""
    objective: str | None = None
    """The objective set against the first outcome in the verdict. Default: the loop's own."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples behind each interval."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """Coverage of each interval."""
