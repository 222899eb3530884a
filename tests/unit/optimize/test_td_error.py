"""Generalized Gaussian temporal-difference errors: closed forms, recovery, finite differences, weights by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from proxygap.base.seeds import generator, torch_generator
from proxygap.optimize.networks import TwinCritic
from proxygap.optimize.td_error import (
    COVERAGE,
    GeneralizedGaussianTdError,
    SquaredTdError,
    central_probability,
    effective_batch,
    error_variance,
    least_offset,
    negative_log_likelihood,
    shape_of,
)


def draws(shape: float, count: int = 200_000) -> torch.Tensor:
    """Generalized Gaussian of scale 1: a sign times Gamma(1/b) to the power 1/b."""
    rng = generator(0, f"draws/{shape}")
    return torch.from_numpy(rng.choice([-1.0, 1.0], count) * rng.gamma(1 / shape, size=count) ** (1 / shape))


def likeliest(error: torch.Tensor, loss=negative_log_likelihood) -> float:
    def mean(log_shape: float) -> float:
        return float(loss(error, torch.tensor(math.exp(log_shape), dtype=torch.float64)).mean())

    return math.exp(optimize.minimize_scalar(mean, bounds=(-2.0, 3.5), method="bounded").x)


def released(error: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """What the paper's released code computes: a product in place of the power."""
    return error.abs() * shape - shape.log() + (1 / shape).lgamma()


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0, 8.0])
def test_the_true_shape_is_the_likeliest(shape):
    assert likeliest(draws(shape)) == pytest.approx(shape, rel=0.05)


@pytest.mark.parametrize("shape", [2.0, 4.0, 8.0])
def test_a_product_in_place_of_the_power_finds_no_light_tail(shape):
    error = draws(shape, 50_000)
    assert likeliest(error, released) < 1.0
    at_two = torch.tensor(2.0, dtype=torch.float64)
    assert not torch.allclose(negative_log_likelihood(error, at_two), released(error, at_two) + math.log(2), atol=0.01)


def test_shapes_one_and_two_are_laplace_and_gauss():
    error = torch.linspace(-4, 4, 41, dtype=torch.float64)
    gauss = -torch.distributions.Normal(0.0, math.sqrt(0.5)).log_prob(error)
    laplace = -torch.distributions.Laplace(0.0, 1.0).log_prob(error)
    torch.testing.assert_close(negative_log_likelihood(error, torch.full_like(error, 2.0)), gauss, atol=2e-6, rtol=0)
    torch.testing.assert_close(negative_log_likelihood(error, torch.ones_like(error)), laplace, atol=2e-3, rtol=0)


def test_gradients_are_those_of_finite_differences():
    rng = generator(0, "gradients")
    error = torch.tensor(rng.normal(size=20) * 3, requires_grad=True)
    raw = torch.tensor(rng.normal(size=20) * 2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e, r: negative_log_likelihood(e, shape_of(r)), (error, raw))
    huge = torch.full((20,), 1e3, dtype=torch.float64, requires_grad=True)  # beyond the cap, too
    assert torch.autograd.gradcheck(negative_log_likelihood, (huge, torch.full_like(raw, 2.5).requires_grad_()))


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("raw", [-30.0, 0.0, 30.0])
def test_no_error_is_too_small_or_too_large_for_float32(size, raw):
    error, at = torch.tensor([size], requires_grad=True), torch.tensor([raw], requires_grad=True)
    loss = negative_log_likelihood(error, shape_of(at))
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(error.grad.isfinite().all() and at.grad.isfinite().all())
    assert float(error.grad) >= 0.0


def test_central_probability_is_erf_at_shape_two_and_covers_what_it_says():
    error = torch.linspace(-3, 3, 31, dtype=torch.float64)
    torch.testing.assert_close(
        central_probability(error, torch.full_like(error, 2.0)), error.abs().erf(), atol=2e-3, rtol=0
    )
    for shape in (0.6, 1.0, 4.0):
        drawn = draws(shape, 50_000)
        inside = central_probability(drawn, torch.full_like(drawn, shape)) <= COVERAGE
        assert float(inside.double().mean()) == pytest.approx(COVERAGE, abs=0.005)


def test_weights_of_agreement_by_hand():
    value = torch.tensor([[0.0, 1.0, 4.0], [2.0, 1.5, 4.0]])
    loss = GeneralizedGaussianTdError(members=1, least_effective_batch=1)
    variance = torch.tensor([1.0, 0.0625, 0.0]) / 3.0  # of two networks about their mean, over (2 + 1) / (2 - 1)
    torch.testing.assert_close(error_variance(value[None])[0], variance.clamp(min=1e-12))
    inverse = 1 / variance.clamp(min=1e-12)
    torch.testing.assert_close(loss.agreement_weights(value), (inverse / inverse.sum()).expand(2, -1))


@pytest.mark.parametrize("count", [4, 5, 10])
def test_variance_of_errors_is_that_of_scipy(count):
    error = generator(0, f"errors/{count}").standard_t(3, (2, count, 30))
    kurtosis = stats.kurtosis(error, axis=1, bias=False)
    slow = np.var(error, axis=1) / (kurtosis / count + (count + 1) / (count - 1))
    torch.testing.assert_close(error_variance(torch.from_numpy(error)), torch.from_numpy(slow))
    same = torch.ones(1, count, 3)
    assert bool((error_variance(same) > 0).all())


