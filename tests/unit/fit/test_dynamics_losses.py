"""Weighted and heavy-tailed losses against answers by hand, closed forms and torch's distributions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.protocols import FitContext, Normalized, Prediction
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.generalized_gaussian import GeneralizedGaussian, log_deviation, negative_log_density
from proxygap.fit.dynamics.losses import Likelihood, SquaredError
from proxygap.fit.dynamics.network import SHAPE_BOUNDS, Sizes, bounded_shape, forward, initial_weights
from proxygap.fit.dynamics.scores import log_likelihood
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.fit.dynamics.supervision import fit_weights
from proxygap.fit.dynamics.weights import ExpertDistance, ValueGradient, effective_sample_size, nearest_distance
from proxygap.testing.dynamics import linear_transitions


def sample(rows: int, seed: int = 0, **options) -> Transitions:
    return linear_transitions(generator(seed, "data"), rows, **options)


def at(obs: list[float], action: list[float]) -> Transitions:
    data = sample(len(obs), obs_size=1, action_size=1)
    return replace(data, obs_BO=np.array(obs, np.float32)[:, None], action_BA=np.array(action, np.float32)[:, None])


def test_expert_weights_of_three_points_by_hand():
    """Inputs (0,0), (2,1), (4,2) have deviations sqrt(8/3) and sqrt(2/3); the expert was at (0,0) and (4,1)."""
    data, expert = at([0.0, 2.0, 4.0], [0.0, 1.0, 2.0]), at([0.0, 4.0], [0.0, 1.0])
    s, a = (8 / 3) ** 0.5, (2 / 3) ** 0.5
    distance = np.array([0.0, 2.0 / s, 1.0 / a])
    expected = np.exp(-distance) / np.exp(-distance).mean()
    weight_NT = ExpertDistance().weigh(data, 2, FitContext(expert=expert))
    np.testing.assert_allclose(weight_NT, np.column_stack([expected, expected]), rtol=1e-6)
    half_NT = ExpertDistance(strength=0.25, length=2.0).weigh(data, 1, FitContext(expert=expert))
    wide = np.exp(-distance / 2)
    np.testing.assert_allclose(half_NT[:, 0], 0.25 * wide / wide.mean() + 0.75, rtol=1e-6)
    assert np.array_equal(ExpertDistance(strength=0.0).weigh(data, 1, FitContext(expert=expert)), np.ones((3, 1)))


def test_far_from_every_expert_the_nearest_rows_still_carry_weight():
    data, expert = at([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]), at([1e6], [0.0])
    weight_N = ExpertDistance().weigh(data, 1, FitContext(expert=expert))[:, 0]
    assert weight_N.mean() == pytest.approx(1.0)
    assert weight_N.argmax() == 2


def test_nearest_distance_equals_a_loop():
    rng = generator(0, "points")
    rows, expert = rng.normal(size=(5000, 4)) * [1.0, 10.0, 0.1, 1.0], rng.normal(size=(30, 4))
    rows[:, 3] = 7.0  # a constant column keeps its scale
    distance = nearest_distance(rows, expert)
    scale = np.array([*rows[:, :3].std(axis=0), 1.0])
    for row in (0, 17, 4095, 4096, 4999):
        assert distance[row] == pytest.approx(np.linalg.norm((rows[row] - expert) / scale, axis=1).min())


def gradient_of(weights: list[float]):
    """V(s) = sum_d w_d s_d^2 / 2."""
    return FitContext(value_gradient=lambda obs_BO: torch.tensor(weights) * obs_BO)


def test_value_gradient_loss_is_the_weighted_error_of_a_quadratic_value():
    """sum_d (w_d s'_d)^2 (f_d - s'_d)^2 + (r_hat - r)^2 over raw errors, up to the common scale."""
    data, loss = sample(50), ValueGradient(clip_quantile=1.0)
    weight_NT = loss.weigh(data, 4, gradient_of([1.0, 3.0, 0.0]))
    change_BT = torch.from_numpy(np.column_stack([data.next_obs_BO - data.obs_BO, data.outcome_reward_B]))
    std_T = torch.tensor([0.5, 2.0, 1.0, 4.0])
    scaled_NT = fit_weights(weight_NT, change_BT, np.arange(50), std_T)
    assert scaled_NT.mean().item() == pytest.approx(1.0)
    predicted_BT = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    output = Normalized((predicted_BT / std_T)[None], torch.zeros(1, 50, 4))
    given = loss(output, (change_BT / std_T)[None], scaled_NT[None])
    by_hand = [
        ((np.array([1.0, 3.0, 0.0]) * data.next_obs_BO[row]) ** 2 * (predicted - true)[:3] ** 2).sum()
        + (predicted - true)[3] ** 2
        for row, (predicted, true) in enumerate(zip(predicted_BT.numpy(), change_BT.numpy(), strict=True))
    ]
    scale = float((torch.from_numpy(weight_NT) * std_T.square()).mean())
    assert given.item() * scale == pytest.approx(np.mean(by_hand) / 4, rel=1e-4)


def test_dimensions_without_gradient_are_free():
    data = sample(50)
    weight_NT = ValueGradient().weigh(data, 3, gradient_of([1.0, 0.0, 2.0]))
    assert not weight_NT[:, 1].any()
    output = Normalized(torch.zeros(1, 50, 3), torch.zeros(1, 50, 3))
    target = torch.zeros(1, 50, 3)
    target[..., 1] = 1e3
    assert ValueGradient()(output, target, torch.from_numpy(weight_NT)[None]).item() == 0.0


def test_clipping_bounds_the_norm_and_keeps_the_direction():
    data = sample(200)
    gradient = data.next_obs_BO * [1.0, 2.0, 3.0]
    norm = np.linalg.norm(gradient, axis=1)
    bound = np.quantile(norm, 0.8)
    weight_NT = ValueGradient(clip_quantile=0.8).weigh(data, 3, gradient_of([1.0, 2.0, 3.0]))
    clipped = np.sqrt(weight_NT.sum(axis=1))
    np.testing.assert_allclose(clipped, np.minimum(norm, bound), rtol=1e-5)
    long = norm > bound
    assert 0 < long.sum() < 60
    np.testing.assert_allclose(np.sqrt(weight_NT[long]) / bound, np.abs(gradient[long]) / norm[long, None], rtol=1e-5)


def test_the_released_code_clips_nothing_below_its_bound():
    data = sample(200)
    inactive = ValueGradient(clip="released_code").weigh(data, 3, gradient_of([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(inactive, np.square(data.next_obs_BO * [1.0, 2.0, 3.0]), rtol=1e-5)
    huge = ValueGradient(clip="released_code").weigh(data, 3, gradient_of([1e9, 0.0, 0.0]))
    bound = np.quantile(np.abs(data.next_obs_BO[:, 0].astype(np.float64)) * 1e9, 0.95)
    assert np.sqrt(huge.max()) == pytest.approx(bound, rel=1e-5)


def test_gradients_do_not_flow_to_the_critic_and_must_be_finite():
    slope = torch.ones(3, requires_grad=True)
    weight_NT = ValueGradient().weigh(sample(10), 3, FitContext(value_gradient=lambda obs_BO: slope * obs_BO))
    assert weight_NT.dtype == np.float32
    assert slope.grad is None
    with pytest.raises(NonFiniteValue, match="row 0"):
        ValueGradient().weigh(sample(10), 3, FitContext(value_gradient=lambda obs_BO: obs_BO / 0.0))


@pytest.mark.parametrize("loss", [ExpertDistance(), ValueGradient()], ids=lambda loss: loss.kind)
def test_a_context_that_lacks_what_a_loss_needs_is_refused(loss):
    with pytest.raises(InvalidExperiment, match=f"fit.loss.kind = '{loss.kind}'"):
        loss.weigh(sample(10), 3, FitContext())


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.full((10, 3), 2.0, np.float32)) == pytest.approx(10.0)
    uneven = np.array([[1.0, 4.0], [3.0, 4.0]], np.float32)
    assert effective_sample_size(uneven) == pytest.approx((16 / 10 + 2) / 2)
    assert effective_sample_size(uneven * np.array([1.0, 0.0], np.float32)) == pytest.approx(1.6)
    assert effective_sample_size(np.zeros((4, 2), np.float32)) == 0.0


def test_weights_that_cannot_be_meant_are_refused():
    target_NT, inside = torch.zeros(4, 2), np.array([0, 1])
    good = np.ones((4, 2), np.float32)
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(NonFiniteValue, match="row 2"):
        fit_weights(bad, target_NT, inside, None)
    with pytest.raises(ValueError, match="row 0 has a negative weight"):
        fit_weights(-good, target_NT, inside, None)
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        fit_weights(good[:3], target_NT, inside, None)
    with pytest.raises(ValueError, match="no training row"):
        fit_weights(np.array([[0, 0], [0, 0], [1, 1], [1, 1]], np.float32), target_NT, inside, None)
    assert fit_weights(None, target_NT, inside, None) is None


def test_raw_squared_error_weighs_by_the_targets_variance():
    target_NT, std_T = torch.zeros(4, 2), torch.tensor([1.0, 3.0])
    weight_NT = fit_weights(None, target_NT, np.arange(4), std_T)
    torch.testing.assert_close(weight_NT, torch.tensor([[0.2, 1.8]]).expand(4, 2))
    output = Normalized(torch.ones(1, 4, 2), torch.zeros(1, 4, 2))
    raw = SquaredError(scale="raw")(output, target_NT[None], weight_NT[None])
    assert raw.item() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0, 8.0])
def test_the_exact_likelihood_recovers_shape_and_scale(shape):
    """|e|^beta is Gamma(1/beta) distributed; both parameters within 5 percent on 200,000 samples."""
    rng = generator(3, f"tails/{shape}")
    magnitude = rng.gamma(1.0 / shape, size=200_000) ** (1.0 / shape)
    error = torch.from_numpy((0.7 * magnitude * rng.choice([-1.0, 1.0], size=200_000)).astype(np.float32))
    free = torch.zeros(2, requires_grad=True)

    def mean_nats() -> torch.Tensor:
        log_scale, beta = free[0], bounded_shape(free[1])
        return negative_log_density(error * (-log_scale).exp(), log_scale, beta).mean()

    found, _ = newton(mean_nats, free)
    assert found[1] == pytest.approx(shape, rel=0.05)
    assert found[0] == pytest.approx(0.7, rel=0.05)


def newton(mean_nats, free: torch.Tensor) -> tuple[tuple[float, float], float]:
    optimizer = torch.optim.LBFGS([free], lr=1.0, max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mean_nats()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return (float(free[0].exp()), float(bounded_shape(free[1]))), float(mean_nats())


def test_a_product_in_place_of_a_power_cannot_tell_tails_apart():
    """The released code of Kim et al. has |e| beta: at scale 1 it takes Gaussian errors for heavier than Laplace's."""
    error = torch.from_numpy((generator(0, "gaussian").normal(size=200_000) / 2**0.5).astype(np.float32))  # alpha = 1
    grid = torch.linspace(0.3, 8.0, 2000, dtype=torch.float64)
    constant = -grid.log() + (1 / grid).lgamma()
    product = error.abs().double().mean() * grid + constant
    power = torch.stack([(error.abs().double() ** beta).mean() for beta in grid[::10]]) + constant[::10]
    assert grid[product.argmin()] < 1.0
    assert grid[::10][power.argmin()] == pytest.approx(2.0, rel=0.05)
    ours = torch.stack([negative_log_density(error, torch.zeros(()), beta.float()).mean() for beta in grid[::10]])
    torch.testing.assert_close(ours.double(), power + np.log(2.0), rtol=1e-4, atol=1e-4)


