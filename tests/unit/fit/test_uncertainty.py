"""What estimates of a model's error see and do not see, on curves whose true error is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import Uncertainty
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.uncertainty.deup import LEAST_EXAMPLES, Deup
from proxygap.fit.uncertainty.errors import scale_of, targets_of, views
from proxygap.fit.uncertainty.folds import observe_folds
from proxygap.fit.uncertainty.neighborhood import LEAST_LOG_DENSITY, Neighborhood
from proxygap.fit.uncertainty.predictor import Predictor
from proxygap.fit.uncertainty.settings import DeupSettings, DisagreementSettings
from proxygap.testing.uncertainty import PolynomialDynamics, curve_transitions


def wave(x):
    return np.sin(3 * x)


def slow_wave(x):
    return np.sin(2 * x)


def cubic(x):
    return x**3 - x


def points(truth, x, noise, seed) -> Transitions:
    return curve_transitions(x, truth(x) + noise * generator(seed, "noise").normal(size=len(x)))


def fitted(estimate: Uncertainty, model: PolynomialDynamics, data: Transitions) -> Uncertainty:
    """Model and estimate fitted to ``data``, of which the model never sees every third row."""
    unseen = np.arange(len(data)) % 3 == 0
    model.fit(data[np.flatnonzero(~unseen)], 0)
    estimate.fit(model, data, unseen)
    return estimate


def answers(estimate: Uncertainty, model: PolynomialDynamics, grid) -> np.ndarray:
    obs = torch.tensor(grid, dtype=torch.float32)[:, None]
    return estimate(model, obs, torch.zeros_like(obs)).numpy()


def excess(model: PolynomialDynamics, truth, grid) -> np.ndarray:
    """Squared distance of the members' mean from the truth: what an error is without its noise."""
    obs = torch.tensor(grid, dtype=torch.float32)[:, None]
    return (model.predict(obs, obs).target_mean.mean(dim=0)[:, 0].numpy() - truth(grid)) ** 2


def ranking(settings, truth, model, data, grid) -> float:
    estimate = fitted(settings.build(seed=0), model, data)
    return float(stats.spearmanr(answers(estimate, model, grid), excess(model, truth, grid)).statistic)


@pytest.mark.parametrize("seed", [0, 1])
def test_bias_that_all_members_share_is_seen_by_deup_alone(seed):
    """A quartic cannot be a wave: members agree on what is wrong."""
    data, grid = points(wave, generator(seed, "x").uniform(-2, 2, 1000), 0.1, seed), np.linspace(-2, 2, 300)
    deup, spread = (
        ranking(settings, wave, PolynomialDynamics(4, seed=seed), data, grid)
        for settings in (DeupSettings(), DisagreementSettings())
    )
    assert deup > 0.9
    assert spread < 0.4


def test_a_model_that_can_be_right_is_ranked_no_better_by_deup():
    """Where the truth is a cubic and so is the model, what is left is variance, and held-out errors are all noise."""
    grid, found = np.linspace(-2.5, 2.5, 200), {"deup": [], "disagreement": []}
    for seed in range(3):
        data = points(cubic, generator(seed, "x").normal(0, 0.7, 90), 0.1, seed)
        for settings in (DeupSettings(updates=300), DisagreementSettings()):
            model = PolynomialDynamics(3, seed=seed)
            found[settings.kind].append(ranking(settings, cubic, model, data, grid))
    assert np.mean(found["disagreement"]) > 0.5
    assert np.mean(found["deup"]) < np.mean(found["disagreement"])


