"""Blocks of models in this process or dealt over hosts, model by model; each host lives the episodes of its own models.

Shape legend: Q models, M members of each, E episodes, N rows, B rows, O observation size, T predicted targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import Arrays, State
from proxygap.base.records import Float32, Int64, Transitions
from proxygap.fit.dynamics.ensemble import merge, split
from proxygap.probe.outcome import Evaluation
from proxygap.serve.host import HostRecipe
from proxygap.serve.model_block import Architecture, ModelBlock, build_block
from proxygap.serve.packing import packed

if TYPE_CHECKING:
    from proxygap.base.config import Settings
    from proxygap.base.protocols import Task
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
    from proxygap.imagine.planners.settings import Planning
    from proxygap.serve.client import OnEvent
    from proxygap.serve.settings import Hosting

_OPTION = "serve.dynamics"
EVALUATED = ("outcome_return", "discounted_return", "component_return", "length", "start_obs")
"""What `Population.evaluate` finds, by name: the fields of an `Evaluation`, models first, but for its transitions."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit did, per model: epochs and updates it had (of early stopping, the members' mean)."""

    epochs_Q: NDArray[np.float64]
    updates_Q: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scores:
    """Per model, on given rows: log-likelihood of its elites' mixture, the members' own mean, and errors.

    The second of these is the one that the value's gradient weighs, where that was given.
    """

    log_likelihood_Q: NDArray[np.float64]
    member_mean_Q: NDArray[np.float64]
    mse_Q: NDArray[np.float64]
    value_error_Q: NDArray[np.float64] | None = None


class Population:
    """A block of models in this process (``hosts: 0`` starts no Ray) or dealt over hosts, with equal numbers.

    Args:
        task: pays and ends episodes; has environments.
        fit: of each model.
        plan: how actions are searched for.
        hosting: how many hosts.
        at_once: most models of a block; there are never more hosts than that.
        seed: of the run.
        run_name: hosts are named ``{run_name}/population-{index}``.
        on_event: told ``host_restarted`` with its details.

    Raises:
        InfeasibleResources: the cluster cannot hold the hosts.
        HostFailed: a host did not start, or did not answer within its deadline and restarts.
    """

    def __init__(
        self,
        task: Task,
        fit: GaussianEnsembleSettings,
        plan: Planning,
        hosting: Hosting,
        *,
        at_once: int,
        seed: int,
        run_name: str,
        on_event: OnEvent,
    ) -> None:
        self._hosting, self._shards = hosting, min(hosting.hosts, at_once)
        self._have = Architecture((), ())
        self._block = ModelBlock(task, fit, plan, seed=seed)
        self._pool: Any = None
        if self._shards:
            from proxygap.serve.pool import HostPool

            parts = {
                name: packed(cast("Settings", part)) for name, part in (("task", task), ("fit", fit), ("plan", plan))
            }
            recipe = HostRecipe(
                f"{build_block.__module__}:{build_block.__name__}",
                {**parts, "seed": seed},
                threads=fit.threads,
            )
            name = f"{run_name}/population"
            self._pool = HostPool([recipe] * self._shards, hosting, name, on_event, option=_OPTION)

    @property
    def models(self) -> tuple[int, ...]:
        """Numbers of the models that are held now, ascending."""
        return self._have.models

    def fit(
        self,
        have: Architecture,
        data: Transitions,
        epochs_Q: Int64,
        weight_NT: Float32 | None = None,
        *,
        fresh: bool = True,
    ) -> Fitted:
        """Train fresh models, or go on with those that are held, each for its own number of epochs.

        Args:
            have: the models; of the present ones where ``fresh`` is false.
            data: for all of them; its rows are numbered from 0, which decides the side of the held-out split.
            epochs_Q: per model.
            weight_NT: what the dynamics loss gave for these rows.
            fresh: whether to begin with new networks, which are the same whenever that is.
        """
        columns: Arrays = dict(data.columns())
        if weight_NT is not None:
            columns["weight_NT"] = weight_NT
        model_Q = np.array(have.models, np.int64)
        given = [
            {**columns, "model_Q": model_Q[part], "epochs_Q": np.asarray(epochs_Q, np.int64)[part]}
            for part in self._parts(len(model_Q))
        ]
        options = {"hidden": list(have.hidden), "fresh": fresh}
        self._have = have
        if self._pool is None:
            answers = [self._block.call("fit", given[0], options)]
        else:
            answers = self._pool.update_all("fit", given, options, deadline_s=self._hosting.fit_deadline_s)
        joined = _joined(answers)
        return Fitted(joined["epochs_Q"], joined["updates_Q"])

    def score(self, data: Transitions, gradient_BO: Float32 | None = None) -> Scores:
        """Each model's scores on ``data``, perhaps given the value's gradient at its next observations."""
        columns: Arrays = dict(data.columns())
        if gradient_BO is not None:
            columns["gradient_BO"] = gradient_BO
        return Scores(**_joined(self._ask("score", columns, {})))

    def predict(self, obs_BO: Float32, action_BA: Float32) -> Float32:
        """Each model's mean prediction of the targets in raw units, (Q, B, T)."""
        found: Float32 = _joined(self._ask("predict", {"obs_BO": obs_BO, "action_BA": action_BA}, {}))["target_QBT"]
        return found

    def evaluate(self, seed: int, episodes: int) -> Arrays:
        """Each model's evaluation episodes: the numbers of `Evaluation` by name, models first, see `evaluations`."""
        return _joined(self._ask("evaluate", {}, {"seed": seed, "episodes": episodes}))

    def state(self) -> State:
        """That of the whole block, however it is dealt."""
        states = [self._block.state()] if self._pool is None else (self._pool.states() or [])
        own = {"models": list(self._have.models), "hidden": list(self._have.hidden)}
        inner = [State(each.arrays, each.structure["ensemble"]) for each in states if each.structure["models"]]
        if not inner:
            return State({}, {**own, "ensemble": {}})
        whole = merge(inner)
        return State(whole.arrays, {**own, "ensemble": whole.structure})

    def load_state(self, state: State) -> None:
        """Become the block that ``state`` was taken from, whatever hosts it lived on.

        Raises:
            CheckpointRefused: networks that do not fit this task or these settings.
        """
        have = Architecture(tuple(state.structure["models"]), tuple(state.structure["hidden"]))
        if not have.models:
            raise CheckpointRefused("the state holds no models", field="population.models", value=[])
        whole = State(state.arrays, state.structure["ensemble"])
        each = len(whole.structure["member_ids"]) // len(have.models)
        models = np.array(have.models)
        parts = [_part(whole, models[part].tolist(), have.hidden, each) for part in self._parts(len(models))]
        if self._pool is None:
            self._block.load_state(parts[0])
        else:
            self._pool.load_all(self._pool.version + 1, parts)
        self._have = have

    def close(self) -> None:
        """End the hosts and free their resources."""
        if self._pool is not None:
            self._pool.close()

    def _parts(self, models: int) -> list[NDArray[np.int64]]:
        """Places of a block's models, dealt as evenly as can be; the last hosts may have none."""
        return np.array_split(np.arange(models), max(1, self._shards))

    def _ask(self, method: str, arrays: Arrays, options: Mapping[str, Any]) -> list[Arrays]:
        if self._pool is None:
            return [self._block.call(method, arrays, options)]
        given = [arrays if len(part) else None for part in self._parts(len(self._have.models))]
        answers: list[Arrays] = self._pool.call_all(method, given, options, deadline_s=self._hosting.fit_deadline_s)
        return [answer for answer in answers if answer]


