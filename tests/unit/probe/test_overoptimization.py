from __future__ import annotations

import math

import numpy as np
import pytest

from proxygap.base.seeds import generator
from proxygap.probe.overoptimization import Curve, by_distance, fit_law, gold_at, law_gold, law_peak

ARMS = 8000
SEEDS = 10
BUDGETS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
TILTS = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 6.0])


def law_curves(law, alpha, beta, noise, rng, seeds=8, points=12, reach=3.0):
    d = np.linspace(reach / points, reach, points)
    gold = law_gold(law, alpha, beta, d)
    return [Curve(d**2, gold + noise * rng.standard_normal(points), d) for _ in range(seeds)]


def arms(seed, members, heavy):
    """The arms model: gold and z-scored proxies of `ARMS` arms, each member with an error of its own."""
    rng = generator(seed, "test/arms")
    gold = rng.standard_normal(ARMS)
    error = rng.standard_t(3, (members, ARMS)) / math.sqrt(3) if heavy else rng.standard_normal((members, ARMS))
    proxy = gold + error
    return gold, (proxy - proxy.mean(axis=1, keepdims=True)) / proxy.std(axis=1, keepdims=True)


def best_of_n_curve(gold, proxy):
    """Exact for a uniform reference: the arm of rank u has weight u^n - (u - 1/N)^n."""
    upper = np.empty(ARMS)
    upper[np.argsort(proxy)] = np.arange(1, ARMS + 1) / ARMS
    weights = [upper**n - (upper - 1 / ARMS) ** n for n in BUDGETS]
    kl = [float((w[w > 0] * np.log(w[w > 0] * ARMS)).sum()) for w in weights]
    return Curve(np.array(kl), np.array([w @ gold for w in weights]), np.array([w @ proxy for w in weights]))


def tilted(proxy, strength):
    weight = np.exp(strength * (proxy - proxy.max()))
    return weight / weight.sum()


def tilt_curve(gold, proxy):
    """Exact tilts exp(strength * proxy), the strength found by bisection for each KL."""
    weights = []
    for target in TILTS:
        low, high = 0.0, 1000.0
        for _ in range(80):
            middle = (low + high) / 2
            weight = tilted(proxy, middle)
            kl = float((weight[weight > 0] * np.log(weight[weight > 0] * ARMS)).sum())
            low, high = (middle, high) if kl < target else (low, middle)
        weights.append(tilted(proxy, low))
    return Curve(TILTS, np.array([w @ gold for w in weights]), np.array([w @ proxy for w in weights]))


@pytest.mark.parametrize(("law", "alpha", "beta"), [("best_of_n", 1.0, 0.2), ("rl", 0.9, 0.35)])
def test_noiseless_curves_give_back_their_coefficients(law, alpha, beta):
    fit = fit_law(law_curves(law, alpha, beta, 0.0, generator(0, "test")), law, generator(1, "test"))
    assert fit.alpha.estimate == pytest.approx(alpha, abs=1e-12)
    assert fit.beta.estimate == pytest.approx(beta, abs=1e-12)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-12)
    assert fit.rmse == pytest.approx(0.0, abs=1e-12)
    assert fit.largest_d == pytest.approx(3.0)
    assert (fit.alpha.low, fit.alpha.high) == (pytest.approx(alpha, abs=1e-9), pytest.approx(alpha, abs=1e-9))
    peak = alpha / (2 * beta) if law == "best_of_n" else math.exp(alpha / beta - 1)
    assert fit.peak_d.estimate == pytest.approx(peak)


@pytest.mark.parametrize(("law", "alpha", "beta"), [("best_of_n", 1.0, 0.2), ("rl", 0.9, 0.35)])
def test_the_peak_is_where_the_law_is_highest(law, alpha, beta):
    d = np.linspace(0, 8, 80_001)
    assert law_peak(law, alpha, beta) == pytest.approx(d[law_gold(law, alpha, beta, d).argmax()], abs=2e-4)
    assert law_gold(law, alpha, beta, np.zeros(1)) == 0.0
    assert law_peak(law, alpha, 0.0) == math.inf
    assert law_peak(law, alpha, -0.1) == math.inf
    assert law_peak("rl", 1.0, 1e-9) == math.inf


def test_intervals_cover_the_true_coefficients_about_as_often_as_they_say():
    rng = generator(2, "test")
    hits = np.zeros(3)
    for _ in range(200):
        fit = fit_law(law_curves("rl", 0.9, 0.35, 0.15, rng, seeds=6), "rl", rng, resamples=300, confidence=0.9)
        truth = (0.9, 0.35, math.exp(0.9 / 0.35 - 1))
        hits += [it.low <= t <= it.high for it, t in zip((fit.alpha, fit.beta, fit.peak_d), truth, strict=True)]
    assert (hits / 200 >= 0.83).all()
    assert (hits / 200 <= 0.97).all()


def test_a_law_that_never_turns_down_has_its_peak_at_infinity_and_says_so():
    fit = fit_law(law_curves("rl", 0.8, -0.1, 0.05, generator(3, "test")), "rl", generator(4, "test"))
    assert fit.peak_d.estimate == math.inf
    assert fit.peak_d.high == math.inf
    assert not fit.peak_d.known
    assert "100% of the resamples never turn down" in fit.peak_d.reason


