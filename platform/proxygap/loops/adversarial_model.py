"""Models that keep their likelihood on an expert's data and lose their return: how little likelihood promises.

Source: Lambert et al. 2020 (2002.04523), section 4.2. The first rung measures honest models, every further one what an
attack made of them: both sides on rows and episodes that no fit and no search has seen. Attacks:

- ``flip``: fine-tune toward the honest models' own prediction for the opposite action, where the data never is; with
  the true targets in its place this is the control, the second rung;
- ``evolution``: (mu, lambda) evolution of the last layer, all candidates planned with at once under common random
  numbers. What the search believes to have found is measured beside what it is worth on other episodes.

Shape legend: Q honest models, R rungs, N rows, T predicted targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import State
from proxygap.loops.attacks import Evolution, Flip, one
from proxygap.loops.given_data import GivenData
from proxygap.loops.model_data import ModelData, model_data
from proxygap.loops.model_settings import AdversarialModelLoop, EvolutionAttack
from proxygap.probe.outcome import outcome_measurements
from proxygap.serve.model_block import Architecture
from proxygap.serve.population import EVALUATED, evaluations

if TYPE_CHECKING:
    from proxygap.base.records import Float32, Transitions
    from proxygap.experiment import Experiment


class AdversarialModel(GivenData):
    """The loop of one run. Its state: the honest models, the search, and what was found of each rung."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        assert isinstance(experiment.loop, AdversarialModelLoop)
        super().__init__(experiment, seed, experiment.loop.at_once)
        self.settings, attack = experiment.loop, experiment.loop.attack
        self.honest: State | None = None
        self.attack: Flip | Evolution = (
            Evolution(self, attack) if isinstance(attack, EvolutionAttack) else Flip(self, attack)
        )

    def make_data(self) -> ModelData:
        """The data, and no other to score on."""
        return model_data(self.experiment, self.seed, self.tell)

    @property
    def have(self) -> Architecture:
        """The honest models, and what becomes of them."""
        return Architecture(tuple(range(self.settings.models)), self.experiment.dynamics.hidden)

    def train(self) -> None:
        """Climb to the next rung: make its models, score them and plan with them."""
        rung = self.clocks.iteration
        updates = self.attack.climb(rung)
        scores = self.population.score(self.data.held_out)
        evaluated = self.population.evaluate(self.seed, self.experiment.probe.episodes)
        self.note_rung(rung, {"log_likelihood": scores.log_likelihood_Q, "mse": scores.mse_Q, **evaluated})
        self.clocks = self.clocks.tick(iteration=1, real_step=1, model_update=updates)

    def fit(self, rows: Transitions, epochs: int, weight_NT: Float32 | None, *, fresh: bool) -> int:
        """Train all models alike; updates of each."""
        epochs_Q = np.full(self.settings.models, epochs, np.int64)
        return int(self.population.fit(self.have, rows, epochs_Q, weight_NT, fresh=fresh).updates_Q[0])

    def note_rung(self, rung: int, found: Mapping[str, NDArray[Any]]) -> None:
        """Keep what was found of a rung's models, one by one."""
        self.note([rung], self.settings.real_steps, {name: values[None] for name, values in found.items()})

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides of this rung's models, on what no fit and no search has seen; their mean, then each."""
        rung, task = self.clocks.iteration - 1, self.experiment.control_task
        evaluation = evaluations({name: array[rung] for name, array in self.found.items() if name in EVALUATED})
        outcomes = outcome_measurements(self.experiment.outcomes, evaluation, task.components)
        likelihood_RQ, mse_RQ = self.found["log_likelihood"], self.found["mse"]
        return_RQ = self.found["outcome_return"].mean(axis=-1)
        measured = (
            one("held_out_log_likelihood", likelihood_RQ[rung].mean(), Side.OBJECTIVE, "nats", Direction.HIGHER),
            one("held_out_mse", mse_RQ[rung].mean(), Side.OBJECTIVE, "", Direction.LOWER),
            one("return_lost", return_RQ[0].mean() - return_RQ[rung].mean(), Side.GAP, "reward", Direction.LOWER),
            one("likelihood_lost", likelihood_RQ[0].mean() - likelihood_RQ[rung].mean(), Side.GAP, "nats"),
        )
        each = [
            measurement
            for model in self.have.models
            for measurement in (
                one(f"return/{model:02d}", return_RQ[rung, model], Side.MODEL, "reward", Direction.HIGHER),
                one(f"log_likelihood/{model:02d}", likelihood_RQ[rung, model], Side.MODEL, "nats", Direction.HIGHER),
            )
        ]
        return (*outcomes, *measured, *self.attack.measurements(rung), *each)

    def parts(self) -> dict[str, State]:
        """The complete state."""
        honest = {} if self.honest is None else {"honest": self.honest}
        return {**super().parts(), "attack": self.attack.state(), **honest}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        super().load_parts(parts)
        self.honest = parts.get("honest")
        self.attack.load_state(parts["attack"])