def test_at_shape_two_it_is_the_gaussian_and_at_one_the_laplace():
    rng = torch.Generator().manual_seed(0)
    mean, log_var, target = (torch.randn(3, 20, 2, generator=rng) for _ in range(3))
    weight = torch.rand(3, 20, 2, generator=rng)
    two = Normalized(mean, log_var, None, torch.full_like(mean, 2.0))
    torch.testing.assert_close(
        GeneralizedGaussian()(two, target, weight), Likelihood()(Normalized(mean, log_var), target, weight)
    )
    laplace = torch.distributions.Laplace(mean, (0.5 * log_var).exp())
    error = (target - mean) / laplace.scale
    ours = negative_log_density(error, laplace.scale.log(), torch.ones_like(mean))
    torch.testing.assert_close(ours, -laplace.log_prob(target))
    assert log_deviation(torch.tensor([1.0, 2.0])).exp().tolist() == pytest.approx([2**0.5, 0.5**0.5])


@pytest.mark.parametrize("shape", [0.5, 0.7, 1.0, 3.0, 9.0])
def test_the_density_integrates_to_one_and_scores_agree(shape):
    grid = torch.linspace(-400.0, 400.0, 1_000_001, dtype=torch.float64)
    beta, log_scale = torch.tensor(shape, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64).log()
    density = (-negative_log_density(grid / 0.3, log_scale, beta)).exp()
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, rel=5e-3)
    std = 0.3 * log_deviation(beta).exp()
    if shape > 0.5:
        assert torch.trapezoid(density * grid.square(), grid).sqrt().item() == pytest.approx(float(std), rel=5e-3)
    some = torch.tensor([[-0.4], [0.1], [2.0]], dtype=torch.float64)
    prediction = Prediction(torch.zeros(1, 3, 1), std.expand(1, 3, 1), None, beta.expand(1, 3, 1))
    expected = -negative_log_density(some[:, 0] / 0.3, log_scale, beta)
    torch.testing.assert_close(log_likelihood(prediction, some)[0], expected)


