from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from proxygap.imagine.planners.noise import colored, smoothed, truncated, white
from proxygap.imagine.planners.settings import CemPlanner, IcemPlanner, MppiPlanner
from proxygap.testing.planners import closeness, goals


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def recorded(returns):
    """The returns, and a list of all candidates they were asked for."""
    seen = []

    def record(sequence_BNHA):
        seen.append(sequence_BNHA.clone())
        return returns(sequence_BNHA)

    return record, seen


def test_truncated_noise_is_the_truncated_normal():
    noise = truncated(4000, 5, 2, draw()).flatten().double()
    assert float(noise.abs().max()) <= 2.0
    assert float(noise.std()) == pytest.approx(truncnorm(-2, 2).std(), rel=0.01)
    levels = torch.linspace(-1.9, 1.9, 9, dtype=torch.float64)
    shares = (noise[:, None] < levels).double().mean(dim=0)
    np.testing.assert_allclose(shares, truncnorm(-2, 2).cdf(levels), atol=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("horizon", [64, 65])
def test_colored_noise_has_the_exponent_that_was_asked_for(exponent, horizon):
    noise_NH = colored(1500, horizon, 2, exponent, draw()).transpose(1, 2).reshape(-1, horizon).double()
    power_F = torch.fft.rfft(noise_NH).abs().square().mean(dim=0)[1:].log().numpy()
    frequency_F = np.log(np.fft.rfftfreq(horizon)[1:])
    assert np.polyfit(frequency_F, power_F, 1)[0] == pytest.approx(-exponent, abs=0.05)


@pytest.mark.parametrize("horizon", [1, 2, 3, 15, 30])
@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_colored_noise_has_deviation_one_at_every_step(horizon, exponent):
    noise_NHA = colored(6000, horizon, 2, exponent, draw())
    assert noise_NHA.shape == (6000, horizon, 2)
    torch.testing.assert_close(noise_NHA.std(dim=(0, 2)), torch.ones(horizon), rtol=0.03, atol=0.0)
    assert abs(float(np.corrcoef(noise_NHA[:, 0].T)[0, 1])) < 0.05


def test_smoothed_noise_follows_its_recurrence():
    noise_NHA = white(3, 6, 2, draw())
    smooth_NHA, before_NA = smoothed(noise_NHA, 0.7), torch.zeros(3, 2)
    for step in range(6):
        before_NA = 0.3 * noise_NHA[:, step] + 0.7 * before_NA
        torch.testing.assert_close(smooth_NHA[:, step], before_NA)
    assert torch.equal(smoothed(noise_NHA, 0.0), noise_NHA)


def cem_by_hand(planner, returns, generator, start_HA):
    """The same search for one problem in the plainest words."""
    mean, variance = start_HA.clone(), torch.full_like(start_HA, planner.initial_std**2)
    for _ in range(planner.rounds):
        noise = truncated(planner.candidates, *mean.shape, generator)
        lower, upper = mean + 1.0, 1.0 - mean
        limited = torch.min(torch.min((lower / 2) ** 2, (upper / 2) ** 2), variance)
        candidates = [mean + limited.sqrt() * one for one in noise]
        scored = sorted(candidates, key=lambda one: float(returns(one[None, None])[0, 0]), reverse=True)
        elites = torch.stack(scored[: planner.elite_count])
        mean = planner.momentum * mean + (1 - planner.momentum) * elites.mean(dim=0)
        variance = planner.momentum * variance + (1 - planner.momentum) * elites.var(dim=0, unbiased=False)
    return mean, float(returns(elites[None])[0].mean())


def test_cem_is_the_search_of_pets():
    planner, returns = CemPlanner(horizon=4, candidates=50, rounds=4), closeness(goals(1, 4))
    memory = planner.init(1, 2)
    memory.tensors["mean"][:] = 0.3
    mean_HA, promise = cem_by_hand(planner, returns, draw(), memory.tensors["mean"][0])
    plan, after = planner.plan(memory, returns, draw())
    torch.testing.assert_close(plan.sequence_BHA[0], mean_HA)
    torch.testing.assert_close(after.tensors["mean"][0], mean_HA)
    assert float(plan.return_B) == pytest.approx(promise, rel=1e-5)


def test_cem_can_answer_with_the_best_it_saw():
    returns, seen = recorded(closeness(goals(2, 4)))
    plan, _ = CemPlanner(horizon=4, candidates=20, rounds=3, answer="best").plan(
        CemPlanner(horizon=4).init(2, 2), returns, draw()
    )
    all_BNHA = torch.cat(seen, dim=1)
    value_BN = closeness(goals(2, 4))(all_BNHA)
    torch.testing.assert_close(plan.return_B, value_BN.amax(dim=1))
    torch.testing.assert_close(plan.sequence_BHA, all_BNHA[torch.arange(2), value_BN.argmax(dim=1)])


def test_icem_shrinks_its_rounds_keeps_elites_and_tries_the_mean():
    planner = IcemPlanner(horizon=6, candidates=40, rounds=4, elites=8, shrink=1.5, kept_share=0.5)
    goal_BHA = goals(1, 6)
    returns, seen = recorded(closeness(goal_BHA))
    plan, memory = planner.plan(planner.init(1, 2), returns, draw())
    assert [planner.count(index) for index in range(4)] == [40, 26, 17, 16]
    assert [candidate.shape[1] for candidate in seen] == [44, 30, 21, 21]
    for before, now in pairwise(seen):
        value_N = closeness(goal_BHA)(before)[0]
        value_N[:4] = value_N[:4] if before is not seen[0] else -torch.inf
        torch.testing.assert_close(now[0, :4], before[0, value_N.topk(4).indices])
    last_N = closeness(goal_BHA)(seen[-1])[0]
    torch.testing.assert_close(plan.sequence_BHA[0], seen[-1][0, last_N.argmax()])
    torch.testing.assert_close(memory.tensors["kept"][0], seen[-1][0, last_N.topk(4).indices])
    assert bool(memory.tensors["stands"].all())
    returns, again = recorded(closeness(goal_BHA))
    planner.plan(planner.later(memory, 2), returns, draw(1))
    torch.testing.assert_close(again[0][0, :4, :-2], memory.tensors["kept"][0, :, 2:])


def test_icem_without_kept_elites_does_not_let_the_empty_ones_win():
    planner = IcemPlanner(horizon=3, candidates=30, rounds=1, elites=5, kept_share=1.0)
    plan, _ = planner.plan(planner.init(1, 1), lambda sequence: -sequence.abs().sum(dim=(2, 3)), draw())
    only_mean_is_zero = planner.model_copy(update={"kept_share": 0.0})
    other, _ = only_mean_is_zero.plan(only_mean_is_zero.init(1, 1), lambda s: -s.abs().sum(dim=(2, 3)), draw())
    assert float(plan.return_B) == float(other.return_B) == 0.0
    returns, seen = recorded(lambda sequence: sequence.abs().sum(dim=(2, 3)))
    planner.plan(planner.init(1, 1), returns, draw())
    assert seen[0][0, :5].abs().sum() == 0.0


def test_mppi_averages_by_exponentiated_return():
    planner = MppiPlanner(horizon=3, candidates=40, sigma=0.3, smoothing=0.4, temperature=0.5)
    returns, seen = recorded(closeness(goals(2, 3)))
    plan, _ = planner.plan(planner.init(2, 2), returns, draw())
    noise_NHA = smoothed(0.3 * white(40, 3, 2, draw()), 0.4)
    torch.testing.assert_close(seen[0][1], noise_NHA.clamp(-1, 1))
    value_BN = closeness(goals(2, 3))(seen[0]).double()
    weight_BN = (value_BN / 0.5).exp() / (value_BN / 0.5).exp().sum(dim=1, keepdim=True)
    expected_BHA = (weight_BN[:, :, None, None] * seen[0]).sum(dim=1).float()
    torch.testing.assert_close(plan.sequence_BHA, expected_BHA)
    torch.testing.assert_close(plan.return_B, (weight_BN * value_BN).sum(dim=1).float())


def test_the_sigma_of_mppi_decides_how_far_candidates_spread():
    spreads = []
    for sigma in (0.01, 0.1, 5.0):
        returns, seen = recorded(closeness(goals(1, 8)))
        planner = MppiPlanner(horizon=8, candidates=500, sigma=sigma, smoothing=0.0)
        planner.plan(planner.init(1, 2), returns, draw())
        spreads.append(float(seen[0].std()))
    assert spreads[0] == pytest.approx(0.01, rel=0.05)
    assert spreads[1] == pytest.approx(0.1, rel=0.05)
    assert spreads[2] > 0.8


@pytest.mark.parametrize("temperature", [1e-4, 1e6], ids=["cold", "hot"])
def test_a_cold_mppi_takes_the_best_and_a_hot_one_the_mean(temperature):
    returns, seen = recorded(closeness(goals(1, 3)))
    planner = MppiPlanner(horizon=3, candidates=30, temperature=temperature)
    plan, _ = planner.plan(planner.init(1, 2), returns, draw())
    best_HA = seen[0][0, closeness(goals(1, 3))(seen[0])[0].argmax()]
    expected_HA = best_HA if temperature < 1.0 else seen[0][0].mean(dim=0)
    torch.testing.assert_close(plan.sequence_BHA[0], expected_HA, rtol=1e-3, atol=1e-4)


def test_fewer_finite_returns_than_elites_use_those_there_are():
    planner = CemPlanner(horizon=1, candidates=20, rounds=1, elite_share=0.5, momentum=0.0)
    returns, seen = recorded(lambda sequence: torch.where(torch.arange(20) < 3, -1.0, torch.nan).expand(1, 20))
    plan, _ = planner.plan(planner.init(1, 2), returns, draw())
    torch.testing.assert_close(plan.sequence_BHA[0], seen[0][0, :3].mean(dim=0))
    assert float(plan.return_B) == -1.0


@pytest.mark.parametrize(
    "planner",
    [
        CemPlanner(horizon=5, candidates=200, rounds=8),
        IcemPlanner(horizon=5, candidates=150, rounds=6, elites=15, noise_color=1.0),
        MppiPlanner(horizon=5, candidates=600, rounds=12, sigma=0.25, smoothing=0.0, temperature=0.03),
    ],
    ids=lambda planner: planner.kind,
)
def test_planners_find_the_optimum_of_linear_quadratic_control(planner):
    """Double integrators from several starts: the return is a concave quadratic of the sequence, solved exactly."""
    start_BO = torch.tensor([[0.5, 0.0], [-0.4, 0.6], [0.0, 0.0]])

    def value(sequence_BNHA):
        position = start_BO[:, 0, None].expand(sequence_BNHA.shape[:2])
        speed = start_BO[:, 1, None].expand(sequence_BNHA.shape[:2])
        total = torch.zeros(sequence_BNHA.shape[:2])
        for step in range(5):
            push = sequence_BNHA[:, :, step, 0]
            position, speed = position + 0.5 * speed, speed + 0.5 * push
            total = total - position.square() - 0.1 * speed.square() - 0.1 * push.square()
        return total

    zero = torch.zeros(3, 1, 5, 1)
    gradient, hessian = (
        find(lambda s: value(s).sum(), zero)
        for find in (torch.autograd.functional.jacobian, torch.autograd.functional.hessian)
    )
    best_BH = torch.stack(
        [torch.linalg.solve(hessian[b, 0, :, 0, b, 0, :, 0], -gradient[b, 0, :, 0]) for b in range(3)]
    )
    assert float(best_BH.abs().max()) < 1.0, "the optimum lies inside"
    optimum_B = value(best_BH[:, None, :, None])[:, 0]
    plan, _ = planner.plan(planner.init(3, 1), value, draw())
    reached_B = value(plan.sequence_BHA[:, None])[:, 0]
    assert bool((reached_B <= optimum_B + 1e-6).all())
    torch.testing.assert_close(reached_B, optimum_B, rtol=0.0, atol=0.02)
    torch.testing.assert_close(plan.action_BA[:, 0], best_BH[:, 0], rtol=0.0, atol=0.1)
