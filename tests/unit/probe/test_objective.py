from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from proxygap.base.protocols import Prediction
from proxygap.base.records import Transitions
from proxygap.probe import objective
from proxygap.probe.objective import (
    disagreement,
    imagined_return,
    k_step_error,
    log_likelihood,
    mse,
    value_estimate,
    value_weighted_error,
)


class Linear:
    """Member m believes next = obs + gain_m * action, all dimensions alike, with its own noise."""

    def __init__(self, gains, stds, elites=None, reward=None):
        self.gains = torch.tensor(gains, dtype=torch.float32)
        self.stds = torch.tensor(stds, dtype=torch.float32)
        self.members, self.reward = len(gains), reward
        self.elites = tuple(range(len(gains))) if elites is None else elites

    def predict(self, obs_BO, action_BA):
        rows = torch.arange(self.members).repeat_interleave(len(obs_BO))
        flat = self.predict_rows(rows, obs_BO.repeat(self.members, 1), action_BA.repeat(self.members, 1))
        shape = (self.members, len(obs_BO), -1)
        return Prediction(flat.target_mean.reshape(shape), flat.target_std.reshape(shape), None)

    def predict_rows(self, member_B, obs_BO, action_BA):
        mean = self.gains[member_B, None] * action_BA.expand(-1, obs_BO.shape[1])
        if self.reward is not None:
            mean = torch.cat([mean, torch.full((len(mean), 1), self.reward)], dim=1)
        return Prediction(mean, self.stds[member_B, None].expand_as(mean), None)


def lived(steps=(5, 3), true_gain=1.0, noise=0.0, dims=2, seed=0):
    """Episodes of the linear system with unit start and random actions."""
    rng = np.random.default_rng(seed)
    parts = []
    for episode, length in enumerate(steps):
        action = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
        change = true_gain * np.repeat(action, dims, 1) + noise * rng.normal(size=(length, dims))
        path = np.concatenate([rng.normal(size=(1, dims)), change]).cumsum(axis=0).astype(np.float32)
        parts.append(
            Transitions(
                path[:-1], action, path[1:], np.full(length, 3.0, np.float32), np.empty((length, 0)),
                np.zeros(length, bool), np.zeros(length, bool), np.full(length, episode), np.arange(length),
            )
        )  # fmt: skip
    return Transitions.concatenate(parts)


def values(measurements):
    return {row.key: row.value for row in measurements}


class Task:
    name, obs_size = "Linear", 2


def test_likelihood_is_that_of_the_mixture_of_elites(monkeypatch):
    monkeypatch.setattr(objective, "CHUNK", 3)
    data = lived(noise=0.3)
    found = values(log_likelihood(Linear([1.0, 0.5, 9.0], [0.4, 0.2, 0.1], elites=(0, 1)), data, "ll"))
    change = data.next_obs_BO.astype(float) - data.obs_BO
    each = [
        stats.norm(gain * data.action_BA, std).logpdf(change).sum(axis=1)
        for gain, std in ((1.0, 0.4), (0.5, 0.2), (9.0, 0.1))
    ]
    assert found["objective/ll"] == pytest.approx(np.log((np.exp(each[0]) + np.exp(each[1])) / 2).mean(), rel=1e-5)
    assert found["objective/ll_member_mean"] == pytest.approx(np.mean(each), rel=1e-5)
    assert log_likelihood(Linear([1.0], [1.0]), data[:0]) == ()


def test_a_learned_reward_is_a_target_too():
    data = lived()
    without = values(log_likelihood(Linear([1.0], [0.5]), data))["objective/held_out_log_likelihood"]
    with_reward = values(log_likelihood(Linear([1.0], [0.5], reward=2.0), data))["objective/held_out_log_likelihood"]
    assert with_reward - without == pytest.approx(stats.norm(2.0, 0.5).logpdf(3.0), rel=1e-4)


def test_mse_is_relative_to_the_constant_mean(monkeypatch):
    monkeypatch.setattr(objective, "CHUNK", 7)
    data = lived(steps=(50, 40))
    assert values(mse(Linear([1.0], [1.0]), data))["objective/held_out_mse"] == pytest.approx(0, abs=1e-9)
    action = data.action_BA[:, 0].astype(float)
    expected = np.mean((0.5 * action) ** 2) / action.var()
    found = values(mse(Linear([0.25, 0.75], [1.0, 1.0]), data))["objective/held_out_mse"]
    assert found == pytest.approx(expected, rel=1e-4)
    still = values(mse(Linear([1.0], [1.0], reward=3.5), data))["objective/held_out_mse"]
    assert np.isfinite(still)


