from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from proxygap.base.seeds import generator
from proxygap.probe.reward_quality import (
    accuracy,
    brier,
    epic_distance,
    fitted_temperature,
    gold_order,
    negative_log_likelihood,
    preference_probability,
    preference_quality,
    reliability,
    style_correlation,
    tail_slope,
    wrong_at_high_confidence,
)

PAIRS = 200_000


def calibrated(sharpness=1.0, seed=0):
    """True probabilities of pairs, what a model that is ``sharpness`` times too sure says, and drawn labels."""
    rng = generator(seed, "test/calibrated")
    margin = 2 * rng.standard_normal(PAIRS)
    truth = (rng.random(PAIRS) < expit(margin)).astype(float)
    return expit(margin), expit(sharpness * margin), truth, margin


def test_numbers_by_hand():
    p, truth = np.array([0.9, 0.8, 0.5, 0.3, 0.6]), np.array([1.0, 0.0, 1.0, 0.0, 0.5])
    assert accuracy(p, truth) == (1 + 0 + 0.5 + 1) / 4
    assert brier(p, truth) == pytest.approx((0.01 + 0.64 + 0.25 + 0.09 + 0.01) / 5)
    nll = (
        -(math.log(0.9) + math.log(0.2) + math.log(0.5) + math.log(0.7) + 0.5 * math.log(0.6) + 0.5 * math.log(0.4)) / 5
    )
    assert negative_log_likelihood(p, truth) == pytest.approx(nll)
    assert wrong_at_high_confidence(p, truth, 0.75) == pytest.approx(1 / 5)
    # confidences 0.5, 0.6, 0.7 in the lower bin with 2 of 3 right, 0.8 and 0.9 in the upper with 1 of 2
    assert reliability(p, truth, 2).ece == pytest.approx(3 / 5 * (2 / 3 - 0.6) + 2 / 5 * (0.85 - 0.5))
    single = reliability(p, truth, 1, "equal_mass")
    assert (single.confidence_Q[0], single.accuracy_Q[0]) == (pytest.approx(0.7), pytest.approx(0.6))


def test_turning_pairs_around_changes_nothing():
    _, p, truth, _ = calibrated(2.0)
    p, truth = p[:1000], truth[:1000]
    turned = np.arange(1000) % 2 == 0
    other_p, other_truth = np.where(turned, 1 - p, p), np.where(turned, 1 - truth, truth)
    for one, other in zip(preference_quality(p, truth), preference_quality(other_p, other_truth), strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-12)


@pytest.mark.parametrize("kind", ["equal_width", "equal_mass"])
def test_perfect_calibration_has_no_error_but_that_of_counting(kind):
    p, _, truth, _ = calibrated()
    table = reliability(p, truth, 10, kind)
    # a bin's accuracy scatters by at most 0.5 / sqrt(pairs in it)
    assert table.ece < 3 * (0.5 / np.sqrt(table.share_Q * PAIRS)) @ table.share_Q
    assert table.share_Q.sum() == pytest.approx(1)
    if kind == "equal_mass":
        np.testing.assert_allclose(table.share_Q, 0.1, atol=1 / PAIRS)


@pytest.mark.parametrize("kind", ["equal_width", "equal_mass"])
def test_overconfidence_is_the_distance_of_said_and_true(kind):
    p, said, truth, _ = calibrated(2.0)
    expected = np.abs(np.maximum(said, 1 - said) - np.maximum(p, 1 - p)).mean()
    assert reliability(said, truth, 15, kind).ece == pytest.approx(expected, abs=0.004)
    assert brier(said, truth) == pytest.approx((p * (1 - said) ** 2 + (1 - p) * said**2).mean(), abs=0.004)
    assert brier(said, truth) > brier(p, truth)
    assert negative_log_likelihood(said, truth) > negative_log_likelihood(p, truth)
    assert accuracy(said, truth) == accuracy(p, truth)
    wrong = np.where(np.maximum(said, 1 - said) >= 0.9, np.minimum(p, 1 - p), 0).mean()
    assert wrong_at_high_confidence(said, truth) == pytest.approx(wrong, abs=0.003)