def test_gradients_are_finite_and_right_far_out_and_at_zero():
    for value in (0.0, 1e-12, 0.5, 3.0, 1e4):
        for shape in (0.3, 2.0, 9.9):
            inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (value, 0.1, shape)]
            gradient = torch.autograd.grad(negative_log_density(*inputs), inputs)
            assert all(bool(part.isfinite()) for part in gradient)
    inputs = tuple(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.8, -0.2, 1.3))
    assert torch.autograd.gradcheck(negative_log_density, inputs)


def test_shapes_start_gaussian_and_stay_within_bounds():
    sizes = Sizes(inputs=2, targets=3, hidden=(4,), termination=True, shaped=True)
    weights = initial_weights(sizes, (0, 1), 0)
    output = forward(weights, torch.zeros(2, 5, 2), shaped=True)
    torch.testing.assert_close(output.shape, torch.full((2, 5, 3), 2.0), rtol=1e-3, atol=0)
    assert output.logit.shape == (2, 5)
    low, high = bounded_shape(torch.tensor([-1e4, 1e4])).tolist()
    assert (low, high) == (pytest.approx(SHAPE_BOUNDS[0], abs=1e-3), pytest.approx(SHAPE_BOUNDS[1], abs=1e-3))


def test_an_ensemble_learns_the_tails_of_its_noise_and_beats_the_gaussian_there():
    """Laplace noise: shapes near 1, the deviation right, and a higher likelihood of fresh rows than a Gaussian's."""
    rng = generator(0, "laplace")

    def drawn(rows: int) -> Transitions:
        clean = linear_transitions(rng, rows, noise=0.0)
        noise = rng.laplace(scale=0.3 / 2**0.5, size=clean.obs_BO.shape).astype(np.float32)
        return replace(clean, next_obs_BO=clean.next_obs_BO + noise)

    data, fresh = drawn(2400), drawn(1000)
    scores = {}
    for kind in ("generalized_gaussian", "likelihood"):
        settings = GaussianEnsembleSettings(
            members=2,
            hidden=(24,),
            loss={"kind": kind},
            batch_size=128,
            learning_rate=1e-2,
            max_epochs=25,
            stopping="budget",
        )
        model = settings.build(obs_size=3, action_size=2, learn_reward=False, learn_termination=False, seed=0)
        model.fit(data, 0)
        prediction = model.predict(torch.from_numpy(fresh.obs_BO), torch.from_numpy(fresh.action_BA))
        scores[kind] = log_likelihood(prediction, torch.from_numpy(fresh.next_obs_BO - fresh.obs_BO)).mean().item()
        assert prediction.target_std.mean().item() == pytest.approx(0.3, rel=0.12)
        if kind == "generalized_gaussian":
            assert prediction.target_shape.mean().item() == pytest.approx(1.0, abs=0.25)
    assert scores["generalized_gaussian"] > scores["likelihood"] + 0.1
