"""Settings of datasets that are made before a run; importing them loads neither torch nor Ray.

Each says, before anything is launched, whether it can be made of an experiment's task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment
from proxygap.base.protocols import unknown_laws
from proxygap.imagine.planners.settings import Planning

if TYPE_CHECKING:
    from proxygap.experiment import Experiment

Choose = Literal["episodes", "transitions"]
SECTIONS = ("loop", "collect", "labels", "fit", "proxy", "imagine", "plan", "judge", "optimize", "serve")
"""What the sections of a teacher may say; task and measurements are not its own."""
REPLAYING = frozenset({"mbpo", "pets", "sac"})
"""Loops that keep all that they live through."""
ACTING = REPLAYING | {"ppo", "preference_control"}
"""Loops that leave a policy."""
MOST_POINTS = 10_000_000


class LawTeacher(Settings):
    """A planner on the task's own law of motion: the best that planning can do."""

    kind: Literal["law"] = "law"
    plan: Planning | None = None
    """How it plans. Default: as the experiment does."""

    def check(self, experiment: Experiment, field: str, loops: frozenset[str]) -> None:  # noqa: ARG002
        """Refuse, with `InvalidExperiment`, a task whose law is not known."""
        task: Any = experiment.task
        if unknown := unknown_laws(task):
            raise InvalidExperiment(
                f"the {unknown[0]} of {task.name} is not known, so nobody can plan on it",
                field=f"{field}.kind",
                value=self.kind,
                remedy="Use a teacher of kind loop, or a task with a known law (continuous_cartpole)",
            )


class LoopTeacher(Settings):
    """A loop that learns the task before the run does, with the run's seed."""

    kind: Literal["loop"] = "loop"
    sections: dict[str, Any]
    """Its experiment: the section loop, and others (optimize, collect, fit, plan, ...) where defaults do not do. Task,
    threads and labels of the process are those of this experiment."""

    def check(self, experiment: Experiment, field: str, loops: frozenset[str]) -> None:
        """Refuse, with `InvalidExperiment`, sections that make no experiment, or another loop than one of these."""
        teacher = self.experiment(experiment, field)
        if teacher.loop.kind not in loops:
            lacks = "keeps not all that it lives through" if teacher.loop.kind in ACTING else "leaves no policy"
            raise InvalidExperiment(
                f"this loop {lacks}",
                field=f"{field}.sections.loop.kind",
                value=teacher.loop.kind,
                remedy=f"Choose one of {', '.join(sorted(loops))}",
            )

    def look(self, asked: Experiment, field: str) -> None:
        """Look at everything that the teacher's experiment names. Raises as `Experiment.check`, below ``field``."""
        try:
            self.experiment(asked, field).check()
        except InvalidExperiment as error:
            raise _below(error, f"{field}.sections") from error

    def experiment(self, asked: Experiment, field: str = "teacher") -> Experiment:
        """The teacher's experiment, on the task of the one that asks.

        Raises:
            InvalidExperiment: naming the field below ``field``; several problems are joined by newlines.
        """
        from proxygap.experiment import validate

        strange = [name for name in self.sections if name not in SECTIONS]
        if strange:
            raise InvalidExperiment(
                "is no section of a teacher",
                field=f"{field}.sections.{strange[0]}",
                remedy=f"Give {', '.join(SECTIONS)}",
            )
        try:
            return validate(self._tree(asked))
        except InvalidExperiment as error:
            raise _below(error, f"{field}.sections") from error

    def _tree(self, asked: Experiment) -> dict[str, Any]:
        """Named alike for all who ask, so that they share what it taught. It is never measured on its way."""
        loop = self.sections.get("loop")
        steps = loop.get("real_steps") if isinstance(loop, dict) else None
        return {
            "name": "teacher",
            "question": "What does the teacher live through?",
            "outcomes": ["return"],
            "task": asked.task.model_dump(mode="json"),
            "probe": {"episodes": 1, **({"every": steps} if isinstance(steps, int) else {})},
            "record": asked.record.model_dump(mode="json"),
            "compute": asked.compute.model_dump(mode="json"),
            **self.sections,
        }


TeacherPart = Annotated[LawTeacher | LoopTeacher, Field(discriminator="kind")]


def _below(error: InvalidExperiment, place: str) -> InvalidExperiment:
    """The error with its field, or that of each of its lines, below a place."""
    if error.field:
        return InvalidExperiment(error.problem, field=f"{place}.{error.field}", value=error.value, remedy=error.remedy)
    return InvalidExperiment("\n".join(f"{place}.{line}" for line in error.problem.splitlines()))


class RandomData(Settings):
    """Episodes of uniform random actions."""

    kind: Literal["random"] = "random"
    rows: PositiveInt
    """Most transitions. Whole episodes are lived until there are as many, then chosen among."""
    choose: Choose = "episodes"
    """Whether whole episodes are chosen, as many as fit, or single transitions, exactly ``rows``."""
    seed: NonNegativeInt | None = None
    """Seed of the data, the same for every run. Default: the run's own."""

    def check(self, experiment: Experiment, field: str) -> None:
        """Nothing to refuse: any task can be acted on at random."""


