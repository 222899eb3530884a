"""Advantages against closed forms and against the definition written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from proxygap.optimize.ppo.advantages import generalized_advantages

Array = np.ndarray[Any, Any]


def rows(count: int, **columns: list[Any]) -> dict[str, Array]:
    none = np.zeros(count)
    found = {"reward": none, "value": none, "next_value": none, "terminated": none > 0, "last": none > 0}
    return found | {name: np.array(column) for name, column in columns.items()}


def advantages(data: dict[str, Array], discount: float, gae_lambda: float) -> tuple[Array, Array]:
    return generalized_advantages(
        data["reward"],
        data["value"],
        data["next_value"],
        terminated_B=data["terminated"].astype(bool),
        last_B=data["last"].astype(bool),
        discount=discount,
        gae_lambda=gae_lambda,
    )


def test_by_hand() -> None:
    # deltas: 1 + 0.5 * 4 - 2 = 1;  2 + 0.5 * 6 - 4 = 1;  3 - 6 = -3 (terminated)
    data = rows(3, reward=[1.0, 2, 3], value=[2.0, 4, 6], terminated=[0, 0, 1], last=[0, 0, 1])
    advantage, returns = advantages(data, 0.5, 0.5)
    assert advantage.tolist() == [1 + 0.25 * (1 + 0.25 * -3), 1 + 0.25 * -3, -3]
    assert returns.tolist() == [2 + 1.0625, 4.25, 3.0]


def test_constant_reward_has_the_geometric_sum() -> None:
    count, discount = 50, 0.9
    data = rows(count, reward=[1.0] * count, last=[0] * (count - 1) + [1])
    data["terminated"] = data["last"]
    _, returns = advantages(data, discount, 1.0)
    np.testing.assert_allclose(returns, (1 - discount ** np.arange(count, 0, -1)) / (1 - discount), rtol=1e-6)


def test_lambda_zero_is_one_step() -> None:
    data = rows(3, reward=[1.0, 1, 1], value=[1.0, 2, 3], next_value=[0.0, 0, 4], last=[0, 0, 1])
    assert advantages(data, 0.5, 0.0)[0].tolist() == [1.0, 0.5, 0.0]


def test_truncation_bootstraps_and_termination_does_not() -> None:
    for terminated, expected in ((1, [1.0, 5.0]), (0, [1.0 + 0.9 * 100, 5.0])):
        data = rows(2, reward=[1.0, 5.0], value=[0.0, 0.0], last=[1, 1], next_value=[100.0, 7.0])
        data["terminated"] = np.array([terminated, 1])
        advantage, _ = advantages(data, 0.9, 0.95)
        np.testing.assert_allclose(advantage, expected, rtol=1e-6)


def test_the_next_episode_leaves_no_trace() -> None:
    rng = np.random.default_rng(0)
    one = rows(4, reward=rng.normal(size=4).tolist(), value=rng.normal(size=4).tolist(), last=[0, 0, 0, 1])
    one["next_value"] = np.array([0, 0, 0, 2.0])
    other = rows(3, reward=[9.0] * 3, value=[5.0] * 3, last=[0, 0, 1], terminated=[0, 0, 1])
    alone = [advantages(part, 0.99, 0.95)[0] for part in (one, other)]
    both = {name: np.concatenate([one[name], other[name]]) for name in one}
    np.testing.assert_array_equal(advantages(both, 0.99, 0.95)[0], np.concatenate(alone))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed: int) -> None:
    """Eq. 16 of 1506.02438 as a double sum over each stretch."""
    rng = np.random.default_rng(seed)
    count, discount, gae_lambda = 60, 0.97, 0.9
    data = rows(count, reward=rng.normal(size=count).tolist(), value=rng.normal(size=count).tolist())
    data["terminated"] = rng.random(count) < 0.1
    data["last"] = data["terminated"] | (rng.random(count) < 0.1)
    data["last"][-1] = True
    data["next_value"] = rng.normal(size=count)
    expected = np.zeros(count)
    for start in range(count):
        weight = 1.0
        for row in range(start, count):
            following = data["next_value"][row] if data["last"][row] else data["value"][row + 1]
            following = 0.0 if data["terminated"][row] else following
            expected[start] += weight * (data["reward"][row] + discount * following - data["value"][row])
            weight *= discount * gae_lambda
            if data["last"][row]:
                break
    advantage, returns = advantages(data, discount, gae_lambda)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, expected + data["value"], rtol=1e-5, atol=1e-6)
