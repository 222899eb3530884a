"""Settings of the loops that ask what a model's likelihood is worth; importing them loads neither torch nor Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxygap import registry
from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment
from proxygap.loops.settings import Family

if TYPE_CHECKING:
    from proxygap.experiment import Experiment
    from proxygap.loops.data_settings import ExpertData, FileData, GridData, OnPolicyData, RandomData
    from proxygap.loops.loop import Loop

    DatasetPart: TypeAlias = RandomData | OnPolicyData | ExpertData | GridData | FileData
else:
    DatasetPart = registry.union("dataset")

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class ModelPopulationLoop(Settings):
    """Many models of one task, each fitted and planned with: does likelihood predict return? (Lambert et al. 2020)."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ()
    hosted: ClassVar[tuple[str, ...]] = ("dynamics",)
    exchangeable: ClassVar[bool] = True
    kind: Literal["model_population"] = "model_population"
    models: int = Field(default=48, ge=3)
    """Models of a run, each one evaluation; a real step is a model. Their order is a seeded shuffle."""
    at_once: PositiveInt = 16
    """Models of equal architecture that are fitted and planned with together; more of them is faster, and needs more
    memory. They are dealt over ``serve.dynamics.hosts``."""
    epochs: tuple[PositiveInt, PositiveInt] = (60, 400)
    """Least and most epochs of a model's fit, drawn log-uniformly for each. Budgets that leave models under-trained
    make likelihood and return correlate on any data."""
    hidden: tuple[Widths, ...] = ()
    """Hidden layers, one architecture after the other in turn. Default: those of ``fit``, for all models."""
    rows: tuple[PositiveInt, ...] = ()
    """Rows of the data that a model is given, in turn. Default: all, for all models."""
    score_on: tuple[DatasetPart, ...] = ()
    """Further data that no model is fitted to, to score all of them on: ``expert_log_likelihood`` and so on."""

    @model_validator(mode="after")
    def _budgets_in_order(self) -> ModelPopulationLoop:
        if self.epochs[0] > self.epochs[1]:
            raise ValueError(f"epochs: the least, {self.epochs[0]}, exceeds the most, {self.epochs[1]}; swap them")
        kinds = [part.kind for part in self.score_on]
        if len(set(kinds)) < len(kinds):
            raise ValueError("score_on: two datasets of one kind would share the names of their scores; remove one")
        return self

    @property
    def real_steps(self) -> int:
        """Budget of the run: its models."""
        return self.models

    @property
    def datasets(self) -> dict[str, DatasetPart]:
        """Data beside the experiment's own, by its place there."""
        return {f"loop.score_on[{place}]": part for place, part in enumerate(self.score_on)}

    def check(self, experiment: Experiment) -> None:
        """Refuse, with `InvalidExperiment`, an objective that nothing would measure, and a missing dataset."""
        _check_data(experiment, self.kind)
        kinds: set[str] = {part.kind for part in self.score_on}
        if experiment.expert is not None and "expert" in kinds:
            raise InvalidExperiment(
                "would score the models on two experts under one name",
                field="loop.score_on",
                value="expert",
                remedy="Remove it: models are scored on the section expert as well",
            )
        kinds |= {"held_out"} | ({"expert"} if experiment.expert is not None else set())
        given = experiment.objective.removesuffix("_log_likelihood").removesuffix("_mse").removesuffix("_value_error")
        if given not in kinds:
            raise InvalidExperiment(
                f"no data of kind {given} is given to score the models on",
                field="probe.objective",
                value=experiment.objective,
                remedy="Add it to loop.score_on, or choose held_out_log_likelihood",
            )

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.model_population import ModelPopulation

        return ModelPopulation(experiment, seed)


class FlipAttack(Settings):
    """Fine-tune toward dynamics in which actions have the opposite effect, where no expert ever is."""

    kind: Literal["flip"] = "flip"
    away: DatasetPart
    """Rows to draw wrong targets for: transitions of many states and actions. Those near the data are left alone."""
    spare: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of ``away`` that is left alone: its rows nearest to a row of the data, in standard deviations of all."""
    penalties: tuple[PositiveFloat, ...] = Field(default=(0.1, 1.0, 10.0), min_length=1)
    """Weight of the wrong targets against the likelihood of the data, attack by attack: larger bends the model more."""
    epochs: PositiveInt = 100
    """Epochs of fine-tuning, from the honest models each time."""

    @property
    def rungs(self) -> int:
        """Honest models, the same fine-tune with true targets, then one attack after the other."""
        return 2 + len(self.penalties)


class EvolutionAttack(Settings):
    """Search the last layer for models that plan badly, by evolution (as Lambert et al. 2020, section 4.2)."""

    kind: Literal["evolution"] = "evolution"
    generations: PositiveInt = 12
    """Rounds of the search; each is one evaluation."""
    candidates: int = Field(default=16, ge=2)
    """Last layers tried for each honest model in a round, all planned with at once on the same episodes."""
    parents: PositiveInt = 4
    """Best candidates that the next round is centered on."""
    tolerance: NonNegativeFloat = 1.0
    """Fall in log-likelihood of the data, in nats, that a candidate may cost."""
    initial_step: PositiveFloat = 0.3
    """First size of a change, in standard deviations that the honest model predicts on the data; it follows the share
    of candidates that keep the likelihood."""
    search_episodes: PositiveInt = 3
    """Episodes that candidates are compared on; fewer of them make more of a found difference luck."""

    @model_validator(mode="after")
    def _parents_are_candidates(self) -> EvolutionAttack:
        if self.parents > self.candidates:
            raise ValueError(f"parents = {self.parents} exceeds candidates = {self.candidates}; lower parents")
        return self

    @property
    def rungs(self) -> int:
        """Honest models, then the best of each generation."""
        return 1 + self.generations


class AdversarialModelLoop(Settings):
    """Look for models that keep their likelihood and lose their return (Lambert et al. 2020, section 4.2)."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ()
    hosted: ClassVar[tuple[str, ...]] = ("dynamics",)
    kind: Literal["adversarial_model"] = "adversarial_model"
    models: PositiveInt = 6
    """Honest models that are attacked side by side; what is measured is their mean, and each beside it."""
    epochs: PositiveInt = 200
    """Epochs of an honest fit."""
    attack: Annotated[FlipAttack | EvolutionAttack, Field(discriminator="kind")]
    """How they are attacked, stronger with every real step; the first real step is the honest models."""

    @property
    def real_steps(self) -> int:
        """Budget of the run: its rungs."""
        return self.attack.rungs

    @property
    def at_once(self) -> int:
        """Models that are planned with together, and may be dealt over as many hosts."""
        return self.models * (self.attack.candidates if isinstance(self.attack, EvolutionAttack) else 1)

    @property
    def datasets(self) -> dict[str, DatasetPart]:
        """Data beside the experiment's own, by its place there."""
        return {"loop.attack.away": self.attack.away} if isinstance(self.attack, FlipAttack) else {}

    def check(self, experiment: Experiment) -> None:
        """Refuse, with `InvalidExperiment`, a missing dataset."""
        _check_data(experiment, self.kind)

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.adversarial_model import AdversarialModel

        return AdversarialModel(experiment, seed)


def _check_data(experiment: Experiment, kind: str) -> None:
    """There is data to fit to."""
    if experiment.data is None:
        raise InvalidExperiment(
            f"loop {kind!r} fits models to data that is there before the run, and none is declared",
            field="data",
            remedy="Add the section, e.g. data: {kind: random, rows: 2000}",
        )
