"""The experiment: one YAML file, validated into one frozen object that every runner takes.

Nothing here loads torch or Ray, so that a file is refused within a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from proxygap import registry
from proxygap.base.config import Settings, canonical_hash
from proxygap.base.errors import InvalidExperiment
from proxygap.collect.labels.settings import Labels
from proxygap.collect.settings import Collect
from proxygap.imagine.planners.settings import Planning
from proxygap.imagine.settings import Imagine
from proxygap.judge.settings import Judge
from proxygap.probe.catalog import FRONT_OUTCOMES, OBJECTIVES, OUTCOMES_OF
from proxygap.probe.settings import Probe
from proxygap.record.settings import Record
from proxygap.serve.settings import Hosting, Serve
from proxygap.yaml_file import assign, check_values, explain, parse_override, read_yaml

if TYPE_CHECKING:
    from proxygap.base.protocols import LanguageTask, Task
    from proxygap.collect.tasks.arms import Arms
    from proxygap.collect.tasks.bandit_lm import BanditLm
    from proxygap.collect.tasks.cartpole import ContinuousCartPole
    from proxygap.collect.tasks.composite_bandit_lm import CompositeBanditLm
    from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
    from proxygap.collect.tasks.mo_gymnasium_task import MoGymnasiumTask
    from proxygap.collect.tasks.multi_bandit_lm import MultiBanditLm
    from proxygap.collect.tasks.multi_sequence_lm import MultiSequenceLm
    from proxygap.collect.tasks.sequence_lm import SequenceLm
    from proxygap.collect.tasks.text_lm import TextLm
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
    from proxygap.fit.language.settings import LanguageModelSettings
    from proxygap.fit.reward.settings import CorrelatedProxies, Gold, MlpReward, TransformerReward
    from proxygap.fit.uncertainty.settings import DeupSettings, DisagreementSettings
    from proxygap.loops.data_settings import ExpertData, FileData, GridData, OnPolicyData, RandomData
    from proxygap.loops.model_settings import AdversarialModelLoop, ModelPopulationLoop
    from proxygap.loops.settings import (
        BestOfNLoop,
        LanguageRlLoop,
        MbpoLoop,
        PetsLoop,
        PpoLoop,
        PreferenceControlLoop,
        SacLoop,
        TiltLoop,
    )
    from proxygap.optimize.language.settings import Grpo, Reinforce, Rloo, TokenPpo
    from proxygap.optimize.ppo.settings import PpoSettings
    from proxygap.optimize.settings import SacSettings

    ControlTask: TypeAlias = GymnasiumTask | ContinuousCartPole | MoGymnasiumTask
    AnswerTask: TypeAlias = Arms | BanditLm | SequenceLm | TextLm | MultiBanditLm | MultiSequenceLm | CompositeBanditLm
    TaskPart: TypeAlias = ControlTask | AnswerTask
    DatasetPart: TypeAlias = RandomData | OnPolicyData | ExpertData | GridData | FileData
    FitPart: TypeAlias = GaussianEnsembleSettings
    UncertaintyPart: TypeAlias = DisagreementSettings | DeupSettings
    PolicyPart: TypeAlias = LanguageModelSettings
    ProxyPart: TypeAlias = MlpReward | TransformerReward | CorrelatedProxies | Gold
    LanguageOptimizer: TypeAlias = Rloo | Grpo | TokenPpo | Reinforce
    OptimizePart: TypeAlias = SacSettings | PpoSettings | LanguageOptimizer
    ControlLoop: TypeAlias = MbpoLoop | PetsLoop | SacLoop | PpoLoop | PreferenceControlLoop
    ModelLoop: TypeAlias = ModelPopulationLoop | AdversarialModelLoop
    LoopPart: TypeAlias = ControlLoop | ModelLoop | LanguageRlLoop | BestOfNLoop | TiltLoop
else:
    TaskPart = registry.union("task")
    DatasetPart = registry.union("dataset")
    FitPart = registry.union("dynamics model")
    UncertaintyPart = registry.union("uncertainty")
    PolicyPart = registry.union("language model")
    ProxyPart = registry.union("reward model")
    OptimizePart = registry.union("optimizer")
    LoopPart = registry.union("loop")


SELF_PACED = frozenset({"best_of_n", "tilt", "model_population", "adversarial_model"})
"""Loops that measure at every step of their own ladder."""


NOISY_REWARDS = frozenset({"sac", "mbpo", "pets"})
"""Loops that can meet noise on the rewards they learn from."""


class Compute(Settings):
    """What the process of the loop may use."""

    threads: PositiveInt = 1
    """Torch threads of the loop; more than the cores that are free makes it slower."""
    parallel_seeds: PositiveInt = 1
    """Seeds that run at the same time, each in a Ray actor of its own; 1 runs them one by one in this process."""
    cpus_per_seed: NonNegativeFloat = 1.0
    """CPUs reserved for each seed that runs in an actor."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the node of a seed's or a trial's process must have: the pool of the policies."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources reserved for each seed that runs in an actor."""
    runner_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources reserved per remote environment runner; RLlib places runners by resources, not by labels."""
    learner_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources reserved per remote Learner."""
    max_failures: NonNegativeInt = 3
    """Times in a row, without a new checkpoint between them, that a seed is taken up again from its newest checkpoint
    after a process or a node was lost. Errors of the experiment itself are never repeated."""


class Experiment(Settings):
    """A question, what is optimized, what is wanted, and everything needed to run it the same way again."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Short name: letters, digits, dot, dash, underscore. It names the run folder and the MLflow experiment."""
    question: str = Field(min_length=1, max_length=1000)
    """The question that the report answers, in one sentence."""
    task: TaskPart
    """What is to be done well."""
    outcomes: tuple[str, ...] = Field(min_length=1)
    """What is wanted, measured in the real environment or by the gold reward; the first one is set against the
    objective. An experiment without a declared outcome does not start; `proxygap list outcome` shows them all."""
    loop: LoopPart
    """The loop that improves the policy."""
    collect: Collect = Collect()
    """How real experience is gathered."""
    data: DatasetPart | None = None
    """Real experience that is there before the run, for loops that learn from data they are given."""
    expert: DatasetPart | None = None
    """Experience of an expert, for losses that ask how far from it a transition is; models are scored on it as well."""
    labels: Labels = Labels()
    """How preferences are asked for, for loops that learn a reward."""
    fit: FitPart | None = None
    """The dynamics model, for loops that use one. Default: the loop's own."""
    uncertainty: tuple[UncertaintyPart, ...] = ()
    """Estimates of where the dynamics model is wrong; measured is how well each ranks its true errors."""
    proxy: ProxyPart | None = None
    """The reward model that stands in for what is wanted, for loops that use one."""
    imagine: Imagine = Imagine()
    """Rollouts inside the model, for loops that use one."""
    plan: Planning = Planning()
    """How actions are searched for inside the model, for loops that plan."""
    judge: Judge = Judge()
    """How member scores become the reward that is optimized."""
    policy: PolicyPart | None = None
    """The language model that answers, and how its reference is made. Default: a table where answers can be listed."""
    optimize: OptimizePart | None = None
    """The optimizer of the policy. Default: the loop's own."""
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

    @model_validator(mode="before")
    @classmethod
    def _fill_optimizer(cls, tree: Any) -> Any:
        """Write the loop's own optimizer down, so that a recorded experiment says what ran."""
        kind = tree["loop"].get("kind") if isinstance(tree, dict) and isinstance(tree.get("loop"), dict) else None
        loop = next((part for part in registry.parts("loop") if part.kind == kind), None)
        own: tuple[str, ...] = getattr(loop.settings(), "optimizers", ()) if loop else ()
        chosen = tree.get("optimize") or {} if own else None
        return {**tree, "optimize": {"kind": own[0], **chosen}} if isinstance(chosen, dict) else tree

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: must be distinct and not negative; remove repeats and minus signs")
        self._parts_go_together()
        if self.probe.every is None:  # a recorded experiment says what ran
            object.__setattr__(self, "probe", self.probe.model_copy(update={"every": self.probe_every}))
        self._both_sides_are_measured()
        self._steps_fit()
        self._data_can_be_made()
        if (check := getattr(self.loop, "check", None)) is not None:
            check(self)
        return self

    def _parts_go_together(self) -> None:
        loop = self.loop
        if self.task.family != loop.family:
            fitting = ", ".join(part.kind for part in registry.parts("loop") if _family(part) == self.task.family)
            raise ValueError(
                f"loop.kind: {loop.kind!r} is for {loop.family} tasks, and {self.task.kind!r} is one of "
                f"{self.task.family}; choose one of {fitting}, or another task"
            )
        if self.optimize is not None and self.optimize.kind not in loop.optimizers:
            known = ", ".join(loop.optimizers) or "none: remove the section"
            raise ValueError(f"optimize.kind: {self.optimize.kind!r} is not for loop {loop.kind!r}; it takes {known}")
        if "reward" in loop.hosted and self.proxy is None:
            kinds = ", ".join(part.kind for part in registry.parts("reward model"))
            raise ValueError(f"proxy: loop {loop.kind!r} optimizes a proxy, and none is declared; add one of {kinds}")

        self._judge_can_judge()
        self._noise_can_be_met()

    def _noise_can_be_met(self) -> None:
        kinds = [part.kind for part in self.uncertainty]
        if kinds and ("dynamics" not in self.loop.hosted or self.loop.kind in SELF_PACED):
            raise ValueError(
                f"uncertainty: loop {self.loop.kind!r} has no dynamics model that is refitted while it learns; remove "
                "the section, or use loop mbpo or pets"
            )
        if len(set(kinds)) < len(kinds):
            raise ValueError("uncertainty: a kind is named twice; remove the repeats")
        noise, task = self.collect.reward_noise.kind, cast("Any", self.task)
        if noise != "none" and (self.loop.kind not in NOISY_REWARDS or task.components):
            raise ValueError(
                f"collect.reward_noise.kind: {noise!r} is for loops that learn from the one reward of their experience "
                f"({', '.join(sorted(NOISY_REWARDS))}); choose none"
            )

    def _judge_can_judge(self) -> None:
        member, members = getattr(self.judge.aggregate, "member", 0), getattr(self.proxy, "members", None)
        if members is not None and member >= members:
            raise ValueError(
                f"judge.aggregate.member: {member} is not one of proxy.members = {members}; the first is member 0"
            )
        kinds = ", ".join(transform.kind for transform in self.judge.transforms)
        if self.judge.needs_confidence:
            raise ValueError(
                f"judge.transforms: {kinds} need answers that state a confidence, and task {self.task.kind!r} has "
                "none; remove ppo_c"
            )

    def _both_sides_are_measured(self) -> None:
        outcomes, objectives = OUTCOMES_OF[self.loop.family] | FRONT_OUTCOMES, OBJECTIVES[self.loop.kind]
        for name in self.outcomes:
            if name not in outcomes:
                raise ValueError(f"outcomes: unknown outcome {name[:40]!r}; known: {', '.join(outcomes)}")
        if len(set(self.outcomes)) < len(self.outcomes):
            raise ValueError("outcomes: one of them is named twice; remove the repeats")
        if self.objective not in objectives:
            raise ValueError(
                f"probe.objective: loop {self.loop.kind!r} does not measure {self.objective[:60]!r}; "
                f"it measures {', '.join(objectives)}"
            )

    def _steps_fit(self) -> None:
        if self.loop.kind in SELF_PACED:
            return
        if self.probe_every > self.loop.real_steps:
            raise ValueError(
                f"probe.every: {self.probe_every} exceeds loop.real_steps = {self.loop.real_steps}, so nothing would "
                "be measured; lower probe.every"
            )
        for field, steps in (("loop.real_steps", self.loop.real_steps), ("probe.every", self.probe_every)):
            if steps % self.steps_per_sample:
                raise ValueError(
                    f"{field}: {steps} is not a multiple of the {self.steps_per_sample} real steps that "
                    f"{self._what_a_sample_is()}"
                )

    def _data_can_be_made(self) -> None:
        for name, dataset in self.datasets.items():
            if self.loop.family != "control":
                raise ValueError(f"{name}: tasks of {self.loop.family} have no transitions; remove the section")
            dataset.check(self, name)

    def _what_a_sample_is(self) -> str:
        if self.loop.family == "language":
            return "one iteration takes; change it, or optimize.prompts_per_iteration, optimize.answers_per_prompt"
        return (
            "all environments take together; change it, or collect.envs_per_runner, collect.env_runners, "
            "loop.steps_per_sample"
        )

    @property
    def steps_per_sample(self) -> int:
        """Real steps taken between two calls of the Learner."""
        if self.loop.family == "language":
            chosen: Any = self.optimize
            return 1 if chosen is None else int(chosen.prompts_per_iteration * chosen.answers_per_prompt)
        environments = max(1, self.collect.env_runners) * self.collect.envs_per_runner
        return environments * int(getattr(self.loop, "steps_per_sample", 1))

    @property
    def probe_every(self) -> int:
        """Real steps between two evaluations, the default filled in."""
        if self.probe.every is not None:
            return self.probe.every
        if self.loop.family == "control" and self.steps_per_sample <= 250:
            return 250
        samples = self.loop.real_steps // self.steps_per_sample
        return self.steps_per_sample * max(1, -(-samples // 48))

    @property
    def outcome_samples(self) -> float:
        """Episodes or answers that an evaluation's mean outcome is taken over."""
        if self.loop.family == "control":
            return self.probe.episodes
        task: Any = self.task
        return float(self.probe.answers * len(task.prompt_tokens()))

    @property
    def parallel_seeds(self) -> int:
        """Seeds that run at the same time: never more than there are."""
        return min(self.compute.parallel_seeds, len(self.seeds))

    @property
    def objective(self) -> str:
        """Name of the objective that the verdict sets against the first outcome."""
        known = OBJECTIVES[self.loop.kind]
        own = "proxy_return" if self.components and "proxy_return" in known else next(iter(known))
        return self.probe.objective or own

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the rewards that the optimizer is given apart; empty where it is given one."""
        task: Any = self.task
        return () if self.judge.combine is not None else tuple(task.components)

    @property
    def notices(self) -> tuple[str, ...]:
        """What should be known before the start, in sentences: above all parts that can do nothing here."""
        if not self.components:
            return ()
        normalizes: str = getattr(self.optimize, "normalizes", "")
        return tuple(self.judge.weighting.notices(names=self.components, normalizes=normalizes))

    @property
    def dynamics(self) -> GaussianEnsembleSettings:
        """Settings of the dynamics model, the default filled in."""
        if self.fit is not None:
            return self.fit
        chosen: GaussianEnsembleSettings = registry.parts("dynamics model")[0].settings()()  # type: ignore[assignment]
        return chosen

    @property
    def control_task(self) -> Task:
        """The task, where the loop is one of control."""
        task: Any = self.task
        return task  # type: ignore[no-any-return]

    def language_task(self, seed: int) -> LanguageTask:
        """The task of one run, where the loop is one of language: its truth may follow the seed."""
        task: Any = self.task
        return task.for_seed(seed)  # type: ignore[no-any-return]

    @property
    def language_model(self) -> LanguageModelSettings:
        """Settings of the language model, the default filled in: a table where each answer is one token."""
        if self.policy is not None:
            return self.policy
        task: Any = self.task
        kind = "table" if task.item_spec.max_tokens == 1 and task.end_token is None else "tiny_transformer"
        part = next(part for part in registry.parts("language model") if part.kind == kind)
        # a hidden state as wide as there are prompts lets a value head know each of them
        width = {"hidden_width": max(16, len(task.prompt_tokens()))} if kind == "table" else {}
        chosen: LanguageModelSettings = part.settings()(**width)  # type: ignore[assignment]
        return chosen

    @property
    def datasets(self) -> dict[str, DatasetPart]:
        """Datasets that are made before the run, by their section."""
        named = {"data": self.data, "expert": self.expert, **getattr(self.loop, "datasets", {})}
        return {name: chosen for name, chosen in named.items() if chosen is not None}

    @property
    def hostings(self) -> dict[str, Hosting]:
        """Where the loop's models live, by the names of the ``serve`` section."""
        return {name: getattr(self.serve, name) for name in self.loop.hosted}

    @property
    def needs_ray(self) -> bool:
        """Whether anything runs on Ray: RLlib, hosts, or seeds in actors."""
        hosts = sum(hosting.hosts for hosting in self.hostings.values())
        return self.loop.kind not in SELF_PACED or hosts > 0 or self.seeds_in_actors

    @property
    def seeds_in_actors(self) -> bool:
        """Whether seeds run in actors: several at a time, or on nodes that the experiment chooses."""
        return self.parallel_seeds > 1 or bool(self.compute.labels or self.compute.resources)

    @property
    def learners(self) -> tuple[int, float]:
        """Remote Learners, and GPUs of each."""
        chosen: Any = self.optimize
        return (0, 0.0) if chosen is None else (chosen.learners, chosen.gpus_per_learner)

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
        """Everything that can be refused before launch but needs the task, its data or its models themselves.

        Raises:
            InvalidExperiment: an unknown task, a package or a model directory that is not there, parts that do not fit.
            InvalidDataset: a file of labels that cannot be used.
            CheckpointRefused: a model directory with weights that are missing or do not fit.
        """
        from proxygap.checks import check

        check(self)


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate an experiment file.

    Args:
        path: a YAML 1.2 file.
        overrides: dotted assignments such as ``fit.members=7``; values are YAML.

    Raises:
        InvalidExperiment: naming field, value and remedy; several problems are joined by newlines.
    """
    tree = read_yaml(Path(path))
    refuse_sweep(tree)
    if "variants" in tree:
        raise InvalidExperiment(
            "describes several experiments",
            field="variants",
            remedy="Load them with proxygap.study.load_study, or choose one with --variant",
        )
    for text in overrides:
        assign(tree, *parse_override(text))
    return validate(tree)


def refuse_sweep(tree: Mapping[str, Any]) -> None:
    """Raise `InvalidExperiment` for a file that is to be swept."""
    if "sweep" in tree:
        raise InvalidExperiment(
            "searches over settings", field="sweep", remedy="Use `proxygap sweep FILE`, or remove the section"
        )


def validate(tree: dict[str, Any]) -> Experiment:
    """Validate a plain tree, as parsed from YAML or JSON, into an experiment. Raises `InvalidExperiment`."""
    check_values(tree)
    try:
        return Experiment.model_validate(_as_tuples(tree))
    except ValidationError as error:
        raise explain(error, Experiment) from None


def _family(part: registry.Part) -> str:
    return str(getattr(part.settings(), "family", "control"))


def _as_tuples(tree: Any) -> Any:
    """YAML has lists only, and strict tuples refuse them."""
    if isinstance(tree, dict):
        return {key: _as_tuples(value) for key, value in tree.items()}
    return tuple(_as_tuples(item) for item in tree) if isinstance(tree, list | tuple) else tree
