"""The KL-regularized optimum against its defining properties, and the two forms of the objective beside each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax

from proxygap.base.errors import InvalidExperiment
from proxygap.optimize.tilt import inference_form, mean_kl, regularized_reward, tilted, tilted_to_kl


def table(seed: int = 0, prompts: int = 4, answers: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return log_softmax(rng.standard_normal((prompts, answers)), axis=-1), rng.standard_normal((prompts, answers))


def test_two_answers_by_hand() -> None:
    log_reference, reward = np.log([[0.75, 0.25]]), np.array([[0.0, math.log(3.0)]])
    np.testing.assert_allclose(np.exp(tilted(log_reference, reward, 1.0)), [[0.5, 0.5]], atol=1e-15)
    np.testing.assert_allclose(np.exp(tilted(log_reference, reward, 0.5)), [[0.25, 0.75]], atol=1e-15)


def test_no_other_policy_has_a_larger_regularized_reward() -> None:
    log_reference, reward = table()
    best = regularized_reward(tilted(log_reference, reward, 0.3), log_reference, reward, 0.3)
    rng = np.random.default_rng(1)
    for scale in (0.01, 0.1, 1.0):
        other = log_softmax(tilted(log_reference, reward, 0.3) + scale * rng.standard_normal(reward.shape), axis=-1)
        assert regularized_reward(other, log_reference, reward, 0.3) < best


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_regularized_reward_is_distance_from_the_optimum(beta: float) -> None:
    log_reference, reward = table()
    policy, _ = table(seed=2)
    left = regularized_reward(policy, log_reference, reward, beta)
    assert left == pytest.approx(inference_form(policy, log_reference, reward, beta), abs=1e-12)


@pytest.mark.parametrize("target", [1e-4, 0.25, 1.0])
def test_target_kl_is_met(target: float) -> None:
    log_reference, reward = table()
    policy, beta = tilted_to_kl(log_reference, reward, target)
    assert mean_kl(policy, log_reference) == pytest.approx(target, rel=1e-9)
    np.testing.assert_allclose(policy, tilted(log_reference, reward, beta))


def test_targets_of_thousands_of_arms() -> None:
    log_reference = np.full((1, 8000), -math.log(8000))
    reward = np.random.default_rng(0).standard_t(3, (1, 8000))
    for target in (0.25, 2.0, 6.0, 8.9):
        assert mean_kl(tilted_to_kl(log_reference, reward, target)[0], log_reference) == pytest.approx(target, rel=1e-9)


def test_target_of_zero_is_the_reference() -> None:
    log_reference, reward = table()
    policy, beta = tilted_to_kl(log_reference, reward, 0.0)
    np.testing.assert_array_equal(policy, log_reference)
    assert beta == math.inf


@pytest.mark.parametrize("target", [-0.1, math.log(8) + 0.01, math.nan])
def test_targets_out_of_reach_are_refused(target: float) -> None:
    with pytest.raises(InvalidExperiment, match=r"up to 2\.079 nats"):
        tilted_to_kl(np.full((1, 8), -math.log(8)), np.arange(8.0)[None], target)


def test_equal_rewards_cannot_be_tilted() -> None:
    with pytest.raises(InvalidExperiment, match="up to 0 nats"):
        tilted_to_kl(np.full((1, 8), -math.log(8)), np.zeros((1, 8)), 0.1)
