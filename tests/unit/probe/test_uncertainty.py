"""Ranking of true errors by an estimate: known orders, the law of motion against what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.collect.replayable import ReplayableEnv
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.probe.uncertainty import true_errors, uncertainty_quality
from proxygap.testing.dynamics import LinearDynamics, linear_transitions


def told(*args) -> dict[str, float]:
    return {measurement.key: measurement.value for measurement in uncertainty_quality(*args)}


def test_an_estimate_in_the_order_of_the_errors_ranks_perfectly():
    error = generator(0, "errors").gamma(1.0, size=50)
    found = told(2 * error**0.5, error, "deup")
    assert found["model/uncertainty_spearman/deup"] == pytest.approx(1.0)
    assert found["model/uncertainty_ratio/deup"] == pytest.approx(2 * np.mean(error**0.5) / np.mean(error))
    assert told(-error, error, "deup")["model/uncertainty_spearman/deup"] == pytest.approx(-1.0)


def test_what_cannot_be_ranked_is_left_out():
    error = generator(0, "errors").gamma(1.0, size=50)
    assert told(error[:5], error[:5], "deup") == {}
    assert set(told(np.ones(50), error, "deup")) == {"model/uncertainty_ratio/deup"}
    assert told(np.full(50, np.nan), error, "deup") == {}


class Rows:
    """What `true_errors` asks of a task whose law of motion is not known."""

    obs_size, known_dynamics = 3, False


def test_errors_are_those_of_the_elites_mean_in_units_of_what_moves():
    data = linear_transitions(generator(0, "data"), 40)
    offset = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    model = LinearDynamics(torch.zeros(5, 4), offset, elites=(0, 1))
    change = (data.next_obs_BO - data.obs_BO).astype(np.float64)
    slow = (((np.array([0.5, 0.0, 0.0]) - change) / change.std(axis=0)) ** 2).mean(axis=1)
    np.testing.assert_allclose(true_errors(model, Rows(), data), slow, rtol=1e-5)


def test_noise_of_the_environment_is_no_error_where_the_law_is_known():
    task = ContinuousCartPole(process_noise=0.05)
    env, rng = ReplayableEnv(task, 0, "a"), generator(0, "actions")
    data = Transitions.concatenate([env.step(rng.uniform(-1, 1, 1).astype(np.float32)) for _ in range(60)])

    class Truth(LinearDynamics):
        def predict(self, obs_BO, action_BA):
            mean = task.next_obs(obs_BO, action_BA) - obs_BO
            return type(super().predict(obs_BO, action_BA))(mean[None], torch.ones_like(mean)[None], None)

    model = Truth(torch.zeros(5, 4), torch.zeros(1, 4))
    law_BO = task.next_obs(torch.from_numpy(data.obs_BO), torch.from_numpy(data.action_BA)).numpy()
    assert np.abs(data.next_obs_BO - law_BO).max() > 0.01  # the noise is there
    assert true_errors(model, task, data).max() < 1e-6