def test_estimated_variance_has_a_smaller_error_than_the_unbiased_one_and_is_far_too_small():
    error = torch.from_numpy(generator(0, "five").normal(size=(1, 5, 100_000)))
    shrunk, unbiased = error_variance(error)[0], error[0].var(dim=0)
    assert float((shrunk - 1).square().mean()) < float((unbiased - 1).square().mean())
    assert -0.55 < float(shrunk.mean()) - 1 < -0.35


def test_the_offset_is_the_smallest_that_spreads_the_weights():
    variance = torch.from_numpy(generator(0, "spread").gamma(0.1, size=(3, 256))).clamp(min=1e-12)
    variance[2] = 0.7  # even already
    offset = least_offset(variance, 16)
    for row in range(2):
        slow = optimize.brentq(lambda xi, v=variance[row]: float(effective_batch(v + xi)) - 16, 0.0, 100.0)
        assert float(offset[row]) == pytest.approx(slow, rel=1e-3)
        assert 16 - 1e-3 < float(effective_batch(variance[row] + offset[row])) < 16.1
    assert float(offset[2]) == 0.0
    assert float(least_offset(torch.full((1, 4), 1e-12), 16)) == 0.0  # four rows cannot be sixteen


def test_weights_of_risk_are_shares_of_the_batch_and_no_road_for_gradients():
    shape = torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.0, 1.0], [1.0, 7.0]], requires_grad=True)
    over_time = GeneralizedGaussianTdError(members=2).risk_weights(shape)
    assert over_time.tolist() == [[0.25, 0.75], [0.5, 0.5], [0.5, 0.5], [0.125, 0.875]]
    assert not over_time.requires_grad
    members = GeneralizedGaussianTdError(members=2, weights="ensemble", detached=False).risk_weights(shape)
    expected = torch.tensor([[1 / 3, 3 / 5], [2 / 3, 2 / 5], [0.5, 1 / 8], [0.5, 7 / 8]]) / 2
    torch.testing.assert_close(members, expected)
    assert members.requires_grad
    alone = GeneralizedGaussianTdError(members=1, weights="ensemble").risk_weights(shape[:2])
    assert alone.tolist() == [[0.5, 0.5]] * 2  # no transition weighs less than another


def test_the_whole_loss_by_hand():
    value, shape = torch.tensor([[0.5, 1.0, -2.0], [0.0, 1.0, 1.0]]), torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 0.5]])
    target = torch.tensor([1.0, 0.0, 0.0])
    loss = GeneralizedGaussianTdError(members=1, regularizer=0.3, least_effective_batch=2)
    error, agreed = value - target, loss.agreement_weights(value - target)
    by_hand = sum(
        float(shape[k, t] / shape[k].sum() * negative_log_likelihood(error[k, t], shape[k, t]))
        + 0.3 * float(agreed[k, t] * error[k, t].abs())
        for k in range(2)
        for t in range(3)
    )
    assert float(loss(value, shape, target)) == pytest.approx(by_hand, rel=1e-5)
    assert agreed.sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_squared_is_half_the_mean_squares():
    value, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([0.0, 1.0])
    assert float(SquaredTdError()(value, None, target)) == 0.5 * (5 / 2 + 1 / 2)
    assert SquaredTdError.told == ()


def test_a_laplace_sample_is_likelier_than_under_a_gaussian():
    train, test = draws(1.0).chunk(2)
    variance = train.square().mean()
    gauss = 0.5 * (test.square() / variance + variance.log() + math.log(2 * math.pi)).mean()
    shape = torch.tensor(likeliest(train), dtype=torch.float64)
    assert float(negative_log_likelihood(test, shape).mean()) < float(gauss) - 0.05


def test_transitions_with_heavy_tailed_noise_weigh_less():
    """Two states: rewards of one are almost exact, those of the other have Student's noise of two degrees."""
    critic = TwinCritic(1, 1, (32,), torch_generator(0, "critic"), members=2, shaped=True)
    adam = torch.optim.Adam(critic.parameters(), lr=3e-3)
    loss, rng = GeneralizedGaussianTdError(members=2), generator(0, "noise")
    for _ in range(400):
        noisy = rng.random(64) < 0.5
        noise = np.where(noisy, 3 * rng.standard_t(2.0, 64), 0.1 * rng.normal(size=64))
        obs = torch.from_numpy(np.where(noisy, 1.0, -1.0).astype(np.float32))[:, None]
        value, shape = critic.heads(obs, torch.zeros(64, 1))
        adam.zero_grad()
        loss(value, shape, torch.from_numpy((0.5 + noise).astype(np.float32))).backward()
        adam.step()
    obs = torch.tensor([[1.0], [-1.0]])
    value, shape = critic.heads(obs, torch.zeros(2, 1))
    weight = loss.risk_weights(shape).mean(dim=0)
    assert float(weight[0]) < 0.5 * float(weight[1])
    assert value[:, 1].tolist() == pytest.approx([0.5] * 4, abs=0.5)
