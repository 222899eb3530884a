"""Given reward models: scores that are known beforehand and never fitted.

Shape legend: M members, P prompts, K enumerable answers, B items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from proxygap.base.errors import InvalidDataset, InvalidExperiment, NonFiniteValue
from proxygap.base.language import Answers, Float64, Items, Preferences, RewardFitReport
from proxygap.base.protocols import LanguageTask, RewardModel, State
from proxygap.base.seeds import generator
from proxygap.fit.shards import require_equal

if TYPE_CHECKING:
    from proxygap.fit.reward.settings import CorrelatedProxies

_T_STD = np.sqrt(3.0)
"""Standard deviation of Student's t with 3 degrees of freedom."""


def correlated_proxies(settings: CorrelatedProxies, task: LanguageTask, seed: int) -> TableReward:
    """Gold plus partly shared errors, each proxy z-scored under the reference policy over all prompts together.

    With gold g of variance 1 and a Gaussian error of variance v, a proxy's correlation with gold is 1 / sqrt(1 + v).

    Raises:
        InvalidExperiment: the task cannot be enumerated.
    """
    truth = task.enumeration()
    if truth is None:
        raise InvalidExperiment(
            f"the answers of task {task.name} cannot be enumerated",
            field="fit.kind",
            value="correlated_proxies",
            remedy="use a task of kind arms or bandit_lm, or a reward model that is fitted",
        )

    def error(name: str) -> Float64:
        rng, shape = generator(seed, f"reward/correlated_proxies/{name}"), truth.gold_PK.shape
        return rng.normal(size=shape) if settings.error == "gaussian" else rng.standard_t(3, size=shape) / _T_STD

    common_PK = np.sqrt(settings.shared) * error("shared")
    own = [np.sqrt(1.0 - settings.shared) * error(f"member/{member}") for member in range(settings.members)]
    table_MPK = np.stack([truth.gold_PK + settings.deviation * (common_PK + mine_PK) for mine_PK in own])
    return TableReward(z_scored(table_MPK, truth.reference_log_prob_PK), "correlated_proxies")


def gold_reward(task: LanguageTask) -> RewardModel:
    """Gold as a reward model: the exact table where the task has one, else the task's own function."""
    truth = task.enumeration()
    return FunctionReward(task) if truth is None else TableReward(truth.gold_PK[None], "gold")


def z_scored(table_MPK: Float64, reference_log_prob_PK: Float64) -> Float64:
    """Each member's table with mean 0 and standard deviation 1 under the reference, all prompts equally likely."""
    weight_PK = np.exp(reference_log_prob_PK) / len(reference_log_prob_PK)
    centered_MPK = table_MPK - (weight_PK * table_MPK).sum(axis=(1, 2), keepdims=True)
    return np.asarray(
        centered_MPK / np.sqrt((weight_PK * np.square(centered_MPK)).sum(axis=(1, 2), keepdims=True)), np.float64
    )


class TableReward:
    """Scores by prompt and one-token answer, calibrated exactly under the reference policy.

    Its calibration is exact, so `calibrate` changes nothing, not even the version, which is 1 for good.
    """

    def __init__(self, table_MPK: Float64, kind: str) -> None:
        self._table_MPK, self._kind = table_MPK.copy(), kind
        self._table_MPK.setflags(write=False)

    @property
    def table(self) -> Float64:
        """All scores, (M, P, K), float64, read-only: for probes that compute expectations exactly."""
        return self._table_MPK

    @property
    def members(self) -> int:
        """Number of tables."""
        return len(self._table_MPK)

    @property
    def version(self) -> int:
        """1: the scores stand from the start."""
        return 1

    def fit(self, data: Preferences) -> RewardFitReport:
        """Refused. Raises InvalidExperiment."""
        _refuse_fit(self._kind, data)

    def calibrate(self, items: Items) -> None:
        """Nothing: the scores are calibrated under the reference itself, which no sample of it could better."""

    def score(self, items: Items) -> torch.Tensor:
        """Each member's score of each answer, (M, B), float32. Raises InvalidDataset for an unknown one."""
        prompt_B, answer_B = items["prompt"], items["token"][:, 0]
        for name, index_B, count in (
            ("prompt", prompt_B, self._table_MPK.shape[1]),
            ("token", answer_B, self._table_MPK.shape[2]),
        ):
            wrong_B = (index_B < 0) | (index_B >= count)
            if wrong_B.any():
                row = int(np.flatnonzero(wrong_B)[0])
                raise InvalidDataset(
                    f"row {row} is outside 0..{count - 1}", field=f"items.{name}", value=int(index_B[row])
                )
        return torch.tensor(self._table_MPK[:, prompt_B, answer_B], dtype=torch.float32)

    def state(self) -> State:
        """The kind and the table: a resumed run is refused where its table would differ."""
        return State({"table": self._table_MPK.copy()}, {"kind": self._kind})

    def load_state(self, state: State) -> None:
        """Take the table back. Raises CheckpointRefused for another kind or other sizes."""
        require_equal("reward.kind", state.structure.get("kind"), self._kind)
        require_equal("reward.table", list(state.arrays["table"].shape), list(self._table_MPK.shape))
        self._table_MPK = np.array(state.arrays["table"], np.float64)
        self._table_MPK.setflags(write=False)


class FunctionReward:
    """The task's gold function as the one member; `calibrate` shifts and scales it."""

    def __init__(self, task: LanguageTask) -> None:
        self._task, self._shift, self._scale, self._version = task, 0.0, 1.0, 1

    @property
    def members(self) -> int:
        """One."""
        return 1

    @property
    def version(self) -> int:
        """1, plus one for each calibration."""
        return self._version

    def fit(self, data: Preferences) -> RewardFitReport:
        """Refused. Raises InvalidExperiment."""
        _refuse_fit("gold", data)

    def calibrate(self, items: Items) -> None:
        """Mean 0 and standard deviation 1 on these items; gold that does not vary on them is only shifted."""
        gold_B = self._gold(items)
        spread = float(gold_B.std())
        self._shift, self._scale, self._version = float(gold_B.mean()), spread or 1.0, self._version + 1

    def score(self, items: Items) -> torch.Tensor:
        """Gold of each answer, (1, B), float32. Raises NonFiniteValue where gold is not finite."""
        return torch.tensor((self._gold(items) - self._shift) / self._scale, dtype=torch.float32)[None]

    def _gold(self, items: Items) -> Float64:
        token_BT = items["token"]
        nothing_BT = np.zeros(token_BT.shape, np.float32)
        gold_B = self._task.gold(Answers(items["prompt"], token_BT, items["length"], nothing_BT))
        if not np.isfinite(gold_B).all():
            row = int(np.flatnonzero(~np.isfinite(gold_B))[0])
            raise NonFiniteValue("gold of an answer is not finite", field=f"gold[{row}]", value=float(gold_B[row]))
        return gold_B

    def state(self) -> State:
        """Calibration and version."""
        return State({}, {"kind": "gold", "shift": self._shift, "scale": self._scale, "version": self._version})

    def load_state(self, state: State) -> None:
        """Take them back. Raises CheckpointRefused for another kind."""
        require_equal("reward.kind", state.structure.get("kind"), "gold")
        self._shift, self._scale = float(state.structure["shift"]), float(state.structure["scale"])
        self._version = int(state.structure["version"])


def _refuse_fit(kind: str, data: Preferences) -> NoReturn:
    raise InvalidExperiment(
        f"a given proxy is not fitted, and {len(data)} labeled pairs were handed to it",
        field="fit.kind",
        value=kind,
        remedy="drop the labels, or use mlp_reward or transformer_reward",
    )
