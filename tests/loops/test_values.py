"""The quadratic value: equals the algebraic Riccati solution, is the return near rest, ignores distractors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_are

from proxygap.base.errors import InvalidExperiment
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.loops.values import LinearQuadratic, QuadraticValue, linear_quadratic

TASK = ContinuousCartPole(max_episode_steps=1000)


@pytest.mark.parametrize("discount", [1.0, 0.97])
def test_a_long_horizon_is_the_algebraic_riccati_equation(discount: float) -> None:
    problem = linear_quadratic(TASK, np.zeros(4))
    root = np.sqrt(discount)
    exact = solve_discrete_are(root * problem.A_OO, root * problem.B_OA, problem.Q_OO, problem.R_AA, s=problem.N_OA)
    found = QuadraticValue.of(TASK, steps=5000, discount=discount).cost_OO
    assert np.allclose(found, exact, rtol=1e-8, atol=1e-10 * np.abs(exact).max())
    assert np.linalg.eigvalsh(found).min() > 0


def test_one_step_is_the_best_reward_of_one_step() -> None:
    """Minimizing x'Qx + u'Ru + 2 x'Nu over u by hand."""
    problem = linear_quadratic(TASK, np.zeros(4))
    by_hand = problem.Q_OO - problem.N_OA @ np.linalg.inv(problem.R_AA) @ problem.N_OA.T
    assert np.allclose(problem.cost_to_go(1, 1.0), by_hand, rtol=1e-10, atol=1e-14)


def test_the_recursion_is_dynamic_programming() -> None:
    """Second implementation: the whole horizon as one least-squares problem over all actions."""
    problem, steps = linear_quadratic(TASK, np.zeros(4)), 6
    start_O = np.array([0.3, -0.2, 0.1, 0.4])

    def cost(actions: np.ndarray[Any, Any]) -> float:
        state_O, total = start_O, 0.0
        for action_A in actions.reshape(steps, 1):
            total += state_O @ problem.Q_OO @ state_O + action_A @ problem.R_AA @ action_A
            total += 2 * state_O @ problem.N_OA @ action_A
            state_O = problem.A_OO @ state_O + problem.B_OA @ action_A
        return float(total)

    # a quadratic is known by its values at 0, at units, and at sums of two units
    origin, unit = cost(np.zeros(steps)), np.eye(steps)
    slope = np.array([(cost(row) - cost(-row)) / 2 for row in unit])
    bend = np.array([[(cost(a + b) - cost(a) - cost(b) + origin) / 2 for b in unit] for a in unit])
    least = origin - slope @ np.linalg.solve(bend, slope) / 4
    assert start_O @ problem.cost_to_go(steps, 1.0) @ start_O == pytest.approx(least, rel=1e-9)


def test_distractors_have_no_value_and_change_none() -> None:
    plain = QuadraticValue.of(TASK)
    distracted = QuadraticValue.of(ContinuousCartPole(max_episode_steps=1000, distractors=15))
    assert np.array_equal(distracted.cost_OO[:4, :4], plain.cost_OO)
    assert (distracted.cost_OO[4:] == 0).all()
    assert (distracted.cost_OO[:, 4:] == 0).all()
    obs_BO = torch.randn(5, 19)
    gradient_BO = distracted.value_gradient(obs_BO)
    assert (gradient_BO[:, 4:] == 0).all()
    assert torch.allclose(gradient_BO[:, :4], plain.value_gradient(obs_BO[:, :4]))


def test_the_gradient_is_that_of_the_value_and_detached() -> None:
    value = QuadraticValue.of(TASK)
    obs_BO = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(value.value(obs_BO).sum(), obs_BO)
    found = value.value_gradient(obs_BO)
    assert torch.allclose(found, expected)
    assert not found.requires_grad
    assert value.value_gradient(torch.randn(3, 4)).dtype is torch.float32


def test_the_value_is_what_its_own_policy_earns_near_rest() -> None:
    """Roll the task's law with the gains that the recursion implies: the return is the value, to second order."""
    steps, problem = 120, linear_quadratic(TASK, np.zeros(4))
    value = QuadraticValue.of(TASK, steps=steps)
    start = torch.tensor([[0.02, -0.01, 0.01, 0.02]], dtype=torch.float64)
    state, lost = start, 0.0
    for left in range(steps, 0, -1):
        gain = _gain(problem, left)
        action = -(state @ torch.from_numpy(gain).T)
        after = TASK.next_obs(state, action)
        lost += 1.0 - float(TASK.reward(state, action, after)[0])
        state = after
    assert -float(value.value(start)[0]) == pytest.approx(lost, rel=0.01)


def _gain(problem: LinearQuadratic, left: int) -> np.ndarray[Any, Any]:
    after = problem.cost_to_go(left - 1, 1.0)
    weight = problem.R_AA + problem.B_OA.T @ after @ problem.B_OA
    return np.linalg.solve(weight, problem.B_OA.T @ after @ problem.A_OO + problem.N_OA.T)


def test_what_has_no_value_of_this_kind_is_refused() -> None:
    with pytest.raises(InvalidExperiment, match="HalfCheetah-v5 has no law of motion"):
        QuadraticValue.of(GymnasiumTask(id="HalfCheetah-v5"))
    with pytest.raises(InvalidExperiment, match="does not rest there"):
        QuadraticValue.of(TASK, equilibrium=(0.0, 0.0, 0.1, 0.0))
    with pytest.raises(InvalidExperiment, match="does not rest there"):
        QuadraticValue.of(TASK, equilibrium=(0.5, 0.0, 0.0, 0.0))
