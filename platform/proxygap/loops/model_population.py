"""Many models of one task, each fitted and planned with: is the better likelihood the better return?

Source: Lambert et al. 2020, "Objective Mismatch in Model-based Reinforcement Learning" (2002.04523), section 4.1. Every
model of the population is one evaluation of the run, so that the run's own correlation is the one across models.

Models are fitted, scored and planned with in blocks of equal architecture, the first time that one of them has its
turn; what was found stays in the run's state, and the networks do not.

Shape legend: P models of the population, Q of them in a block, E episodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import unknown_laws
from proxygap.base.seeds import derived_seed, generator
from proxygap.imagine.law import LawModel
from proxygap.imagine.planning import PlanningPolicy
from proxygap.loops.given_data import GivenData
from proxygap.loops.model_data import ModelData, model_data
from proxygap.loops.model_settings import ModelPopulationLoop
from proxygap.loops.model_side import effective_share
from proxygap.probe.outcome import Evaluator, outcome_measurements
from proxygap.serve.model_block import Architecture
from proxygap.serve.population import EVALUATED, evaluations

if TYPE_CHECKING:
    from proxygap.experiment import Experiment


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one model is made."""

    hidden: tuple[int, ...]
    rows: int | None
    epochs: int

    @property
    def block(self) -> tuple[tuple[int, ...], int]:
        """What models of one block have in common."""
        return self.hidden, self.rows or 0


