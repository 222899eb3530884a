"""The experiment: one YAML file, validated into one frozen object that every runner takes.

Nothing here loads torch or Ray, so that a file is refused within a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError, model_validator

from proxygap import registry
from proxygap.base.config import Settings, canonical_hash
from proxygap.collect.settings import Collect
from proxygap.imagine.settings import Imagine
from proxygap.probe.catalog import OBJECTIVES, OUTCOMES
from proxygap.probe.settings import Probe
from proxygap.record.settings import Record
from proxygap.serve.settings import Serve
from proxygap.yaml_file import assign, check_values, explain, parse_override, read_yaml

if TYPE_CHECKING:
    from proxygap.collect.tasks.cartpole import ContinuousCartPole
    from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
    from proxygap.loops.settings import MbpoLoop, SacLoop
    from proxygap.optimize.settings import SacSettings

    TaskPart: TypeAlias = GymnasiumTask | ContinuousCartPole
    FitPart: TypeAlias = GaussianEnsembleSettings
    OptimizePart: TypeAlias = SacSettings
    LoopPart: TypeAlias = MbpoLoop | SacLoop
else:
    TaskPart = registry.union("task")
    FitPart = registry.union("dynamics model")
    OptimizePart = registry.union("optimizer")
    LoopPart = registry.union("loop")


class Compute(Settings):
    """What the process of the loop may use."""

    threads: PositiveInt = 1
    """Torch threads of the loop; more than the cores that are free makes it slower."""
    parallel_seeds: PositiveInt = 1
    """Seeds that run at the same time, each in a Ray actor of its own; 1 runs them one by one in this process."""
    cpus_per_seed: NonNegativeFloat = 1.0
    """CPUs reserved for each seed that runs in an actor."""


class Experiment(Settings):
    """A question, what is optimized, what is wanted, and everything needed to run it the same way again."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Short name: letters, digits, dot, dash, underscore. It names the run folder and the MLflow experiment."""
    question: str = Field(min_length=1, max_length=1000)
    """The question that the report answers, in one sentence."""
    task: TaskPart
    """What is to be done well."""
    outcomes: tuple[str, ...] = Field(min_length=1)
    """What is wanted, measured in the real environment; the first one is set against the objective. An experiment
    without a declared outcome does not start; `proxygap list outcome` shows what can be declared."""
    loop: LoopPart
    """The loop that improves the policy."""
    collect: Collect = Collect()
    """How real experience is gathered."""
    fit: FitPart | None = None
    """The dynamics model, for loops that use one. Default: the loop's own."""
    imagine: Imagine = Imagine()
    """Rollouts inside the model, for loops that use one."""
    optimize: OptimizePart = Field(default_factory=lambda: registry.parts("optimizer")[0].settings()())  # type: ignore[assignment]
    """The optimizer of the policy."""
    serve: Serve = Serve()
    """Where the models live."""
    probe: Probe = Probe()
    """When and how both sides are measured."""
    record: Record = Record()
    """Where measurements and checkpoints go."""
    compute: Compute = Compute()
    """Threads and parallelism."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, max_length=1000)
    """One run per seed, under one parent."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in self.outcomes:
            if name not in OUTCOMES:
                raise ValueError(f"outcomes: unknown outcome {name[:40]!r}; known: {', '.join(OUTCOMES)}")
        if len(set(self.outcomes)) < len(self.outcomes):
            raise ValueError("outcomes: one of them is named twice; remove the repeats")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: must be distinct and not negative; remove repeats and minus signs")
        if self.probe.every > self.loop.real_steps:
            raise ValueError(
                f"probe.every: {self.probe.every} exceeds loop.real_steps = {self.loop.real_steps}, so nothing would "
                "be measured; lower probe.every"
            )
        for field, steps in (("loop.real_steps", self.loop.real_steps), ("probe.every", self.probe.every)):
            if steps % self.steps_per_sample:
                raise ValueError(
                    f"{field}: {steps} is not a multiple of the {self.steps_per_sample} real steps that all "
                    "environments take together; change it, or collect.envs_per_runner, collect.env_runners, "
                    "loop.steps_per_sample"
                )
        if self.objective not in OBJECTIVES[self.loop.kind]:
            raise ValueError(
                f"probe.objective: loop {self.loop.kind!r} does not measure {self.objective[:60]!r}; "
                f"it measures {', '.join(OBJECTIVES[self.loop.kind])}"
            )
        return self

    @property
    def steps_per_sample(self) -> int:
        """Real steps that all environments together take between two calls of the Learner."""
        environments = max(1, self.collect.env_runners) * self.collect.envs_per_runner
        return environments * self.loop.steps_per_sample

    @property
    def parallel_seeds(self) -> int:
        """Seeds that run at the same time: never more than there are."""
        return min(self.compute.parallel_seeds, len(self.seeds))

    @property
    def objective(self) -> str:
        """Name of the objective that the verdict sets against the first outcome."""
        return self.probe.objective or next(iter(OBJECTIVES[self.loop.kind]))

    @property
    def dynamics(self) -> GaussianEnsembleSettings:
        """Settings of the dynamics model, the default filled in."""
        if self.fit is not None:
            return self.fit
        chosen: GaussianEnsembleSettings = registry.parts("dynamics model")[0].settings()()  # type: ignore[assignment]
        return chosen

    @property
    def identity(self) -> str:
        """SHA-256 over all that can change a result: everything but where it is recorded and which seeds run."""
        return canonical_hash(self.model_dump(mode="json", exclude={"record", "seeds", "compute"}))

    def run_key(self, seed: int) -> str:
        """Deterministic identity of one run: the same experiment and seed always continue the same run."""
        return canonical_hash({"experiment": self.identity, "folder": self.folder_name, "seed": seed})

    @property
    def folder_name(self) -> str:
        """Name of the run folder: readable, and distinct for distinct experiments."""
        return f"{self.name}-{self.identity[:8]}"

    def check(self) -> None:
        """Everything that can be refused before launch but needs the task itself. Raises `InvalidExperiment`."""
        self.task.check()


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate an experiment file.

    Args:
        path: a YAML 1.2 file.
        overrides: dotted assignments such as ``fit.members=7``; values are YAML.

    Raises:
        InvalidExperiment: naming field, value and remedy; several problems are joined by newlines.
    """
    tree = read_yaml(Path(path))
    for text in overrides:
        assign(tree, *parse_override(text))
    return validate(tree)


def validate(tree: dict[str, Any]) -> Experiment:
    """Validate a plain tree, as parsed from YAML or JSON, into an experiment. Raises `InvalidExperiment`."""
    check_values(tree)
    try:
        return Experiment.model_validate(_as_tuples(tree))
    except ValidationError as error:
        raise explain(error, Experiment) from None


def _as_tuples(tree: Any) -> Any:
    """YAML has lists only, and strict tuples refuse them."""
    if isinstance(tree, dict):
        return {key: _as_tuples(value) for key, value in tree.items()}
    return tuple(_as_tuples(item) for item in tree) if isinstance(tree, list | tuple) else tree
