"""A model whose bias is known, and what every estimate of a dynamics model's error must satisfy.

Shape legend: M members, B rows, K coefficients of a polynomial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from proxygap.base.protocols import DynamicsModel, Prediction, State, Uncertainty
from proxygap.base.records import Bool, FitReport, Float32, Transitions
from proxygap.base.seeds import generator


class PolynomialDynamics:
    """Members that fit the change of a single observation by a polynomial of it, by least squares on own samples.

    Every member draws rows with replacement, so that they disagree as a bootstrap does; where the truth is no such
    polynomial, all of them are wrong alike. The action is ignored. The predicted deviation is that of the residuals.
    """

    def __init__(self, degree: int, *, members: int = 5, seed: int = 0) -> None:
        self._degree, self._seed, self._version = degree, seed, 0
        self._coefficient_MK = np.zeros((members, degree + 1))
        self._std_M = np.ones(members)

    @property
    def members(self) -> int:
        """As given."""
        return len(self._std_M)

    @property
    def version(self) -> int:
        """Fits so far."""
        return self._version

    @property
    def elites(self) -> tuple[int, ...]:
        """All."""
        return tuple(range(self.members))

    def fit(self, data: Transitions, first_row: int, weight_NT: Float32 | None = None) -> FitReport:  # noqa: ARG002
        """Least squares of every member on rows of its own; nothing is held out, nothing is weighed."""
        x_B = data.obs_BO[:, 0].astype(np.float64)
        y_B = data.next_obs_BO[:, 0] - x_B
        for member in range(self.members):
            rng = generator(self._seed, f"polynomial/{member}/fit/{self._version}")
            rows = rng.integers(len(x_B), size=len(x_B))
            power_BK = np.vander(x_B[rows], self._degree + 1)
            self._coefficient_MK[member] = np.linalg.lstsq(power_BK, y_B[rows])[0]
            self._std_M[member] = np.std(power_BK @ self._coefficient_MK[member] - y_B[rows])
        self._version += 1
        none = (float("nan"),) * self.members
        return FitReport(self._version, 1, (1,) * self.members, none, none, self.elites, len(data), 0)

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:  # noqa: ARG002 - ignored
        """Every member, leading axes (M, B)."""
        power_BK = np.vander(obs_BO[:, 0].double().numpy(), self._degree + 1)
        mean_MB1 = torch.from_numpy(self._coefficient_MK @ power_BK.T).float()[..., None]
        std_M11 = torch.from_numpy(self._std_M).float()[:, None, None]
        return Prediction(mean_MB1, std_M11.expand_as(mean_MB1), None)

    def predict_rows(
        self,
        member_B: torch.Tensor,
        obs_BO: torch.Tensor,
        action_BA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",  # noqa: ARG002 - there is no lower one
    ) -> Prediction:
        """Each row by its member, leading axis (B,)."""
        whole, rows = self.predict(obs_BO, action_BA), torch.arange(len(obs_BO))
        return Prediction(whole.target_mean[member_B, rows], whole.target_std[member_B, rows], None)

    def state(self) -> State:
        """Coefficients, deviations and the version."""
        return State(
            {"coefficient": self._coefficient_MK.copy(), "std": self._std_M.copy()}, {"version": self._version}
        )

    def load_state(self, state: State) -> None:
        """Take them back."""
        self._coefficient_MK, self._std_M = state.arrays["coefficient"].copy(), state.arrays["std"].copy()
        self._version = int(state.structure["version"])


def curve_transitions(x_B: np.ndarray, y_B: np.ndarray) -> Transitions:
    """One transition per point of a curve: observation x, its change y, an action of 0; each an episode of its own."""
    rows, obs_BO = len(x_B), np.asarray(x_B, np.float32)[:, None]
    return Transitions(
        obs_BO=obs_BO,
        action_BA=np.zeros((rows, 1), np.float32),
        next_obs_BO=obs_BO + np.asarray(y_B, np.float32)[:, None],
        outcome_reward_B=np.zeros(rows, np.float32),
        component_reward_BR=np.empty((rows, 0), np.float32),
        terminated_B=np.zeros(rows, np.bool_),
        truncated_B=np.zeros(rows, np.bool_),
        episode_B=np.arange(rows, dtype=np.int64),
        step_B=np.zeros(rows, np.int64),
    )


def check_uncertainty(build: Callable[[], Uncertainty], model: DynamicsModel, data: Transitions) -> None:
    """Run every clause below on fresh estimates; ``model`` is fitted to the first half of ``data``."""
    model.fit(data[: len(data) // 2], 0)
    check_answers(build(), model, data)
    check_purity(build(), model, data)
    check_resume(build, model, data)


def check_answers(estimate: Uncertainty, model: DynamicsModel, data: Transitions) -> None:
    """Not ready and refusing before a fit; then (B,), float32, finite, never negative; no row is no error."""
    obs_BO, action_BA = _inputs(data)
    assert not estimate.ready
    try:
        estimate(model, obs_BO, action_BA)
    except ValueError:
        pass
    else:
        raise AssertionError("an estimate that was never fitted gave an answer")
    estimate.observe(model, data)  # before any fit: no error
    estimate.fit(model, data, _unseen(data))
    assert estimate.ready
    for rows in (0, 1, len(data)):
        answer_B = estimate(model, obs_BO[:rows], action_BA[:rows])
        assert answer_B.shape == (rows,)
        assert answer_B.dtype == torch.float32
        assert bool((answer_B.isfinite() & (answer_B >= 0)).all())


def check_purity(estimate: Uncertainty, model: DynamicsModel, data: Transitions) -> None:
    """Asking twice is asking once; to observe changes no answer; global generators and the model stay as they were."""
    obs_BO, action_BA = _inputs(data)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    before = {name: array.copy() for name, array in model.state().arrays.items()}
    estimate.fit(model, data, _unseen(data))
    first_B = estimate(model, obs_BO, action_BA)
    estimate.observe(model, data[:50])
    assert torch.equal(first_B, estimate(model, obs_BO, action_BA))
    assert not first_B.requires_grad
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002
    assert all(np.array_equal(array, before[name]) for name, array in model.state().arrays.items())


def check_resume(build: Callable[[], Uncertainty], model: DynamicsModel, data: Transitions) -> None:
    """Fit, observe, state, fit equals the same in a fresh estimate with that state, bit for bit; a state is a copy."""
    estimate, resumed = build(), build()
    estimate.load_state(estimate.state())  # that of nothing
    estimate.fit(model, data, _unseen(data))
    estimate.observe(model, data[:30])
    state = estimate.state()
    kept = {name: array.copy() for name, array in state.arrays.items()}
    resumed.load_state(state)
    for one in (estimate, resumed):
        one.observe(model, data[30:60])
        one.fit(model, data, _unseen(data))
    assert all(np.array_equal(array, state.arrays[name]) for name, array in kept.items())
    mine, other = estimate.state(), resumed.state()
    assert mine.structure == other.structure
    assert mine.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in mine.arrays.items())
    assert torch.equal(estimate(model, *_inputs(data)), resumed(model, *_inputs(data)))


def _unseen(data: Transitions) -> Bool:
    return np.arange(len(data)) >= len(data) // 2


def _inputs(data: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(data.obs_BO.copy()), torch.from_numpy(data.action_BA.copy())