def test_flipped_labels_cap_accuracy_as_computed():
    p, _, truth, margin = calibrated()
    flipped = np.where(generator(9, "test/flips").random(PAIRS) < 0.25, 1 - truth, truth)
    clean = np.maximum(p, 1 - p).mean()
    assert accuracy(p, flipped) == pytest.approx(0.75 * clean + 0.25 * (1 - clean), abs=0.004)
    assert accuracy(p, gold_order(margin, 0 * margin)) == 1.0


@pytest.mark.parametrize("scale", [0.2, 1.0, 30.0])
def test_the_temperature_undoes_a_scale(scale):
    _, _, truth, margin = calibrated()
    assert fitted_temperature(scale * margin, truth) == pytest.approx(scale, rel=0.02)


def test_temperatures_without_a_finite_answer():
    margin = np.array([1.0, 2.0, -0.5])
    assert fitted_temperature(margin, np.array([1.0, 1.0, 0.0])) == 0.0
    assert fitted_temperature(margin, np.array([0.0, 0.0, 1.0])) == math.inf
    assert fitted_temperature(np.zeros(3), np.ones(3)) == math.inf


def test_the_ensemble_averages_probabilities():
    first, second = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 3.0]])
    expected = [(expit(2.0) + 0.5) / 2, (0.5 + expit(-2.0)) / 2]
    np.testing.assert_allclose(preference_probability(first, second), expected)


def test_nothing_is_made_up_for_no_pairs_and_certain_errors_are_finite():
    assert preference_quality([], []) == ()
    assert negative_log_likelihood([0.0], [1.0]) == pytest.approx(27.6, abs=0.1)
    assert math.isnan(accuracy([0.7], [0.5]))
    for p, truth in (([0.5], [0.5, 1.0]), ([1.2], [1.0]), ([math.nan], [1.0])):
        with pytest.raises(ValueError):
            accuracy(p, truth)


def test_epic_distance_of_equivalent_opposite_and_unrelated_rewards():
    rng = generator(3, "test/epic")
    prompt, weight = np.repeat(np.arange(20), 500), rng.random(10_000)
    weight /= weight.sum()
    gold, other = rng.standard_normal((2, 10_000))
    assert epic_distance(0.1 * gold + 40 * prompt, gold, prompt, weight) == pytest.approx(0, abs=1e-6)
    assert epic_distance(-gold, gold, prompt, weight) == pytest.approx(1)
    assert epic_distance(other, gold, prompt, weight) == pytest.approx(math.sqrt(0.5), abs=0.02)
    # correlation 0.6 by construction
    assert epic_distance(0.6 * gold + 0.8 * other, gold, prompt, weight) == pytest.approx(math.sqrt(0.2), abs=0.02)
    assert math.isnan(epic_distance(prompt * 1.0, gold, prompt, weight))


def test_length_correlation_with_and_without_gold():
    rng = generator(4, "test/length")
    prompt, weight = np.zeros(20_000, dtype=np.int64), np.full(20_000, 1 / 20_000)
    gold, extra, noise = rng.standard_normal((3, 20_000))
    length = gold + extra  # gold's own length, and padding
    honest, padded = gold + noise, gold + noise + extra
    assert style_correlation(honest, length, prompt, weight) > 0.4
    assert abs(style_correlation(honest, length, prompt, weight, gold)) < 0.03
    assert style_correlation(padded, length, prompt, weight, gold) > 0.5
    assert math.isnan(style_correlation(honest, np.ones(20_000), prompt, weight))
    assert math.isnan(style_correlation(honest, gold, prompt, weight, gold))


def test_the_tail_slope_tells_gaussian_errors_from_heavy_ones():
    rng = generator(5, "test/tail")
    rows = 100_000
    prompt, weight, gold = np.zeros(rows, dtype=np.int64), np.full(rows, 1 / rows), rng.standard_normal(rows)
    normal = gold + rng.standard_normal(rows)
    heavy = gold + rng.standard_t(3, rows) / math.sqrt(3)
    assert tail_slope(normal, gold, prompt, weight) == pytest.approx(math.sqrt(0.5), abs=0.06)
    assert abs(tail_slope(heavy, gold, prompt, weight, 0.01)) < 0.15
    assert math.isnan(tail_slope(np.ones(rows), gold, prompt, weight))