def test_errors_of_parts_without_value_do_not_count(monkeypatch):
    monkeypatch.setattr(objective, "CHUNK", 7)
    data = lived(steps=(50, 40))
    gradient_BO = np.column_stack([np.linspace(-2.0, 2.0, 90), np.zeros(90)])
    found = values(value_weighted_error(Linear([0.25, 0.75], [1.0, 1.0]), data, gradient_BO))
    slow = [
        (slope * 0.5 * float(action[0])) ** 2 for slope, action in zip(gradient_BO[:, 0], data.action_BA, strict=True)
    ]
    assert found["objective/held_out_value_error"] == pytest.approx(np.mean(slow), rel=1e-4)
    with_reward = values(value_weighted_error(Linear([0.25, 0.75], [1.0, 1.0], reward=9.0), data, gradient_BO))
    assert with_reward == found, "a learned reward is no part of it"
    assert value_weighted_error(Linear([1.0], [1.0]), data[:0], gradient_BO[:0]) == ()


def test_k_step_error_grows_as_the_summed_gain_error():
    data = lived(steps=(6, 4))
    found = values(k_step_error(Linear([1.5], [1.0]), Task(), data, 5))
    scale = data.obs_BO.astype(float).std(axis=0)
    for step in range(1, 6):
        drift = [0.5 * part.action_BA[i : i + step].sum()
                 for part in data.episodes() for i in range(len(part) - step + 1)]  # fmt: skip
        error = np.abs(drift) * np.sqrt(np.mean(1 / scale**2))
        for name, share in (("", 0.5), ("_p10", 0.1), ("_p90", 0.9)):
            key = f"model/k_step_error{name}/{step:02d}"
            assert found[key] == pytest.approx(np.quantile(error, share), rel=1e-3)
    assert found["objective/k_step_error"] == found["model/k_step_error/05"]
    assert found["model/k_step_diverged"] == 0


def test_k_step_error_stays_inside_episodes():
    perfect = values(k_step_error(Linear([1.0, 1.0], [1.0, 1.0]), Task(), lived(steps=(4, 4, 2)), 6))
    assert perfect["model/k_step_error_p90/04"] == pytest.approx(0, abs=1e-5)
    assert "model/k_step_error/05" not in perfect
    assert "objective/k_step_error" not in perfect
    shuffled = lived(steps=(8,))[np.array([0, 2, 4, 6])]
    assert "model/k_step_error/02" not in values(k_step_error(Linear([1.0], [1.0]), Task(), shuffled, 4))
    assert k_step_error(Linear([1.0], [1.0]), Task(), lived()[:0], 4) == ()


@pytest.mark.parametrize("gain", [1e9, float("inf"), float("nan")])
def test_diverged_predictions_are_cut_off_and_counted(gain):
    found = values(k_step_error(Linear([gain], [1.0]), Task(), lived(steps=(20,)), 5))
    assert all(np.isfinite(list(found.values())))
    assert found["model/k_step_error/05"] == objective.CLIP
    assert found["model/k_step_diverged"] == 1.0


def test_starts_are_limited_and_spread():
    seen = []
    model = Linear([1.0], [1.0])
    inner = model.predict_rows
    model.predict_rows = lambda member, obs, action: seen.append(len(obs)) or inner(member, obs, action)
    k_step_error(model, Task(), lived(steps=(300,)), 3, max_starts=50)
    assert seen == [50, 50, 50]


def test_disagreement_is_relative_to_what_varies():
    data = lived(steps=(100,))
    found = values(disagreement(Linear([0.9, 1.1], [1.0, 1.0]), data.obs_BO, data.action_BA))
    action = data.action_BA[:, 0].astype(float)
    expected = np.mean(np.abs(0.2 * action) / np.sqrt(2)) / action.std()
    assert found["objective/disagreement"] == pytest.approx(expected, rel=1e-4)
    assert disagreement(Linear([1.0], [1.0]), data.obs_BO, data.action_BA) == ()
    same = values(disagreement(Linear([0.0, 0.0], [1.0, 1.0]), data.obs_BO, data.action_BA))
    assert same["objective/disagreement"] == 0


def test_promises():
    found = values(imagined_return(np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)))
    assert found == {"objective/imagined_return": 4.0, "model/imagined_return_std": pytest.approx(np.sqrt(8))}

    class Critic:
        def value(self, obs_BO):
            return obs_BO.sum(dim=1)

    assert values(value_estimate(Critic(), np.ones((4, 3), np.float32))) == {"objective/value_estimate": 3.0}
