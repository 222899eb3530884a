"""Models of one architecture side by side: fitted, scored and planned with at once. What a host of a population holds.

A model is an ensemble of its own. The networks of all models are one stack: model q has the members q * M to
q * M + M - 1, so that its numbers are the same whichever models are beside it.

Shape legend: Q models, M members of each, E episodes, N rows, B rows, O observation size, T predicted targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.protocols import Arrays, DynamicsModel, HostedModel, Prediction, State
from proxygap.base.records import Transitions
from proxygap.base.seeds import derived_seed
from proxygap.fit.dynamics.ensemble import GaussianEnsemble, split
from proxygap.fit.dynamics.shards import best_members
from proxygap.fit.dynamics.sizes import sizes_of
from proxygap.imagine.planning import PlanningPolicy
from proxygap.probe import objective
from proxygap.probe.outcome import Evaluator
from proxygap.serve.packing import unpacked

if TYPE_CHECKING:
    from proxygap.base.protocols import Task
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
    from proxygap.imagine.planners.settings import Planning

_DATA = tuple(field.name for field in fields(Transitions))


def build_block(
    *, task: Mapping[str, Any], fit: Mapping[str, Any], plan: Mapping[str, Any], seed: int, device: str
) -> ModelBlock:
    """The factory that a host calls: a block without models yet, from JSON-able arguments."""
    return ModelBlock(
        cast("Task", unpacked(task)),
        cast("GaussianEnsembleSettings", unpacked(fit)),
        cast("Planning", unpacked(plan)),
        seed=seed,
        device=device,
    )


@dataclass(frozen=True, slots=True)
class Architecture:
    """Which models a block holds, by their numbers in the population (ascending), and how wide their layers are."""

    models: tuple[int, ...]
    hidden: tuple[int, ...]


class ModelBlock:
    """Models of one architecture in one stack of networks; a `HostedModel`, pure between fits.

    Args:
        task: what is planned for, and the environments of the evaluation episodes.
        fit: of each model; its ``members`` are those of one model.
        plan: how actions are searched for.
        seed: of the run: initial weights, bootstrap samples and the held-out split.
        device: of the networks.
    """

    def __init__(
        self,
        task: Task,
        fit: GaussianEnsembleSettings,
        plan: Planning,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self._task, self._fit, self._plan = task, fit, plan
        self._seed, self._device = seed, device
        self._have = Architecture((), ())
        self._ensemble: GaussianEnsemble | None = None

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """``fit``, ``score``, ``predict`` and ``evaluate``: arrays in, arrays with the models first out.

        ``fit`` takes the columns of `Transitions`, ``model_Q``, ``epochs_Q`` and perhaps ``weight_NT``, with the
        options hidden and fresh (new networks, or on from the present ones). ``score`` takes the columns and
        perhaps gradient_BO, ``predict`` obs_BO and action_BA, ``evaluate`` the options seed and episodes. Raises
        KeyError for another method.
        """
        if method == "fit":
            return self._fitted(arrays, tuple(options["hidden"]), fresh=bool(options["fresh"]))
        if method == "score":
            return self._scored(_transitions(arrays), arrays.get("gradient_BO"))
        if method == "predict":
            return self._predicted(*(torch.from_numpy(np.array(arrays[name])) for name in ("obs_BO", "action_BA")))
        if method == "evaluate":
            return self._evaluated(int(options["seed"]), int(options["episodes"]))
        raise KeyError(f"no method {method!r}; there are fit, score, predict and evaluate")

    def batchable(self, method: str) -> bool:  # noqa: ARG002 - every request stands for itself
        """Never: rows are not requests here."""
        return False

    def state(self) -> State:
        """Which models there are, and their networks."""
        own = {"models": list(self._have.models), "hidden": list(self._have.hidden)}
        if self._ensemble is None:
            return State({}, {**own, "ensemble": {}})
        inner = self._ensemble.state()
        return State(inner.arrays, {**own, "ensemble": inner.structure})

    def load_state(self, state: State) -> None:
        """Become the block that ``state`` was taken from, whichever models it holds.

        Raises:
            CheckpointRefused: networks that do not fit this task or these settings.
        """
        self._have = Architecture(tuple(state.structure["models"]), tuple(state.structure["hidden"]))
        self._ensemble = self._built() if self._have.models else None
        if self._ensemble is not None:
            self._ensemble.load_state(State(state.arrays, state.structure["ensemble"]))

    def _built(self, members: tuple[int, ...] | None = None) -> GaussianEnsemble:
        """Fresh networks, each by its number; of all models, or some members only."""
        ids = members or tuple(member for model in self._have.models for member in self._members(model))
        own = {"members": ids[-1] + 1, "elites": self._fit.elite_count, "hidden": self._have.hidden}
        return self._fit.model_copy(update=own).build(
            **sizes_of(self._task), seed=self._seed, member_ids=ids, device=self._device
        )

    def _members(self, model: int) -> tuple[int, ...]:
        """Numbers of a model's networks in the whole population."""
        return tuple(range(model * self._fit.members, (model + 1) * self._fit.members))

    @property
    def _networks(self) -> GaussianEnsemble:
        assert self._ensemble is not None, "asked before the first fit"
        return self._ensemble

    def _elites(self) -> list[tuple[int, ...]]:
        """Each model's own: the best of its members on held-out data."""
        loss_QM = self._networks.held_out_loss_M.reshape(len(self._have.models), -1)
        count = self._fit.elite_count
        return [
            best_members(loss_M, self._members(model), count)
            for model, loss_M in zip(self._have.models, loss_QM, strict=True)
        ]

    def _fitted(self, arrays: Mapping[str, NDArray[Any]], hidden: tuple[int, ...], *, fresh: bool) -> Arrays:
        """Train every model for its own number of epochs; how many updates each had, and its held-out error."""
        each = self._fit.members
        if fresh:
            self._have = Architecture(tuple(arrays["model_Q"].tolist()), hidden)
            self._ensemble = self._built() if self._have.models else None
        if self._ensemble is None:
            return {name: np.empty(0) for name in ("updates_Q", "epochs_Q", "held_out_mse_Q")}
        report = self._ensemble.fit(
            _transitions(arrays),
            0,
            weight_NT=None if "weight_NT" not in arrays else np.array(arrays["weight_NT"], np.float32),
            max_epochs_M=np.repeat(arrays["epochs_Q"], each),
        )
        epochs_Q = np.array(report.epochs_M, np.float64).reshape(-1, each).mean(axis=1)
        per_epoch = -(-report.training_rows // self._fit.batch_size)
        mse_Q = np.array(report.held_out_mse_M, np.float64).reshape(-1, each).mean(axis=1)
        return {"updates_Q": epochs_Q * per_epoch, "epochs_Q": epochs_Q, "held_out_mse_Q": mse_Q}

    def _scored(self, data: Transitions, gradient_BO: NDArray[Any] | None) -> Arrays:
        names = ["log_likelihood_Q", "member_mean_Q", "mse_Q", *([] if gradient_BO is None else ["value_error_Q"])]
        found: dict[str, list[float]] = {name: [] for name in names}
        whole = self._networks.state()
        for model, elites in zip(self._have.models, self._elites(), strict=True):
            members = self._members(model)
            view = cast("DynamicsModel", _OneModel(self._shard(whole, members), members, elites))
            scores = (*objective.log_likelihood(view, data), *objective.mse(view, data))
            if gradient_BO is not None:
                scores = (*scores, *objective.value_weighted_error(view, data, gradient_BO))
            for name, measured in zip(found, scores, strict=True):
                found[name].append(measured.value)
        return {name: np.array(values) for name, values in found.items()}

    def _shard(self, whole: State, members: tuple[int, ...]) -> GaussianEnsemble:
        """One model alone."""
        built = self._built(members)
        built.load_state(split(whole, members))
        return built

    def _predicted(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Arrays:
        """Each model's mean prediction: that of its members together, (Q, B, T)."""
        mean_MBT = self._networks.predict(obs_BO.float(), action_BA.float()).target_mean
        mean_QMBT = mean_MBT.reshape(len(self._have.models), -1, *mean_MBT.shape[1:])
        return {"target_QBT": mean_QMBT.mean(dim=1).numpy()}

    def _evaluated(self, seed: int, episodes: int) -> Arrays:
        """Every model's evaluation episodes, planned at once: same starts, same noise of environment and planner."""
        evaluator = Evaluator(self._task, seed, episodes)
        policy = PlanningPolicy(
            self._networks, self._task, self._plan, groups=self._elites(), seed=derived_seed(seed, "evaluate/plan")
        )
        try:
            found = evaluator.evaluate_many(policy, len(self._have.models))
        finally:
            evaluator.close()
        return {
            "outcome_return": np.stack([each.outcome_return_E for each in found]),
            "discounted_return": np.stack([each.discounted_return_E for each in found]),
            "component_return": np.stack([each.component_return_ER for each in found]),
            "length": np.stack([each.length_E for each in found]),
            "start_obs": np.stack([each.start_obs_EO for each in found]),
        }


class _OneModel:
    """One model as the probe reads a dynamics model: its members are numbered from 0."""

    def __init__(self, ensemble: GaussianEnsemble, members: tuple[int, ...], elites: tuple[int, ...]) -> None:
        self._ensemble, self.members = ensemble, len(members)
        self.elites = tuple(members.index(elite) for elite in elites)

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """Every member's, leading axes (M, B)."""
        return self._ensemble.predict(obs_BO, action_BA)


def _transitions(arrays: Mapping[str, NDArray[Any]]) -> Transitions:
    return Transitions(**{name: np.array(arrays[name]) for name in _DATA})


def _keeps_the_protocol(block: ModelBlock) -> HostedModel:
    """Checked by mypy: a host can serve it."""
    return block
