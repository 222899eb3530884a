"""The reward ensemble on hosts: `RewardModel` over a pool, and its in-process twin for ``hosts: 0``.

Shape legend: M members, B items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Items, ItemSpec, Preferences, RewardFitReport
from proxygap.base.protocols import Arrays, LanguageTask, RewardModel, State
from proxygap.fit.reward.ensemble import RewardEnsemble, merge, split
from proxygap.fit.reward.items import preference_arrays
from proxygap.serve.dynamics import shard_members
from proxygap.serve.host import Health, HostRecipe
from proxygap.serve.packing import packed, unpacked
from proxygap.serve.settings import Hosting

if TYPE_CHECKING:
    from proxygap.fit.reward.settings import CorrelatedProxies, Gold, MlpReward, TransformerReward
    from proxygap.serve.client import OnEvent

    Trained: TypeAlias = MlpReward | TransformerReward
    Given: TypeAlias = CorrelatedProxies | Gold

_OPTION = "serve.reward"


def build_shard(
    *, settings: Mapping[str, Any], spec: Mapping[str, int], seed: int, member_ids: Sequence[int], device: str
) -> RewardEnsemble:
    """The factory that a host calls: some members of the ensemble, from JSON-able arguments."""
    parsed = cast("Trained", unpacked(settings))
    return parsed.build(ItemSpec(**spec), seed=seed, member_ids=tuple(member_ids), device=device)


def build_reward(
    settings: Trained | Given,
    hosting: Hosting,
    *,
    spec: ItemSpec,
    task: LanguageTask | None,
    seed: int,
    run_name: str,
    on_event: OnEvent,
) -> RewardModel:
    """The ensemble in this process for ``hosting.hosts == 0`` (starts no Ray), else on hosts; the numbers are equal.

    Args:
        settings: a reward model that is trained, or one that is given by the task.
        hosting: how many hosts, and what each may cost.
        spec: sizes of the items to score.
        task: what a given reward model is computed from; a trained one does not look at it.
        seed: of weights, data order and held-out split.
        run_name: hosts are named ``{run_name}/reward-{index}``.
        on_event: told ``host_restarted`` with its details.

    Raises:
        InvalidExperiment: a given reward model without a task, or to be put on hosts.
    """
    if not settings.hostable:
        return _given(cast("Given", settings), hosting, task, seed)
    trained = cast("Trained", settings)
    if hosting.hosts == 0:
        return trained.build(spec, seed=seed)
    return HostedReward(trained, hosting, spec=spec, seed=seed, run_name=run_name, on_event=on_event)


def _given(settings: Given, hosting: Hosting, task: LanguageTask | None, seed: int) -> RewardModel:
    if hosting.hosts > 0:
        raise InvalidExperiment(
            f"the reward model {settings.kind} is given by the task and has no networks to host",
            field=f"{_OPTION}.hosts",
            value=hosting.hosts,
            remedy=f"Set {_OPTION}.hosts to 0, or choose a reward model that is trained",
        )
    if task is None:
        raise InvalidExperiment(
            f"the reward model {settings.kind} is given by a language task and there is none",
            field="reward.kind",
            value=settings.kind,
            remedy="Choose a reward model that is trained, or a task of prompts and answers",
        )
    return settings.given(task, seed)


class HostedReward:
    """A reward ensemble whose members live on hosts; see `RewardModel`. Close it to give its resources back.

    The state is that of the whole ensemble, so a checkpoint can be resumed with any number of hosts, or with none.
    A member that fails to give a number raises its own error (`NonFiniteValue`, naming the member), and a host that
    does not answer raises HostFailed: a score is never made up.

    Raises:
        InfeasibleResources: the cluster cannot hold the hosts.
        HostFailed: a host did not start, or did not answer within its deadline and restarts.
    """

    def __init__(
        self, settings: Trained, hosting: Hosting, *, spec: ItemSpec, seed: int, run_name: str, on_event: OnEvent
    ) -> None:
        from proxygap.serve.pool import HostPool

        self._settings, self._hosting, self._spec, self._seed = settings, hosting, spec, seed
        self._shards = shard_members(settings.members, hosting.hosts)
        shared = {"settings": packed(settings), "spec": asdict(spec), "seed": seed}
        factory = f"{__name__}:{build_shard.__name__}"
        recipes = [
            HostRecipe(factory, {**shared, "member_ids": list(shard)}, threads=settings.threads)
            for shard in self._shards
        ]
        self._pool = HostPool(recipes, hosting, f"{run_name}/reward", on_event, option=_OPTION)

    @property
    def members(self) -> int:
        """Number M of networks on all hosts."""
        return self._settings.members

    @property
    def version(self) -> int:
        """Fits and calibrations so far."""
        return self._pool.version

    def fit(self, data: Preferences) -> RewardFitReport:
        """Fit every member; the pairs travel to all hosts once. See `RewardModel.fit`."""
        answers = self._pool.update_all("fit", preference_arrays(data), deadline_s=self._hosting.fit_deadline_s)
        return _joined_report(answers)

    def calibrate(self, items: Items) -> None:
        """Shift and scale every member's score; see `RewardModel.calibrate`."""
        self._pool.update_all("calibrate", _plain(items), deadline_s=self._hosting.fit_deadline_s)

    def score(self, items: Items) -> torch.Tensor:
        """Every member's calibrated score, shape (M, B), members in order; all hosts work at the same time."""
        answers = self._pool.call_all("score", _plain(items))
        return torch.from_numpy(np.concatenate([answer["score"].T for answer in answers]))

    def state(self) -> State:
        """The state of the whole ensemble, equal to that of the in-process twin."""
        states = self._pool.states()
        return self._settings.build(self._spec, seed=self._seed).state() if states is None else merge(states)

    def load_state(self, state: State) -> None:
        """Become the ensemble that ``state`` was taken from, whatever hosts it lived on.

        Raises:
            CheckpointRefused: other sizes or members.
        """
        self._pool.load_all(int(state.structure["version"]), [split(state, shard) for shard in self._shards])

    def health(self) -> list[Health]:
        """What each host says about itself, in shard order."""
        return self._pool.health()

    def close(self) -> None:
        """End the hosts and free their resources."""
        self._pool.close()


def _plain(columns: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name: np.asarray(column) for name, column in columns.items()}


def _joined_report(answers: Sequence[Arrays]) -> RewardFitReport:
    """One report of all shards: per-member fields in member order; a step of all members together is one update."""
    first = answers[0]
    per_member = {
        field.name: tuple(np.concatenate([np.atleast_1d(answer[field.name]) for answer in answers]).tolist())
        for field in fields(RewardFitReport)
        if field.name.endswith("_M")
    }
    return RewardFitReport(
        version=int(first["version"]),
        updates=max(int(answer["updates"]) for answer in answers),
        training_rows=int(first["training_rows"]),
        held_out_rows=int(first["held_out_rows"]),
        **per_member,
    )


def _keeps_the_protocol(model: HostedReward) -> RewardModel:
    """Checked by mypy: hosts and in-process twin are interchangeable."""
    return model