def test_points_at_the_reference_and_missing_ones_are_left_out():
    good = law_curves("best_of_n", 1.0, 0.2, 0.0, generator(0, "test"), seeds=2)
    holed = [
        Curve(np.append([0.0, -0.01, 1.0], c.kl_T), np.append([5.0, 5.0, np.nan], c.gold_T), np.zeros(15)) for c in good
    ]
    fit = fit_law(holed, "best_of_n", generator(1, "test"))
    assert fit.points == 24
    assert fit.alpha.estimate == pytest.approx(1.0)
    assert fit.alpha.reason == "only 2 seeds"


def test_one_seed_has_no_interval_and_one_distance_no_law():
    (curve,) = law_curves("rl", 1.0, 0.2, 0.0, generator(0, "test"), seeds=1)
    fit = fit_law([curve], "rl", generator(1, "test"))
    assert fit.alpha.estimate == pytest.approx(1.0)
    assert math.isnan(fit.alpha.low)
    assert fit.alpha.reason == "one seed"
    point = Curve(np.array([0.0, 1.0]), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="two distances above 0"):
        fit_law([point], "rl", generator(1, "test"))


def test_r_squared_prefers_the_law_that_made_the_curve():
    curves = law_curves("rl", 0.9, 0.35, 0.02, generator(5, "test"), reach=4.0)
    rl, best_of_n = (fit_law(curves, law, generator(6, "test"), resamples=10) for law in ("rl", "best_of_n"))
    assert rl.r_squared > 0.97
    assert best_of_n.rmse > 2 * rl.rmse


def test_measurements_name_the_law():
    (first, *_) = law_curves("rl", 0.9, 0.35, 0.0, generator(0, "test"))
    keys = {m.key for m in fit_law([first], "rl", generator(0, "test")).measurements("single/")}
    assert {"gap/single/law_rl/alpha", "gap/single/law_rl/peak_d_high", "gap/single/law_rl/r_squared"} <= keys


@pytest.mark.parametrize("members", [1, 5])
def test_gaussian_arms_follow_the_closed_form(members):
    curves = []
    for seed in range(SEEDS):
        gold, proxy = arms(seed, members, heavy=False)
        curves.append(tilt_curve(gold, proxy.mean(axis=0)))
    fit = fit_law(curves, "rl", generator(0, "test"))
    # jointly normal gold and proxy: tilting by KL moves the proxy's mean by sqrt(2 KL), gold's by rho times that
    rho = 1 / math.sqrt(1 + 1 / members)
    assert fit.alpha.estimate == pytest.approx(math.sqrt(2) * rho, abs=0.05)
    assert abs(fit.beta.estimate) < 0.1
    assert fit.r_squared_own > 0.99
    assert fit.r_squared < fit.r_squared_own


def test_heavy_tailed_arms_turn_down_under_best_of_n_and_fit_the_rl_law():
    pairs = [arms(seed, 1, heavy=True) for seed in range(SEEDS)]
    best_of_n = [best_of_n_curve(gold, proxy[0]) for gold, proxy in pairs]
    tilts = [tilt_curve(gold, proxy[0]) for gold, proxy in pairs]
    drops = [curve.gold_T.max() - curve.gold_T[-1] for curve in best_of_n]
    assert min(drops) > 0.15
    assert np.mean(drops) == pytest.approx(0.56, abs=0.2)
    fit = fit_law(tilts, "rl", generator(0, "test"))
    assert fit.alpha.estimate == pytest.approx(0.55, abs=0.08)
    assert fit.beta.estimate == pytest.approx(0.34, abs=0.08)
    assert fit.r_squared_own > 0.95
    quadratic = fit_law(best_of_n, "best_of_n", generator(0, "test"))
    assert quadratic.peak_d.high < math.sqrt(best_of_n[0].kl_T[-1])


def test_curves_of_unequal_pace_are_read_at_equal_distances():
    slow, quick = np.linspace(0, 2, 41), np.linspace(0, 3, 11)
    curves = [Curve(d**2, 2 * d, 5 * d) for d in (slow, quick)]
    for curve in by_distance(curves, points=9):
        np.testing.assert_allclose(curve.d_T, np.linspace(0, 2, 9), atol=1e-12)
        np.testing.assert_allclose(curve.gold_T, 2 * curve.d_T, atol=1e-12)
        np.testing.assert_allclose(curve.proxy_T, 5 * curve.d_T, atol=1e-12)


def test_a_distance_reached_twice_counts_the_first_time():
    curve = Curve(np.array([0.0, 1.0, 4.0, 1.0, 9.0]), np.array([0.0, 1.0, 2.0, -7.0, 3.0]), np.zeros(5))
    assert gold_at(curve, 1.0) == 1.0
    assert gold_at(curve, 2.25) == pytest.approx(1.5)
    assert gold_at(curve, 4.0) == 2.0
    assert gold_at(curve, 9.0) == 3.0
    assert math.isnan(gold_at(curve, 9.1))


def test_seeds_without_common_distances_are_refused():
    near, far = np.array([0.0, 0.1]), np.array([0.2, 4.0])
    with pytest.raises(ValueError, match="no range of distances"):
        by_distance([Curve(near, near, near), Curve(far, far, far)])
