"""The dynamics ensemble on hosts: `DynamicsModel` over a pool, and its in-process twin for ``hosts: 0``.

Shape legend: M members, B rows, O observation size, A action size, T predicted targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.config import canonical_json
from proxygap.base.protocols import Arrays, DynamicsModel, Prediction, State
from proxygap.base.records import FitReport, Float32, Transitions
from proxygap.fit.dynamics.ensemble import GaussianEnsemble, merge, split
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.fit.dynamics.sizes import TaskSizes
from proxygap.fit.dynamics.training import epoch_budgets
from proxygap.serve.host import Health, HostRecipe
from proxygap.serve.settings import Hosting

if TYPE_CHECKING:
    from proxygap.serve.client import OnEvent

_OPTION = "serve.dynamics"


def build_shard(
    *, settings: Mapping[str, Any], member_ids: Sequence[int], device: str, **sizes: Any
) -> GaussianEnsemble:
    """The factory that a host calls: some members of the ensemble, from JSON-able arguments."""
    parsed = GaussianEnsembleSettings.model_validate_json(canonical_json(dict(settings)))
    return parsed.build(member_ids=tuple(member_ids), device=device, **sizes)


def shard_members(members: int, hosts: int) -> list[tuple[int, ...]]:
    """Members 0 to M - 1 in order, dealt to at most M hosts as evenly as can be."""
    return [tuple(part.tolist()) for part in np.array_split(np.arange(members), min(hosts, members))]


def build_dynamics(
    settings: GaussianEnsembleSettings,
    hosting: Hosting,
    *,
    seed: int,
    run_name: str,
    on_event: OnEvent,
    **sizes: Unpack[TaskSizes],
) -> GaussianEnsemble | HostedDynamics:
    """The ensemble in this process for ``hosting.hosts == 0`` (starts no Ray), else on hosts; the numbers are equal."""
    if hosting.hosts == 0:
        return settings.build(**sizes, seed=seed)
    return HostedDynamics(settings, hosting, **sizes, seed=seed, run_name=run_name, on_event=on_event)


class HostedDynamics:
    """A Gaussian ensemble whose members live on hosts; see `DynamicsModel`. Close it to give its resources back.

    The state is that of the whole ensemble, so a checkpoint can be resumed with any number of hosts, or with none.

    Raises:
        InfeasibleResources: the cluster cannot hold the hosts.
        HostFailed: a host did not start, or did not answer within its deadline and restarts.
    """

    def __init__(
        self,
        settings: GaussianEnsembleSettings,
        hosting: Hosting,
        *,
        seed: int,
        run_name: str,
        on_event: OnEvent,
        **sizes: Unpack[TaskSizes],
    ) -> None:
        from proxygap.serve.pool import HostPool

        self._settings, self._hosting = settings, hosting
        self._shards = shard_members(settings.members, hosting.hosts)
        self._host_of_M = np.repeat(np.arange(len(self._shards)), [len(shard) for shard in self._shards])
        plain = settings.model_dump(mode="json")
        recipes = [
            HostRecipe(
                f"{__name__}:{build_shard.__name__}",
                {"settings": plain, "member_ids": list(shard), "seed": seed, **sizes},
                threads=settings.threads,
            )
            for shard in self._shards
        ]
        self._pool = HostPool(recipes, hosting, f"{run_name}/dynamics", on_event, option=_OPTION)
        # The whole as the recipes build it: what `state` answers before the first fit.
        self._fresh = settings.build(**sizes, seed=seed).state()
        self._elites: tuple[int, ...] = tuple(self._fresh.structure["elites"])

    @property
    def members(self) -> int:
        """Number M of networks on all hosts."""
        return self._settings.members

    @property
    def version(self) -> int:
        """Fits so far."""
        return self._pool.version

    @property
    def elites(self) -> tuple[int, ...]:
        """Members that imagine, best first, chosen over all hosts."""
        return self._elites

    @property
    def held_out_loss_M(self) -> NDArray[np.float32]:
        """What chose the elites, per member; 0 before the first fit."""
        return np.array(self.state().arrays["held_out_loss"], np.float32)

    def fit(
        self,
        data: Transitions,
        first_row: int,
        weight_NT: Float32 | None = None,
        max_epochs_M: NDArray[np.int64] | None = None,
    ) -> FitReport:
        """Refit every member; data and weights travel to all hosts once. See `GaussianEnsemble.fit`."""
        arrays = _plain(data.columns())
        if weight_NT is not None:
            arrays["weight_NT"] = np.ascontiguousarray(weight_NT, np.float32)
        if max_epochs_M is not None:
            arrays["max_epochs_M"] = np.array(epoch_budgets(max_epochs_M, self.members), np.int64)
        answers = self._pool.update_all(
            "fit", arrays, {"first_row": first_row}, deadline_s=self._hosting.fit_deadline_s
        )
        self._elites = tuple(self.state().structure["elites"])
        return _joined_report(answers, self._elites)

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """Every member's prediction, leading axes (M, B), members in order."""
        answers = self._pool.call_all("predict", _inputs(obs_BO, action_BA))
        joined = {name: np.concatenate([answer[name] for answer in answers], axis=1) for name in answers[0]}
        return _prediction({name: np.swapaxes(array, 0, 1) for name, array in joined.items()}, obs_BO.device)

    def predict_rows(
        self,
        member_B: torch.Tensor,
        obs_BO: torch.Tensor,
        action_BA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> Prediction:
        """For each row the prediction of its own member, asked of the host that owns it; leading axis (B,).

        Raises:
            ValueError: a row asks for a member that there is not.
        """
        members = member_B.cpu().numpy().astype(np.int64)
        if len(members) and not 0 <= members.min() <= members.max() < self.members:
            raise ValueError(f"members lie in 0..{self.members - 1}; asked for {members.min()}..{members.max()}")
        inputs = {"member_B": members, **_inputs(obs_BO, action_BA)}
        rows_of = [np.flatnonzero(self._host_of_M[members] == host) for host in range(len(self._shards))]
        asked = [  # no rows at all still need an answer's shape
            {name: array[rows] for name, array in inputs.items()} if len(rows) or not len(members) else None
            for rows in rows_of
        ]
        answers = self._pool.call_all("predict_rows", asked, {"precision": precision})
        return _prediction(_scattered(answers, rows_of), obs_BO.device)

    def state(self) -> State:
        """The state of the whole ensemble, equal in form to that of the in-process twin."""
        states = self._pool.states()
        return split(self._fresh, range(self.members)) if states is None else merge(states)

    def load_state(self, state: State) -> None:
        """Become the ensemble that ``state`` was taken from, whatever hosts it lived on.

        Raises:
            CheckpointRefused: other sizes or members.
        """
        self._pool.load_all(int(state.structure["version"]), [split(state, shard) for shard in self._shards])
        self._elites = tuple(self.state().structure["elites"])

    def health(self) -> list[Health]:
        """What each host says about itself, in shard order."""
        return self._pool.health()

    def close(self) -> None:
        """End the hosts and free their resources."""
        self._pool.close()


def _plain(columns: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name: np.asarray(column) for name, column in columns.items()}


def _inputs(obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Arrays:
    return {"obs_BO": obs_BO.detach().cpu().numpy(), "action_BA": action_BA.detach().cpu().numpy()}


def _prediction(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> Prediction:
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
    return Prediction(
        tensors["target_mean"],
        tensors["target_std"],
        tensors.get("termination_logit"),
        tensors.get("target_shape"),
    )


def _scattered(answers: Sequence[Arrays], rows_of: Sequence[NDArray[np.int64]]) -> Arrays:
    """Put the rows that each host answered back where they were asked."""
    back_B = np.concatenate(rows_of).argsort()
    given = [answer for answer in answers if answer]
    return {name: np.concatenate([answer[name] for answer in given])[back_B] for name in given[0]}


def _joined_report(answers: Sequence[Arrays], elites: tuple[int, ...]) -> FitReport:
    """One report of all shards: per-member fields in member order; a step of all members together is one update."""
    first = answers[0]
    per_member = {
        field.name: tuple(np.concatenate([np.atleast_1d(answer[field.name]) for answer in answers]).tolist())
        for field in fields(FitReport)
        if field.name.endswith("_M")
    }
    return FitReport(
        version=int(first["version"]),
        updates=max(int(answer["updates"]) for answer in answers),
        elites=elites,
        training_rows=int(first["training_rows"]),
        held_out_rows=int(first["held_out_rows"]),
        **per_member,
    )


def _keeps_the_protocol(model: HostedDynamics) -> DynamicsModel:
    """Checked by mypy: hosts and in-process twin are interchangeable."""
    return model
