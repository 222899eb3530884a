from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from proxygap.base.seeds import generator
from proxygap.probe import weighted


def test_integer_weights_equal_repeated_rows():
    rng = generator(0, "test")
    x, y = rng.integers(0, 5, (2, 30)).astype(float)  # many ties
    count = rng.integers(0, 4, 30)
    weight = count / count.sum()
    many_x, many_y = np.repeat(x, count), np.repeat(y, count)
    assert weighted.mean(x, weight) == pytest.approx(many_x.mean())
    assert weighted.std(x, weight) == pytest.approx(many_x.std())
    assert weighted.pearson(x, y, weight) == pytest.approx(stats.pearsonr(many_x, many_y).statistic)
    assert weighted.spearman(x, y, weight) == pytest.approx(stats.spearmanr(many_x, many_y).statistic)
    assert weighted.slope(x, y, weight) == pytest.approx(stats.linregress(many_x, many_y).slope)
    for share in (0.1, 0.35, 0.5, 0.9, 1.0):
        expected = np.quantile(many_x, share, method="inverted_cdf")
        assert weighted.quantile(x, weight, share) == expected


def test_centering_takes_the_weighted_mean_of_each_prompt():
    prompt = np.array([0, 0, 2, 2, 3])
    weight = np.array([0.3, 0.1, 0.2, 0.4, 0.0])
    values = np.array([1.0, 5.0, 3.0, 6.0, 7.0])
    np.testing.assert_allclose(weighted.centered(values, prompt, weight), [-1.0, 3.0, -2.0, 1.0, 7.0])


def test_rank_correlation_within_prompts_ignores_what_a_prompt_adds():
    rng = generator(1, "test")
    prompt = np.repeat(np.arange(5), 40)
    x, noise = rng.standard_normal((2, 200))
    y, weight = x + noise, np.full(200, 1 / 200)
    plain = weighted.spearman_within_prompts(x, y, prompt, weight)
    shifted = weighted.spearman_within_prompts(x + 50 * prompt, y - 70 * prompt, prompt, weight)
    assert shifted == pytest.approx(plain, abs=1e-9)
    assert 0.5 < plain < 0.85
    assert weighted.spearman(x + 50 * prompt, y - 70 * prompt, weight) < -0.9


def test_ties_stay_ties_after_centering():
    prompt, weight = np.repeat([0, 1], 3), np.full(6, 1 / 6)
    x = np.array([0.1, 0.1, 0.4, 0.7, 0.7, 1.0]) / 3
    y = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    same = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    expected = weighted.spearman(same, y, weight)
    assert weighted.spearman_within_prompts(x, y, prompt, weight) == pytest.approx(expected)


def test_rows_of_weight_0_do_not_count_even_where_they_are_not_finite():
    weight = np.array([0.5, 0.0, 0.25, 0.25])
    x, y = np.array([1.0, -np.inf, 2.0, 3.0]), np.array([2.0, np.nan, 3.0, 4.0])
    assert weighted.mean(x, weight) == 1.75
    assert weighted.spearman(x, y, weight) == pytest.approx(1)


def test_a_constant_side_has_no_correlation():
    weight, x = np.full(4, 0.25), np.arange(4.0)
    assert math.isnan(weighted.pearson(x, np.full(4, 1e9 / 3), weight))
    assert math.isnan(weighted.spearman(np.ones(4), x, weight))
    assert math.isnan(weighted.slope(np.ones(4), x, weight))
    assert weighted.slope(x, np.ones(4), weight) == 0
