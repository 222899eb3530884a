from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from proxygap.base.seeds import generator
from proxygap.probe.statistics import (
    METHODS,
    correlation_rows,
    default_block_length,
    expanded_level,
    iqm,
    paired_difference,
    pooled_correlation,
    rank_correlation,
    resample_rows,
    stratified_bootstrap,
)

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_estimate_and_every_resample_equal_scipy(method, ties):
    rng = generator(0, "test")
    x, y = rng.normal(size=(2, 25))
    y = x + y
    if ties:
        x, y = np.round(x), np.round(y)
    rows = resample_rows(25, 40, rng)
    expected = [SCIPY[method](x[row], y[row]).statistic for row in rows]
    np.testing.assert_allclose(correlation_rows(x, y, rows, method), expected, atol=1e-12)
    assert rank_correlation(x, y, method, rng).estimate == pytest.approx(SCIPY[method](x, y).statistic)


@pytest.mark.parametrize("method", METHODS)
def test_interval_covers_the_true_correlation_about_as_often_as_it_says(method):
    rho = 0.5
    truth = {"pearson": rho, "spearman": 6 / math.pi * math.asin(rho / 2), "kendall": 2 / math.pi * math.asin(rho)}
    rng = generator(1, "test")
    hits = 0
    for _ in range(300):
        x, noise = rng.normal(size=(2, 30))
        interval = rank_correlation(x, rho * x + math.sqrt(1 - rho**2) * noise, method, rng, 300, 0.9)
        hits += interval.low <= truth[method] <= interval.high
    assert 0.83 <= hits / 300 <= 0.97


def test_blocks_keep_coverage_where_neighbors_depend_on_each_other():
    rng = generator(2, "test")
    hits = {None: 0, 3: 0}
    for _ in range(200):
        noise = rng.normal(size=(2, 74))
        series = np.zeros_like(noise)
        for step in range(1, 74):
            series[:, step] = 0.8 * series[:, step - 1] + noise[:, step]
        for length in hits:
            interval = rank_correlation(*series[:, 50:], "spearman", rng, 300, 0.95, length)
            hits[length] += interval.low <= 0 <= interval.high
    assert hits[3] / 200 >= 0.88
    assert hits[3] > hits[None] + 10


def test_blocks_are_neighbors():
    rows = resample_rows(10, 50, generator(0, "test"), 5)
    assert rows.shape == (50, 10)
    assert rows.min() == 0
    assert rows.max() == 9
    assert (np.diff(rows[:, :5], axis=1) == 1).all()
    assert default_block_length(27) == 3
    assert default_block_length(28) == 4
    assert default_block_length(1) == 1


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [([], [], "pairs: 0"), ([1, 2], [3, 4], "pairs: 2"), ([1, 1, 1, 1], [1, 2, 3, 4], "constant")],
)
def test_what_cannot_be_estimated_says_why(x, y, word):
    interval = rank_correlation(x, y, "kendall", generator(0, "test"))
    assert math.isnan(interval.estimate)
    assert not interval.known
    assert word in interval.reason


def test_non_finite_pairs_are_dropped_and_counted():
    x = [1.0, math.nan, 3.0, 4.0, math.inf, 6.0]
    interval = rank_correlation(x, [2.0, 1.0, 4.0, 3.0, 9.0, 8.0], "spearman", generator(0, "test"))
    assert (interval.samples, interval.dropped) == (4, 2)
    assert interval.estimate == pytest.approx(stats.spearmanr([1, 3, 4, 6], [2, 4, 3, 8]).statistic)
    assert "only 4 pairs" in interval.reason
    with pytest.raises(ValueError, match="not pairs"):
        rank_correlation([1, 2], [1, 2, 3], "pearson", generator(0, "test"))


def test_pooling_ignores_differences_between_seeds():
    """Within each seed the sides oppose each other; between seeds they agree (Simpson's paradox)."""
    rng = generator(3, "test")
    pairs = []
    for level in (0.0, 100.0, 200.0):
        x = rng.normal(size=20)
        pairs.append((level + x, level - x + 0.1 * rng.normal(size=20)))
    pooled = pooled_correlation(pairs, "spearman", rng)
    together = rank_correlation(*np.concatenate(pairs, axis=1), "spearman", rng)
    assert together.estimate > 0.5
    assert pooled.high < -0.9
    assert pooled.samples == 60
    expected = np.mean([stats.spearmanr(x, y).statistic for x, y in pairs])
    assert pooled.estimate == pytest.approx(expected)


def test_pooling_names_seeds_that_could_not_be_used():
    pooled = pooled_correlation([([1, 2, 3, 4], [1, 3, 2, 4]), ([1], [2])], "spearman", generator(0, "test"))
    assert "1 of 2 seeds" in pooled.reason
    assert not pooled_correlation([], "spearman", generator(0, "test")).known


def test_interquartile_mean():
    assert iqm([0, 1, 2, 1000]) == 1.5
    rng = generator(0, "test")
    values = rng.normal(size=(7, 5))
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25, axis=None))
    assert iqm([[1.0, math.nan], [3.0, 2.0]]) == 2.0
    assert math.isnan(iqm([]))


def test_expanded_level_turns_percentiles_of_normal_means_into_t_intervals():
    """The sample's own variance divides by n, so the normal percentile times this factor is the t interval."""
    level = expanded_level(0.95, 5)
    assert stats.norm.ppf(0.5 + level / 2) == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(5 / 4))
    assert expanded_level(0.95, 10_000) == pytest.approx(0.95, abs=1e-3)


def test_mean_of_five_seeds_is_covered():
    rng = generator(4, "test")
    draws = [stratified_bootstrap(rng.normal(size=5), rng, 500, 0.9, "mean") for _ in range(300)]
    assert 0.83 <= np.mean([one.low <= 0 <= one.high for one in draws]) <= 0.97


def test_strata_are_resampled_within_tasks():
    """Two tasks with constant scores: resampling within tasks can never change the mean."""
    values = np.column_stack([np.zeros(6), np.full(6, 10.0)])
    interval = stratified_bootstrap(values, generator(0, "test"), center="mean")
    assert (interval.estimate, interval.low, interval.high) == (5.0, 5.0, 5.0)


def test_failed_seeds_are_counted_and_one_seed_has_no_interval():
    rng = generator(0, "test")
    assert stratified_bootstrap([1.0, math.nan, 3.0], rng).dropped == 1
    assert stratified_bootstrap([1.0, 2.0, 3.0], rng).reason == "only 3 seeds"
    alone = stratified_bootstrap([2.0], rng)
    assert alone.estimate == 2.0
    assert alone.reason == "one seed"
    assert not alone.known
    assert stratified_bootstrap([math.nan], rng).reason == "no run gave a finite value"


def test_pairing_removes_what_seeds_share():
    rng = generator(5, "test")
    luck = 100 * rng.normal(size=8)
    other = luck + 1 + 0.01 * rng.normal(size=8)
    interval = paired_difference(other, luck)
    assert 0.9 < interval.low < 1 < interval.high < 1.1
    expected = stats.ttest_rel(other, luck).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    gone = paired_difference([1.0, math.nan], [math.nan, 1.0])
    assert (gone.samples, gone.dropped) == (0, 2)
    assert "both sides" in gone.reason
    assert paired_difference([3.0], [1.0]).estimate == 2.0


def test_three_seeds_that_agree_by_luck_decide_nothing():
    rng = generator(6, "test")
    found = [paired_difference(rng.normal(size=3), rng.normal(size=3)) for _ in range(300)]
    assert np.mean([one.low > 0 or one.high < 0 for one in found]) <= 0.09
