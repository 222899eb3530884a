"""When and how both sides are measured."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from proxygap.base.config import Settings


class Probe(Settings):
    """Evaluation at fixed real steps, on environments and seeds of its own."""

    every: PositiveInt | None = None
    """Real steps between two evaluations. Default: 250 where the policy is updated at least that often; else
    after every update, or often enough for 24 to 48 evaluations."""
    episodes: PositiveInt = 5
    """Evaluation episodes each time, always from the same start seeds, with the deterministic action."""
    answers: PositiveInt = 64
    """Answers per prompt at each evaluation, drawn with the same noise every time; where answers can be listed, the
    exact distribution is used instead."""
    sample_answers: int = Field(default=200, ge=0)
    """Answers kept for the report's sample page when a run ends, the worst disagreements of proxy and gold first."""
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
