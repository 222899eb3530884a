"""What the models of a run are fitted to and scored on: data that is there before them, made once.

Shape legend: N rows, T predicted targets, I inputs (observation and action).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.protocols import FitContext
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.sizes import target_count
from proxygap.fit.dynamics.training import is_held_out
from proxygap.loops.datasets import dataset
from proxygap.loops.values import QuadraticValue
from proxygap.serve.population import Population

if TYPE_CHECKING:
    from proxygap.base.records import Bool, Float32
    from proxygap.experiment import Experiment
    from proxygap.loops.model_settings import DatasetPart

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class ModelData:
    """The data of one run.

    Args:
        rows: all that models are fitted to; some of it is held out of every fit.
        held_out_N: which rows are never trained on.
        weight_NT: what the dynamics loss gives the rows; None where it weighs all alike.
        elsewhere: rows of other data that models are scored on, by its kind.
        value: of a state; None where the task's law is not known, or rests nowhere.
    """

    rows: Transitions
    held_out_N: Bool
    weight_NT: Float32 | None
    elsewhere: Mapping[str, Transitions]
    value: QuadraticValue | None

    @property
    def held_out(self) -> Transitions:
        """Rows of the data that no fit trains on."""
        return self.rows[self.held_out_N]

    @property
    def trained_on(self) -> Transitions:
        """The other rows."""
        return self.rows[~self.held_out_N]

    @property
    def scored(self) -> dict[str, Transitions]:
        """Rows to score models on, by the name before ``_log_likelihood`` and ``_mse``."""
        return {"held_out": self.held_out, **self.elsewhere}

    def value_gradient(self, rows: Transitions) -> Float32 | None:
        """Of the value at the rows' next observations (N, O), where there is a value."""
        if self.value is None:
            return None
        return np.asarray(self.value.value_gradient(torch.from_numpy(rows.next_obs_BO.copy())).numpy())


def model_data(
    experiment: Experiment, seed: int, tell: Tell, *, score_on: tuple[DatasetPart, ...] = (), shuffle: bool = False
) -> ModelData:
    """Make, or find, the data of one run.

    Where the models are to be scored on the very data that they are fitted to, it is the rows held out of it.

    Args:
        experiment: its sections ``data`` and ``expert``.
        seed: of the run.
        tell: told ``dataset`` with the lineage of each.
        score_on: further data to score on.
        shuffle: whether episodes are put in a seeded order, so that the first rows stand for all.
    """
    assert experiment.data is not None, "the experiment was checked"
    lived, own = dataset(experiment, experiment.data, seed, tell)
    rows = _shuffled(lived, seed) if shuffle else lived
    held_out_N = is_held_out(seed, np.arange(len(rows), dtype=np.int64), experiment.dynamics.held_out)
    expert, elsewhere = None, dict[str, Transitions]()
    asked = [("", part) for part in score_on] + ([] if experiment.expert is None else [("expert", experiment.expert)])
    for name, part in asked:
        found, lineage = dataset(experiment, part, seed, tell)
        elsewhere[name or part.kind] = rows[held_out_N] if lineage.key == own.key else found
        expert = found if name else expert
    value = _value(experiment)
    return ModelData(rows, held_out_N, _weights(experiment, rows, expert, value), elsewhere, value)


def room(experiment: Experiment, seed: int, at_once: int, tell: Tell) -> Population:
    """Room for a block of models, in this process or on hosts; each is fitted for exactly its budget."""
    return Population(
        experiment.control_task,
        experiment.dynamics.model_copy(update={"stopping": "budget"}),
        experiment.plan,
        experiment.serve.dynamics,
        at_once=at_once,
        seed=seed,
        run_name=f"{experiment.folder_name}/seed-{seed}",
        on_event=tell,
    )


def _value(experiment: Experiment) -> QuadraticValue | None:
    """Without critics, the value is the linear-quadratic one; only a loss that weighs by it cannot do without."""
    try:
        return QuadraticValue.of(experiment.control_task)
    except InvalidExperiment:
        if experiment.dynamics.loss.kind == "value_gradient":
            raise
        return None


def _weights(
    experiment: Experiment, rows: Transitions, expert: Transitions | None, value: QuadraticValue | None
) -> Float32 | None:
    """What the dynamics loss gives the rows."""
    gradient = None if value is None else value.value_gradient
    targets = target_count(experiment.control_task)
    return experiment.dynamics.loss.weigh(rows, targets, FitContext(gradient, expert))


def _shuffled(rows: Transitions, seed: int) -> Transitions:
    """The same rows, their episodes in a seeded order; single rows where there is but one episode."""
    episodes, rng = list(rows.episodes()), generator(seed, "population/rows")
    if len(episodes) < 2:
        return rows[rng.permutation(len(rows))]
    return Transitions.concatenate([episodes[place] for place in rng.permutation(len(episodes))])