class OnPolicyData(Settings):
    """What a teacher lived through while it learned: from the first random steps to its last policy."""

    kind: Literal["on_policy"] = "on_policy"
    teacher: LoopTeacher
    """Who learned."""
    rows: PositiveInt | None = None
    """Most transitions, a seeded choice. Default: all that the teacher's replay has kept."""
    choose: Choose = "episodes"
    """Whether whole episodes are chosen, as many as fit, or single transitions, exactly ``rows``."""
    seed: NonNegativeInt | None = None
    """Seed of teacher and choice, the same for every run. Default: the run's own."""

    def check(self, experiment: Experiment, field: str) -> None:
        """Refuse, with `InvalidExperiment`, a teacher without a replay."""
        self.teacher.check(experiment, f"{field}.teacher", REPLAYING)


class ExpertData(Settings):
    """Episodes of a good policy that no longer learns, without exploration."""

    kind: Literal["expert"] = "expert"
    teacher: TeacherPart = LawTeacher()
    """Whose episodes they are."""
    rows: PositiveInt
    """Most transitions. Whole episodes are lived until there are as many, then chosen among."""
    least_return: float | None = None
    """Episodes with less return are dropped (Lambert et al. 2020 keep those above 179). Default: none is."""
    attempts: PositiveInt = 200
    """Most episodes lived; where they give fewer transitions than ``rows``, the run does not start."""
    side_by_side: PositiveInt = 10
    """Episodes lived at the same time, with one call of the policy for all."""
    choose: Choose = "episodes"
    """Whether whole episodes are chosen, as many as fit, or single transitions, exactly ``rows``."""
    seed: NonNegativeInt | None = None
    """Seed of teacher, episodes and choice, the same for every run. Default: the run's own."""

    def check(self, experiment: Experiment, field: str) -> None:
        """Refuse, with `InvalidExperiment`, a teacher that cannot act on the task."""
        self.teacher.check(experiment, f"{field}.teacher", ACTING)


class GridData(Settings):
    """A regular grid over states and actions, sent one step ahead by the task's own law (Lambert et al. 2020)."""

    kind: Literal["grid"] = "grid"
    points: int = Field(default=7, ge=2)
    """Points per dimension, both ends included; 7 gives 16,807 on the cart-pole."""
    half_width: tuple[NonNegativeFloat, ...] = Field(min_length=1)
    """How far the grid reaches to either side of its center, for each part of the observation, or one for all; 0 keeps
    a part at the center. Actions cover [-1, 1]."""
    center: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Middle of the grid, for each part of the observation, or one for all."""
    noise_std: tuple[NonNegativeFloat, ...] = Field(default=(0.0,), min_length=1)
    """Standard deviation of Gaussian noise on each part of the next observation, or one for all; the law has none, also
    where the task's environment has."""
    rows: PositiveInt | None = None
    """Most transitions, a seeded choice. Default: all points."""
    seed: NonNegativeInt | None = None
    """Seed of noise and choice, the same for every run. Default: the run's own."""

    def check(self, experiment: Experiment, field: str) -> None:
        """Refuse, with `InvalidExperiment`, a task without a law, lengths that do not fit it, and too many points."""
        task: Any = experiment.task
        if unknown := unknown_laws(task):
            raise InvalidExperiment(
                f"the {unknown[0]} of {task.name} is not known, and a grid is sent ahead by it",
                field=f"{field}.kind",
                value=self.kind,
                remedy="Choose another kind of data, or a task with a known law (continuous_cartpole)",
            )
        for name in ("half_width", "center", "noise_std"):
            self._check_length(name, int(task.obs_size), field)
        self._check_size(task, field)

    def _check_length(self, name: str, size: int, field: str) -> None:
        given = getattr(self, name)
        if len(given) not in (1, size):
            raise InvalidExperiment(
                f"has {len(given)} numbers, and an observation has {size}",
                field=f"{field}.{name}",
                value=list(given),
                remedy="Give one for each part of the observation, or one for all",
            )

    def _check_size(self, task: Any, field: str) -> None:
        actions = task.action_size if task.discrete else self.points**task.action_size
        varied = sum(width > 0 for width in spread(self.half_width, task.obs_size))
        if self.points**varied * actions > MOST_POINTS:
            raise InvalidExperiment(
                f"the grid has {self.points**varied * actions:,} points, and more than {MOST_POINTS:,} are no dataset",
                field=f"{field}.points",
                value=self.points,
                remedy=f"Lower it, or set {field}.half_width to 0 where the state need not vary",
            )


class FileData(Settings):
    """Episodes from a file: what `proxygap data build` wrote, or what a run has kept (`collect.keep_episodes`)."""

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, max_length=1000)
    """Path, or URI, of the parquet file."""
    content_hash: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash that the file's rows must have, as `proxygap data show` tells it. Default: any."""
    rows: PositiveInt | None = None
    """Most transitions, a seeded choice. Default: all."""
    choose: Choose = "episodes"
    """Whether whole episodes are chosen, as many as fit, or single transitions, exactly ``rows``."""
    seed: NonNegativeInt | None = None
    """Seed of the choice, the same for every run. Default: the run's own."""

    def check(self, experiment: Experiment, field: str) -> None:
        """Nothing to refuse yet: the file is looked at before the launch."""


def spread(numbers: tuple[float, ...], size: int) -> tuple[float, ...]:
    """One number for each of ``size`` parts."""
    return numbers if len(numbers) == size else numbers * size