def test_a_line_through_a_wave_with_a_gap_and_uneven_noise():
    x = generator(0, "x").uniform(-3, 3, 6000)
    x = x[np.abs(x) > 0.5][:3000]
    data, grid = points(slow_wave, x, np.where(x > 2.2, 0.6, 0.1), 0), np.linspace(-3, 3, 300)
    known = grid[np.abs(grid) > 0.5]
    model = PolynomialDynamics(1)
    deup = fitted(DeupSettings(aleatoric="neighbors").build(seed=0), model, data)
    spread = DisagreementSettings().build(seed=0)
    spread.fit(model, data, np.zeros(len(data), np.bool_))
    rho = {
        (estimate, len(where)): stats.spearmanr(
            answers(estimate, model, where), excess(model, slow_wave, where)
        ).statistic
        for estimate in (deup, spread)
        for where in (known, grid)
    }
    assert rho[deup, len(known)] > 0.9
    assert rho[spread, len(known)] < 0.5
    assert rho[deup, len(grid)] > rho[spread, len(grid)]  # in the gap itself, no held-out error teaches anything


def bent(x):
    """A wave on the left of 0, flat on the right: a line can be right about the latter alone."""
    return np.where(x < 0, wave(x), 0.0)


def bent_data(rows=3000, seed=0) -> Transitions:
    """Noise is large at the right end alone; nothing is known between -0.8 and 0.2."""
    x = generator(seed, "x").uniform(-3, 3, 2 * rows)
    x = x[(x < -0.8) | (x > 0.2)][:rows]
    return points(bent, x, np.where(x > 1.5, 0.8, 0.1), seed)


WRONG, NOISY, QUIET = np.linspace(-3, -0.8, 100), np.linspace(1.6, 3, 100), np.linspace(0.2, 1.4, 100)


def test_noise_is_no_error_of_the_model_once_neighbors_show_it():
    model, means = PolynomialDynamics(1), {}
    state = fitted(DeupSettings().build(seed=0), model, bent_data()).state()
    for aleatoric in ("none", "neighbors", "predicted"):
        estimate = DeupSettings(aleatoric=aleatoric).build(seed=0)
        estimate.load_state(state)
        means[aleatoric] = [float(answers(estimate, model, grid).mean()) for grid in (WRONG, NOISY, QUIET)]
    wrong, noisy, quiet = means["neighbors"]
    assert max(noisy, quiet) < 0.25 * wrong
    assert means["none"][1] > means["none"][0]  # the whole error is largest where there is only noise
    assert means["predicted"][0] < 0.6 * wrong  # the members' own variance holds their bias, and takes it off as well


def test_a_gap_is_known_once_errors_in_it_were_met():
    """Held-out rows lie where the data lie: of the gap they say nothing. Errors met before a refit do."""
    model, data, gap = PolynomialDynamics(1), bent_data(), np.linspace(-0.75, -0.3, 60)
    estimate = fitted(DeupSettings(aleatoric="neighbors").build(seed=0), model, data)
    truth = excess(model, bent, gap).mean() / targets_of(data, 1).var().item()
    before = answers(estimate, model, gap).mean()
    estimate.observe(model, points(bent, generator(1, "gap").uniform(-0.8, 0.2, 200), 0.1, 1))
    assert answers(estimate, model, gap).mean() == before  # nothing changes until the next fit
    after = answers(fitted(estimate, model, data), model, gap).mean()
    assert abs(math.log(after / truth)) < 0.5 < abs(math.log(max(before, 1e-9) / truth))


def test_folds_give_every_row_an_error_of_a_model_that_did_not_see_it():
    data, grid = points(wave, generator(0, "x").uniform(-2, 2, 400), 0.1, 0), np.linspace(-2, 2, 300)
    model, estimate = PolynomialDynamics(4), DeupSettings(features=("seen", "inputs")).build(seed=0)
    built: list[PolynomialDynamics] = []

    def build() -> PolynomialDynamics:
        built.append(PolynomialDynamics(4, seed=len(built)))
        return built[-1]

    observe_folds(estimate, build, data, folds=4, seed=0)
    assert [fold.version for fold in built] == [1] * 4
    model.fit(data, 0)
    estimate.fit(model, data, np.zeros(len(data), np.bool_))
    assert stats.spearmanr(answers(estimate, model, grid), excess(model, wave, grid)).statistic > 0.8
    assert sorted(estimate.state().arrays["logged/1"].shape) == [400]
    with pytest.raises(ValueError, match="folds"):
        observe_folds(estimate, build, data, folds=1, seed=0)