def evaluations(found: Mapping[str, NDArray[Any]], rows: Sequence[int] | slice = slice(None)) -> Evaluation:
    """Episodes of some models, joined into one evaluation that has returns but no transitions."""
    each = {name: np.concatenate(list(np.asarray(found[name])[rows])) for name in EVALUATED}
    start_EO = each["start_obs"].astype(np.float32)
    return Evaluation(
        outcome_return_E=each["outcome_return"],
        discounted_return_E=each["discounted_return"],
        component_return_ER=each["component_return"],
        length_E=each["length"],
        start_obs_EO=start_EO,
        transitions=_none(start_EO.shape[1]),
    )


def _none(obs_size: int) -> Transitions:
    none = np.empty(0, np.float32)
    none_BO, whole, flags = np.empty((0, obs_size), np.float32), np.empty(0, np.int64), np.empty(0, np.bool_)
    return Transitions(none_BO, none_BO[:, :0], none_BO, none, none_BO[:, :0], flags, flags, whole, whole)


def _joined(answers: Sequence[Arrays]) -> Arrays:
    given = [answer for answer in answers if len(next(iter(answer.values())))]
    return {name: np.concatenate([answer[name] for answer in given]) for name in given[0]}


def _part(whole: State, models: Sequence[int], hidden: tuple[int, ...], each: int) -> State:
    """The state of a block with some of the models."""
    own = {"models": list(models), "hidden": list(hidden)}
    if not models:
        return State({}, {**own, "ensemble": {}})
    members = [member for model in models for member in range(model * each, (model + 1) * each)]
    inner = split(whole, members)
    return State(inner.arrays, {**own, "ensemble": inner.structure})
