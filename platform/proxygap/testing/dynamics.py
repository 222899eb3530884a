"""A dynamics model with known answers, and what every dynamics model and dynamics loss must satisfy.

Shape legend: M members, B rows, O observation size, A action size, T predicted targets (O, plus one for the reward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from proxygap.base.protocols import DynamicsLoss, DynamicsModel, FitContext, Normalized, Prediction, State
from proxygap.base.records import FitReport, Float32, Transitions


class LinearDynamics:
    """target = [observation, action] @ ``weight_IT`` + ``offset_MT[m]`` with a constant deviation: an answer by hand.

    `fit` replaces the weight by the least-squares solution of the data, keeps the offsets (they tell members apart) and
    adds nothing random. Where ``terminal_at`` is given, the termination logit of a row is the first coordinate of its
    predicted next observation minus that threshold.
    """

    def __init__(
        self,
        weight_IT: torch.Tensor,
        offset_MT: torch.Tensor,
        *,
        std: float = 0.0,
        elites: tuple[int, ...] | None = None,
        terminal_at: float | None = None,
    ) -> None:
        self._weight_IT, self._offset_MT, self._std = weight_IT.clone(), offset_MT.clone(), std
        self._elites = tuple(range(len(offset_MT))) if elites is None else elites
        self._terminal_at, self._version = terminal_at, 0

    @property
    def members(self) -> int:
        """Number of offsets."""
        return len(self._offset_MT)

    @property
    def version(self) -> int:
        """Fits so far."""
        return self._version

    @property
    def elites(self) -> tuple[int, ...]:
        """As given."""
        return self._elites

    def fit(
        self,
        data: Transitions,
        first_row: int,  # noqa: ARG002 - nothing is held out
        weight_NT: Float32 | None = None,
    ) -> FitReport:
        """Least squares through the origin of the inputs, each target by its weights; scored on the same rows."""
        inputs_BI = np.concatenate([data.obs_BO, data.action_BA], axis=1, dtype=np.float64)
        target_BT = (data.next_obs_BO - data.obs_BO).astype(np.float64)
        if self._offset_MT.shape[1] > target_BT.shape[1]:
            target_BT = np.column_stack([target_BT, data.outcome_reward_B])
        root_BT = np.ones_like(target_BT) if weight_NT is None else np.sqrt(weight_NT.astype(np.float64))
        columns = [  # float64, so that its float32 repeats bit for bit
            np.linalg.lstsq(inputs_BI * root_B[:, None], target_B * root_B)[0]
            for target_B, root_B in zip(target_BT.T, root_BT.T, strict=True)
        ]
        solution_IT = np.stack(columns, axis=1)
        self._weight_IT = torch.tensor(solution_IT, dtype=torch.float32)
        self._version += 1
        mse = float(np.square(inputs_BI @ solution_IT - target_BT).mean())
        count, none = self.members, (float("nan"),) * self.members
        return FitReport(self._version, 1, (1,) * count, none, (mse,) * count, self._elites, len(data), 0)

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """Every member, leading axes (M, B)."""
        change_BT = torch.cat([obs_BO, action_BA], dim=-1) @ self._weight_IT
        return self._prediction(obs_BO, change_BT + self._offset_MT[:, None, :])

    def predict_rows(
        self,
        member_B: torch.Tensor,
        obs_BO: torch.Tensor,
        action_BA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",  # noqa: ARG002 - there is no lower one
    ) -> Prediction:
        """Each row by its member, leading axis (B,)."""
        change_BT = torch.cat([obs_BO, action_BA], dim=-1) @ self._weight_IT
        return self._prediction(obs_BO, change_BT + self._offset_MT[member_B])

    def step_members(
        self,
        member_ids: Sequence[int],
        obs_KBO: torch.Tensor,
        action_KBA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",  # noqa: ARG002 - there is no lower one
    ) -> Prediction:
        """Each block of rows by its member, leading axes (K, B)."""
        change_KBT = torch.cat([obs_KBO, action_KBA], dim=-1) @ self._weight_IT
        mean_KBT = change_KBT + self._offset_MT[list(member_ids), None, :]
        logit = None if self._terminal_at is None else obs_KBO[..., 0] + mean_KBT[..., 0] - self._terminal_at
        return Prediction(mean_KBT, torch.full_like(mean_KBT, self._std), logit)

    def _prediction(self, obs_BO: torch.Tensor, mean: torch.Tensor) -> Prediction:
        logit = None if self._terminal_at is None else obs_BO[:, 0] + mean[..., 0] - self._terminal_at
        return Prediction(mean, torch.full_like(mean, self._std), logit)

    def state(self) -> State:
        """The weight, the offsets and the version."""
        arrays = {"weight": self._weight_IT.numpy().copy(), "offset": self._offset_MT.numpy().copy()}
        return State(arrays, {"version": self._version})

    def load_state(self, state: State) -> None:
        """Take them back."""
        self._weight_IT = torch.from_numpy(state.arrays["weight"].copy())
        self._offset_MT = torch.from_numpy(state.arrays["offset"].copy())
        self._version = int(state.structure["version"])


def linear_transitions(
    rng: np.random.Generator, rows: int, obs_size: int = 3, action_size: int = 2, noise: float = 0.1
) -> Transitions:
    """Transitions of a stable linear system with Gaussian noise of deviation ``noise`` on every coordinate.

    The change of the observation is ``-0.5 obs + 0.3 sum(action)`` plus noise, the reward is the first coordinate
    reached, and an episode ends where that exceeds 1; every row is an episode of its own.
    """
    obs_BO = rng.normal(size=(rows, obs_size))
    action_BA = rng.uniform(-1.0, 1.0, size=(rows, action_size))
    change_BO = -0.5 * obs_BO + 0.3 * action_BA.sum(axis=1, keepdims=True) + noise * rng.normal(size=obs_BO.shape)
    next_obs_BO = (obs_BO + change_BO).astype(np.float32)
    return Transitions(
        obs_BO=obs_BO.astype(np.float32),
        action_BA=action_BA.astype(np.float32),
        next_obs_BO=next_obs_BO,
        outcome_reward_B=next_obs_BO[:, 0].copy(),
        component_reward_BR=np.empty((rows, 0), np.float32),
        terminated_B=next_obs_BO[:, 0] > 1.0,
        truncated_B=np.zeros(rows, np.bool_),
        episode_B=np.arange(rows, dtype=np.int64),
        step_B=np.zeros(rows, np.int64),
    )


def check_dynamics_model(build: Callable[[], DynamicsModel], data: Transitions) -> None:
    """Run every clause below on fresh models; ``build`` gives equal models each time."""
    check_shapes(build(), data)
    check_rows_agree_with_members(build(), data)
    check_purity(build(), data)
    check_fit(build(), data)
    check_weights(build, data)
    check_resume(build, data)


def check_shapes(model: DynamicsModel, data: Transitions) -> None:
    """Leading axes (M, B) and (B,), float32, positive or zero deviations, T equal to O or O + 1; no row is no error."""
    obs_BO, action_BA = _inputs(data)
    for rows in (0, 1, 7):
        whole = model.predict(obs_BO[:rows], action_BA[:rows])
        one = model.predict_rows(torch.zeros(rows, dtype=torch.int64), obs_BO[:rows], action_BA[:rows])
        targets = whole.target_mean.shape[-1]
        assert targets - obs_BO.shape[1] in (0, 1)
        assert whole.target_mean.shape == whole.target_std.shape == (model.members, rows, targets)
        assert one.target_mean.shape == one.target_std.shape == (rows, targets)
        assert whole.target_mean.dtype == whole.target_std.dtype == one.target_mean.dtype == torch.float32
        assert bool((whole.target_std >= 0).all())
        assert (whole.termination_logit is None) == (one.termination_logit is None)
        assert whole.termination_logit is None or whole.termination_logit.shape == (model.members, rows)
        assert one.termination_logit is None or one.termination_logit.shape == (rows,)


def check_rows_agree_with_members(model: DynamicsModel, data: Transitions) -> None:
    """`predict_rows` gathers from `predict`, for a number of rows that the members do not divide, in any order."""
    obs_BO, action_BA = (tensor[:37] for tensor in _inputs(data))
    member_B = torch.arange(37).mul(5).remainder(model.members)
    whole, one = model.predict(obs_BO, action_BA), model.predict_rows(member_B, obs_BO, action_BA)
    rows = torch.arange(37)
    torch.testing.assert_close(one.target_mean, whole.target_mean[member_B, rows], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.target_std, whole.target_std[member_B, rows], rtol=1e-5, atol=1e-5)
    if one.termination_logit is not None and whole.termination_logit is not None:
        torch.testing.assert_close(one.termination_logit, whole.termination_logit[member_B, rows], rtol=1e-5, atol=1e-5)


def check_purity(model: DynamicsModel, data: Transitions) -> None:
    """Predicting twice is predicting once; inputs and global generators stay as they were; no gradient is kept."""
    obs_BO, action_BA = _inputs(data)
    before, torch_state, numpy_state = obs_BO.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first, second = model.predict(obs_BO, action_BA), model.predict(obs_BO, action_BA)
    model.fit(data, 0)
    assert torch.equal(first.target_mean, second.target_mean)
    assert not first.target_mean.requires_grad
    assert torch.equal(before, obs_BO)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def check_fit(model: DynamicsModel, data: Transitions) -> None:
    """A fit counts one version, names elites among the members, and reports one entry per member."""
    version = model.version
    report = model.fit(data, 0)
    assert model.version == report.version == version + 1
    assert model.elites == report.elites
    assert len(set(model.elites)) == len(model.elites) > 0
    assert set(model.elites) <= set(range(model.members))
    for per_member in (report.epochs_M, report.held_out_log_likelihood_M, report.held_out_mse_M):
        assert len(per_member) == model.members
    assert report.training_rows + report.held_out_rows <= len(data)


def check_weights(build: Callable[[], DynamicsModel], data: Transitions) -> None:
    """Equal weights, of any size, are no weights; others change the fit, and a refit with them repeats bit for bit."""
    obs_BO, action_BA = _inputs(data)
    targets = build().predict(obs_BO, action_BA).target_mean.shape[-1]
    uneven_NT = np.linspace(0.0, 2.0, len(data) * targets, dtype=np.float32).reshape(len(data), targets)
    means = []
    for weight_NT in (None, np.full_like(uneven_NT, 3.0), uneven_NT, uneven_NT):
        model = build()
        model.fit(data, 0, weight_NT)
        means.append(model.predict(obs_BO, action_BA).target_mean)
    torch.testing.assert_close(means[1], means[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(means[2], means[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(means[2], means[3])


def check_resume(build: Callable[[], DynamicsModel], data: Transitions) -> None:
    """Fit, state, fit equals fit, state into a fresh model, fit: bit for bit; and a state is a copy."""
    model, resumed = build(), build()
    longer = Transitions.concatenate([data, replace(data, obs_BO=-data.obs_BO)])
    model.fit(data, 0)
    model.fit(longer, 0)
    state = model.state()
    kept = {name: array.copy() for name, array in state.arrays.items()}
    model.fit(data, 0)
    assert all(np.array_equal(array, state.arrays[name]) for name, array in kept.items())
    resumed.load_state(state)
    _check_same(resumed.state(), state)
    resumed.fit(data, 0)
    _check_same(resumed.state(), model.state())
    obs_BO, action_BA = _inputs(data)
    assert torch.equal(resumed.predict(obs_BO, action_BA).target_std, model.predict(obs_BO, action_BA).target_std)


def _check_same(one: State, other: State) -> None:
    assert one.structure == other.structure
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())


def check_dynamics_loss(loss: DynamicsLoss, context: FitContext, data: Transitions) -> None:
    """Shape (M,); members apart; linear in the weights; least where the prediction is right; finite gradients.

    ``context`` must hold what the loss asks for on ``data``.
    """
    generator = torch.Generator().manual_seed(0)
    mean_MBT, target_MBT = (torch.randn(3, 8, 2, generator=generator) for _ in range(2))
    weight_MBT = torch.rand(3, 8, 2, generator=generator)
    mean_MBT.requires_grad_()

    def at(mean: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(target)
        return loss(Normalized(mean, zero, None, zero + 2.0 if loss.learns_shape else None), target, weight)

    loss_M = at(mean_MBT, target_MBT, weight_MBT)
    assert loss_M.shape == (3,)
    (gradient_MBT,) = torch.autograd.grad(loss_M[1], mean_MBT)
    assert bool(gradient_MBT.isfinite().all())
    assert bool((gradient_MBT[1] != 0).any())
    assert not bool(gradient_MBT[[0, 2]].any())
    torch.testing.assert_close(at(mean_MBT, target_MBT, 2 * weight_MBT), 2 * loss_M)
    assert bool((at(target_MBT, target_MBT, weight_MBT) < loss_M).all())
    torch.testing.assert_close(
        at(mean_MBT, target_MBT, weight_MBT[:, :, :1]), at(mean_MBT, target_MBT, weight_MBT[:, :, :1].expand(3, 8, 2))
    )
    weightless = weight_MBT.clone()
    weightless[:, 0] = 0.0
    moved_MBT = target_MBT.clone()
    moved_MBT[:, 0] += 5.0
    given, other = (at(mean_MBT, target, weightless) for target in (target_MBT, moved_MBT))
    torch.testing.assert_close(given, other)
    _check_weighing(loss, context, data)


def _check_weighing(loss: DynamicsLoss, context: FitContext, data: Transitions) -> None:
    """Weights are None or one per row and target, float32, finite, none negative, found without a side effect."""
    assert len(loss.step_weights) >= 1
    assert all(weight > 0 for weight in loss.step_weights)
    targets = data.obs_BO.shape[1] + 1
    first, second = loss.weigh(data, targets, context), loss.weigh(data, targets, context)
    assert (first is None) == (second is None)
    if first is None or second is None:
        return
    assert first.shape == (len(data), targets)
    assert first.dtype == np.float32
    assert bool(np.isfinite(first).all())
    assert bool((first >= 0).all())
    assert bool((first > 0).any())
    assert np.array_equal(first, second)


def _inputs(data: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.obs_BO.copy()), torch.from_numpy(data.action_BA.copy())