def recipes(loop: ModelPopulationLoop, hidden: tuple[int, ...], seed: int) -> list[Recipe]:
    """Of every model, by its number: widths and rows in turn, and a budget of its own, even in its logarithm."""
    rng = generator(seed, "population/epochs")
    low, high = math.log(loop.epochs[0]), math.log(loop.epochs[1] + 1)
    epochs_P = np.exp(rng.uniform(low, high, loop.models)).astype(np.int64).clip(*loop.epochs)
    widths, rows = loop.hidden or (hidden,), loop.rows or (None,)
    return [
        Recipe(widths[model % len(widths)], rows[model // len(widths) % len(rows)], int(epochs))
        for model, epochs in enumerate(epochs_P)
    ]


def blocks(made: list[Recipe], at_once: int) -> list[tuple[int, ...]]:
    """Numbers of the models that are handled together: of equal architecture and data, ascending."""
    kinds = dict.fromkeys(recipe.block for recipe in made)
    alike = [[model for model, recipe in enumerate(made) if recipe.block == kind] for kind in kinds]
    return [tuple(models[first : first + at_once]) for models in alike for first in range(0, len(models), at_once)]


class ModelPopulation(GivenData):
    """The loop of one run; networks are not part of its state, because nothing is asked of them twice."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        assert isinstance(experiment.loop, ModelPopulationLoop)
        super().__init__(experiment, seed, experiment.loop.at_once)
        self.settings = experiment.loop
        self.recipes = recipes(self.settings, experiment.dynamics.hidden, seed)
        self.blocks = blocks(self.recipes, self.settings.at_once)
        self.order = generator(seed, "population/order").permutation(self.settings.models).tolist()

    def make_data(self) -> ModelData:
        """The data, and what the models are scored on elsewhere."""
        score_on, shuffle = self.settings.score_on, bool(self.settings.rows)
        return model_data(self.experiment, self.seed, self.tell, score_on=score_on, shuffle=shuffle)

    @property
    def model(self) -> int:
        """Number of the model whose turn it is."""
        return int(self.order[self.clocks.iteration - 1])

    def train(self) -> None:
        """Go on to the next model; fit, score and plan with its block where that was not done yet."""
        if "ceiling" not in self.found:
            self.found["ceiling"] = self._ceiling()
        model = int(self.order[self.clocks.iteration])
        if not self._known(model):
            self._try(next(block for block in self.blocks if model in block))
        updates = int(self.found["updates"][model])
        self.clocks = self.clocks.tick(iteration=1, real_step=1, model_update=updates)

    def _known(self, model: int) -> bool:
        return "updates" in self.found and bool(self.found["updates"][model] >= 0)  # NaN where its turn has not come

    def _try(self, block: tuple[int, ...]) -> None:
        """Fit a block, score it on all data, and plan with it in the real environment."""
        first, data, population = self.recipes[block[0]], self.data, self.population
        part = slice(first.rows)
        epochs_Q = np.array([self.recipes[model].epochs for model in block], np.int64)
        weight_NT = None if data.weight_NT is None else data.weight_NT[part]
        fitted = population.fit(Architecture(block, first.hidden), data.rows[part], epochs_Q, weight_NT)
        found = dict(population.evaluate(self.seed, self.experiment.probe.episodes))
        for name, rows in data.scored.items():
            scores = population.score(rows, data.value_gradient(rows))
            found[f"{name}_log_likelihood"] = scores.log_likelihood_Q
            found[f"{name}_log_likelihood_member_mean"] = scores.member_mean_Q
            found[f"{name}_mse"] = scores.mse_Q
            if scores.value_error_Q is not None:
                found[f"{name}_value_error"] = scores.value_error_Q
        found.update(epochs=fitted.epochs_Q, updates=fitted.updates_Q)
        found["rows"] = np.full(len(block), len(data.rows[part]), np.int64)
        if weight_NT is not None:
            found["weight_ess"] = np.full(len(block), effective_share(weight_NT))
        self.note(block, self.settings.models, found)
        self.tell("fitted", {"models": list(block), "hidden": list(first.hidden)})

    def _ceiling(self) -> NDArray[np.float64]:
        """What the same planner earns on the task's own law, in the same episodes, (E,); empty where none is known."""
        task = self.experiment.control_task
        if unknown_laws(task):
            return np.empty(0)
        evaluator = Evaluator(task, self.seed, self.experiment.probe.episodes)
        planner_seed = derived_seed(self.seed, "evaluate/plan")
        try:
            policy = PlanningPolicy(LawModel(task), task, self.experiment.plan, members=(0,), seed=planner_seed)
            return evaluator.evaluate(policy).outcome_return_E
        finally:
            evaluator.close()

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides of the model whose turn it is."""
        model, task = self.model, self.experiment.control_task
        evaluation = evaluations({name: self.found[name] for name in EVALUATED}, [model])
        outcomes = outcome_measurements(self.experiment.outcomes, evaluation, task.components)
        return (*outcomes, *self._objectives(model), *self._of_model(model), *self._below_ceiling(evaluation))

    def _objectives(self, model: int) -> list[Measurement]:
        """On every data; likelihoods in nats per transition, errors in units of that data's variance or of value."""
        kinds = {"_log_likelihood": ("nats", Direction.HIGHER), "_mse": ("", Direction.LOWER)}
        kinds["_value_error"] = ("reward^2", Direction.LOWER)
        kinds["_log_likelihood_member_mean"] = kinds["_log_likelihood"]
        return [
            Measurement(name, float(self.found[name][model]), Side.OBJECTIVE, *kind)
            for name in sorted(self.found)
            for ending, kind in kinds.items()
            if name.endswith(ending)
        ]

    def _of_model(self, model: int) -> list[Measurement]:
        """How its likelihood came about: budget, capacity, data."""
        recipe = self.recipes[model]
        facts = {
            "number": (model, ""),
            "epochs": (self.found["epochs"][model], "epochs"),
            "updates": (self.found["updates"][model], "updates"),
            "width": (max(recipe.hidden), ""),
            "layers": (len(recipe.hidden), ""),
            "rows": (self.found["rows"][model], "rows"),
        }
        if "weight_ess" in self.found:
            facts["weight_ess"] = (self.found["weight_ess"][model], "")
        return [Measurement(name, float(value), Side.MODEL, unit) for name, (value, unit) in facts.items()]

    def _below_ceiling(self, evaluation: Any) -> list[Measurement]:
        """The best that planning can do, and how far the model stays below it."""
        ceiling_E = self.found["ceiling"]
        if not len(ceiling_E):
            return []
        lost = float(ceiling_E.mean() - evaluation.outcome_return_E.mean())
        return [
            Measurement("ceiling_return", float(ceiling_E.mean()), Side.MODEL, "reward", Direction.HIGHER),
            Measurement("below_ceiling", lost, Side.GAP, "reward", Direction.LOWER),
        ]