def test_few_errors_teach_nothing():
    data, estimate = points(wave, np.linspace(-1, 1, 40), 0.1, 0), DeupSettings(updates=5).build(seed=0)
    model = PolynomialDynamics(2)
    model.fit(data, 0)
    estimate.fit(model, data, np.arange(40) < LEAST_EXAMPLES - 1)
    assert not estimate.ready
    estimate.fit(model, data, np.arange(40) < LEAST_EXAMPLES)
    assert estimate.ready


def test_a_state_of_other_features_is_refused():
    with pytest.raises(CheckpointRefused, match="features"):
        Deup(DeupSettings(features=("inputs",)), seed=0).load_state(Deup(DeupSettings(), seed=0).state())


def test_density_is_that_of_gaussian_kernels():
    rng = generator(0, "kernels")
    inputs, asked = (torch.from_numpy(rng.normal(size=(n, 2)).astype(np.float32)) for n in (50, 7))
    around = Neighborhood.of(inputs, torch.zeros(50, 1))
    scaled = (asked - around.center_I) / around.scale_I
    kernels = [
        stats.multivariate_normal(row, around.bandwidth**2).pdf(scaled.double().numpy())
        for row in around.sample_NI.double().numpy()
    ]
    np.testing.assert_allclose(around.log_density(asked).numpy(), np.log(np.mean(kernels, axis=0)), rtol=1e-3)
    assert float(around.log_density(torch.full((1, 2), 1e4))) == LEAST_LOG_DENSITY
    assert 0.1 < around.bandwidth < 1.0


def test_noise_of_neighbors_is_the_variance_of_noise_and_not_of_a_slope():
    rng = generator(0, "slope")
    x = torch.from_numpy(rng.uniform(-1, 1, (2000, 1)).astype(np.float32))
    residual = 3 * x + torch.from_numpy(0.5 * rng.normal(size=(2000, 1)).astype(np.float32))
    around = Neighborhood.of(x, residual)
    assert float(around.noise(torch.zeros(1, 1), 1500)) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("loss", ["likelihood", "squared"])
def test_the_predicted_error_is_the_conditional_mean(loss):
    rng = generator(0, "means")
    x = torch.from_numpy(rng.uniform(-1, 1, (4000, 1)).astype(np.float32))
    error = (1 + 2 * (x[:, 0] > 0)) * torch.from_numpy(rng.chisquare(1, 4000).astype(np.float32))
    predictor = Predictor.trained(DeupSettings(loss=loss, updates=400), x, error, seed=0)
    low, high = (float(predictor(torch.linspace(*ends, 50)[:, None]).mean()) for ends in ((-0.9, -0.1), (0.1, 0.9)))
    assert low == pytest.approx(1.0, rel=0.2)
    assert high == pytest.approx(3.0, rel=0.2)


def test_views_are_taken_of_elites_and_spread_of_all():
    data = points(cubic, np.linspace(-1, 1, 30), 0.1, 0)
    model = PolynomialDynamics(3, members=4)
    model.fit(data, 0)
    scale = scale_of(targets_of(data, 1))
    obs = torch.from_numpy(data.obs_BO.copy())
    seen, mean = views(model, obs, obs, scale), model.predict(obs, obs).target_mean[..., 0] / scale
    torch.testing.assert_close(seen.spread_N, mean.var(dim=0, correction=0))
    torch.testing.assert_close(seen.mean_NT[:, 0], mean.mean(dim=0))
    assert torch.equal(scale_of(torch.ones(4, 2)), torch.ones(2))
