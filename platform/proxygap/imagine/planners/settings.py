"""Settings of the planners; each is the part itself, and importing them loads no torch.

Shape legend: B problems, A action size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings

if TYPE_CHECKING:
    import torch

    from proxygap.base.protocols import Plan, PlanMemory
    from proxygap.imagine.planners.elites import Returns


class CemPlanner(Settings):
    """Cross-entropy method over action sequences (PETS; Chua et al. 2018, algorithm 1)."""

    kind: Literal["cem"] = "cem"
    horizon: PositiveInt = 15
    """Steps of a plan."""
    candidates: PositiveInt = 350
    """Action sequences evaluated in each round."""
    rounds: PositiveInt = 5
    """Rounds of drawing, evaluating and refitting."""
    elite_share: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of a round's candidates that mean and variance are refitted to; at least one."""
    momentum: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the old mean and variance that is kept in each round."""
    initial_std: PositiveFloat = 0.5
    """Deviation of the first round's actions; never more than half of the mean's distance from -1 or 1, whichever is
    nearer, so that candidates need not be clipped."""
    answer: Literal["mean", "best"] = "mean"
    """Whether the last mean is taken, or the best sequence of all rounds."""

    @property
    def elite_count(self) -> int:
        """Elites of a round."""
        return max(1, round(self.elite_share * self.candidates))

    def init(self, problems: int, action_size: int) -> PlanMemory:
        """The memory of problems that begin: see `cem.init`."""
        from proxygap.imagine.planners import cem

        return cem.init(self, problems, action_size)

    def plan(self, memory: PlanMemory, returns: Returns, generator: torch.Generator) -> tuple[Plan, PlanMemory]:
        """Plan for every problem: see `cem.plan`."""
        from proxygap.imagine.planners import cem

        return cem.plan(self, memory, returns, generator)

    def later(self, memory: PlanMemory, steps: int) -> PlanMemory:
        """The memory ``steps`` real steps on: see `cem.later`."""
        from proxygap.imagine.planners import cem

        return cem.later(memory, steps)


class IcemPlanner(Settings):
    """Sample-efficient cross-entropy method: colored noise, kept elites, shrinking rounds (Pinneri et al. 2020)."""

    kind: Literal["icem"] = "icem"
    horizon: PositiveInt = 15
    """Steps of a plan."""
    candidates: PositiveInt = 100
    """Action sequences of the first round."""
    rounds: PositiveInt = 3
    """Rounds of drawing, evaluating and refitting."""
    elites: PositiveInt = 10
    """Best candidates that mean and deviation are refitted to."""
    momentum: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the old mean and deviation that is kept in each round."""
    initial_std: PositiveFloat = 0.5
    """Deviation of the first round's actions; actions lie in [-1, 1]."""
    noise_color: NonNegativeFloat = 2.0
    """Exponent of the noise's power spectrum over the horizon: 0 is white, 2 is red and makes smooth actions."""
    shrink: float = Field(default=1.25, ge=1.0)
    """Factor by which each round has fewer candidates than the one before; never fewer than twice the elites."""
    kept_share: float = Field(default=0.3, ge=0.0, le=1.0)
    """Share of the elites that enters the next round again, and, moved on by a step, the next plan."""

    @property
    def kept_count(self) -> int:
        """Elites that enter again."""
        return int(self.kept_share * self.elites)

    def count(self, index: int) -> int:
        """Fresh candidates of a round, the first being round 0."""
        return max(2 * self.elites, int(self.candidates * self.shrink**-index))

    def init(self, problems: int, action_size: int) -> PlanMemory:
        """The memory of problems that begin: see `icem.init`."""
        from proxygap.imagine.planners import icem

        return icem.init(self, problems, action_size)

    def plan(self, memory: PlanMemory, returns: Returns, generator: torch.Generator) -> tuple[Plan, PlanMemory]:
        """Plan for every problem: see `icem.plan`."""
        from proxygap.imagine.planners import icem

        return icem.plan(self, memory, returns, generator)

    def later(self, memory: PlanMemory, steps: int) -> PlanMemory:
        """The memory ``steps`` real steps on: see `icem.later`."""
        from proxygap.imagine.planners import icem

        return icem.later(memory, steps)


class MppiPlanner(Settings):
    """Model predictive path integral control: an average by exponentiated return (Williams et al. 2017)."""

    kind: Literal["mppi"] = "mppi"
    horizon: PositiveInt = 15
    """Steps of a plan."""
    candidates: PositiveInt = 350
    """Action sequences evaluated in each round."""
    rounds: PositiveInt = 1
    """Rounds of drawing, evaluating and averaging."""
    sigma: PositiveFloat = 0.5
    """Deviation of the noise on each action, before it is smoothed; larger looks farther from the last plan."""
    smoothing: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the last step's noise that is kept: larger makes smoother actions (PDDM; Nagabandi et al. 2019)."""
    temperature: PositiveFloat = 1.0
    """In units of the return: smaller trusts the best candidates alone."""

    def init(self, problems: int, action_size: int) -> PlanMemory:
        """The memory of problems that begin: see `mppi.init`."""
        from proxygap.imagine.planners import mppi

        return mppi.init(self, problems, action_size)

    def plan(self, memory: PlanMemory, returns: Returns, generator: torch.Generator) -> tuple[Plan, PlanMemory]:
        """Plan for every problem: see `mppi.plan`."""
        from proxygap.imagine.planners import mppi

        return mppi.plan(self, memory, returns, generator)

    def later(self, memory: PlanMemory, steps: int) -> PlanMemory:
        """The memory ``steps`` real steps on: see `mppi.later`."""
        from proxygap.imagine.planners import mppi

        return mppi.later(memory, steps)


PlannerPart = Annotated[CemPlanner | IcemPlanner | MppiPlanner, Field(discriminator="kind")]


class Planning(Settings):
    """How actions are planned inside a model, for loops that plan."""

    planner: PlannerPart = CemPlanner()
    """The search over action sequences."""
    particles: PositiveInt = 20
    """Imagined rollouts behind the predicted return of each candidate."""
    propagation: Literal["ts1", "tsinf", "expectation"] = "tsinf"
    """Who steps a particle: a member drawn anew at each step (ts1), one member for the whole plan (tsinf), or the mean
    of all members' means (expectation; one particle then, without noise). Chua et al. 2018, section 5."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic inside the model while planning; bfloat16 is faster on processors that have it, and coarser."""
    replan_every: PositiveInt = 1
    """Real steps taken from each plan."""

    @model_validator(mode="after")
    def _steps_exist(self) -> Planning:
        if self.replan_every > self.planner.horizon:
            raise ValueError(
                f"replan_every = {self.replan_every} exceeds planner.horizon = {self.planner.horizon}; lower it"
            )
        return self
