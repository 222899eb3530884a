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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import State
from proxygap.loops.attacks import Evolution, Flip, one
from proxygap.loops.model_data import ModelData, model_data, room
from proxygap.loops.model_settings import AdversarialModelLoop, EvolutionAttack
from proxygap.probe.outcome import outcome_measurements
from proxygap.serve.model_block import Architecture
from proxygap.serve.population import EVALUATED, evaluations

if TYPE_CHECKING:
    from proxygap.base.records import Float32, Transitions
    from proxygap.experiment import Experiment


class AdversarialModel:
    """The loop of one run. Its state: the honest models, the search, and what was found of each rung."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        assert isinstance(experiment.loop, AdversarialModelLoop)
        self.experiment, self.seed, self.settings = experiment, seed, experiment.loop
        self.clocks, self.learned, self.weights = Clocks(), dict[str, float](), dict[str, float]()
        self.events: list[tuple[str, dict[str, Any]]] = []
        attack = self.settings.attack
        self.population = room(experiment, seed, self.settings.at_once, self.tell)
        self.honest: State | None = None
        self.found: dict[str, NDArray[Any]] = {}
        self.attack: Flip | Evolution = (
            Evolution(self, attack) if isinstance(attack, EvolutionAttack) else Flip(self, attack)
        )
        self._data: ModelData | None = None

    def tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Something happened."""
        self.events.append((kind, dict(detail)))

    @property
    def data(self) -> ModelData:
        """Made when it is first needed."""
        if self._data is None:
            self._data = model_data(self.experiment, self.seed, self.tell)
        return self._data

    @property
    def have(self) -> Architecture:
        """The honest models, and what becomes of them."""
        return Architecture(tuple(range(self.settings.models)), self.experiment.dynamics.hidden)

    def train(self) -> None:
        """Climb to the next rung: make its models, score them and plan with them."""
        rung = self.clocks.iteration
        updates = self.attack.climb(rung)
        scores = self.population.score(self.data.held_out)
        self.note(rung, "log_likelihood", scores.log_likelihood_Q)
        self.note(rung, "mse", scores.mse_Q)
        for name, values in self.population.evaluate(self.seed, self.experiment.probe.episodes).items():
            self.note(rung, name, values)
        self.clocks = self.clocks.tick(iteration=1, real_step=1, model_update=updates)

    def fit(self, rows: Transitions, epochs: int, weight_NT: Float32 | None, *, fresh: bool) -> int:
        """Train all models alike; updates of each."""
        epochs_Q = np.full(self.settings.models, epochs, np.int64)
        return int(self.population.fit(self.have, rows, epochs_Q, weight_NT, fresh=fresh).updates_Q[0])

    def note(self, rung: int, name: str, values: NDArray[Any]) -> None:
        """Keep what was found of a rung."""
        if name not in self.found:
            empty = -1 if np.issubdtype(values.dtype, np.integer) else np.nan
            self.found[name] = np.full((self.settings.real_steps, *values.shape), empty, values.dtype)
        self.found[name][rung] = values

    @property
    def measure_due(self) -> bool:
        """Always: every step is a rung."""
        return True

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

    def keep(self, folder: Path, provenance: Mapping[str, str]) -> None:
        """Nothing beside the measurements: the data is kept where it was made."""

    def parts(self) -> dict[str, State]:
        """The complete state."""
        honest = {} if self.honest is None else {"honest": self.honest}
        found = State({name: value.copy() for name, value in self.found.items()}, {})
        loop = State({}, {"clocks": self.clocks.as_dict()})
        return {"loop": loop, "found": found, "attack": self.attack.state(), **honest}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        self.clocks = Clocks(**parts["loop"].structure["clocks"])
        self.found = {name: np.array(value) for name, value in parts["found"].arrays.items()}
        self.honest = parts.get("honest")
        self.attack.load_state(parts["attack"])

    def stop(self) -> None:
        """Release the hosts."""
        self.population.close()
