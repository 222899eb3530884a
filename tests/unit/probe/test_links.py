from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from proxygap.base.seeds import generator
from proxygap.probe.links import links_along, predictor_difference, three_links
from proxygap.probe.overoptimization import Curve


def test_each_link_is_the_spearman_correlation_of_its_ends():
    rng = generator(0, "test")
    accuracy, noise, other = rng.standard_normal((3, 40))
    proxy, gold = accuracy + 0.3 * noise, other
    links = three_links(accuracy, proxy, gold, rng)
    assert links.accuracy_to_proxy.estimate == pytest.approx(stats.spearmanr(accuracy, proxy).statistic)
    assert links.proxy_to_gold.estimate == pytest.approx(stats.spearmanr(proxy, gold).statistic)
    assert links.accuracy_to_gold.estimate == pytest.approx(stats.spearmanr(accuracy, gold).statistic)
    assert links.broken == ("proxy_to_gold", "accuracy_to_gold")
    keys = [m.key for m in links.measurements()]
    assert keys[:3] == [
        "gap/link/accuracy_to_proxy",
        "gap/link/accuracy_to_proxy_low",
        "gap/link/accuracy_to_proxy_high",
    ]


def overoptimized(rng, trials=30):
    """Trials whose proxy rises with d, and whose gold turns down; past the knee, a higher proxy means less gold."""
    accuracy = rng.uniform(0.55, 0.75, trials)
    d = np.linspace(0, 3, 12)
    drive = (accuracy - 0.5) / 0.1 + 0.2 * rng.standard_normal(trials)
    curves = []
    for strength in drive:
        gold = strength * d * (1 - d / 3) - 0.3 * d + 0.05 * rng.standard_normal(12)
        gold -= np.where(d > 1.5, strength * (d - 1.5), 0.0)
        curves.append(Curve(d**2, gold, strength * d))
    return accuracy, curves


def test_past_the_knee_the_proxy_to_gold_link_breaks_and_the_first_one_holds():
    rng = generator(1, "test")
    found = links_along(*overoptimized(rng), rng, resamples=300)
    assert found.knee.found
    before, after = found.links[4], found.links[-1]
    assert before.proxy_to_gold.low > 0.5
    assert after.proxy_to_gold.high < 0
    assert after.accuracy_to_proxy.low > 0.5
    assert after.broken == ("proxy_to_gold", "accuracy_to_gold")
    assert found.knee.d.low < 1.5 < found.knee.d.high + 1
    assert found.kl_G[-1] == pytest.approx(9.0)


def test_gold_as_the_reward_breaks_no_link_and_has_no_knee():
    rng = generator(2, "test")
    accuracy, curves = overoptimized(rng)
    ideal = [Curve(c.kl_T, c.proxy_T, c.proxy_T) for c in curves]
    found = links_along(accuracy, ideal, rng, resamples=300)
    assert not found.knee.found
    for links in found.links[1:]:
        assert links.broken == ()
        assert links.proxy_to_gold.estimate == pytest.approx(1)


def test_the_difference_of_two_predictors_is_paired():
    rng = generator(3, "test")
    gold, one, other = rng.standard_normal((3, 60))
    good, bad = gold + 0.2 * one, gold + 3 * other
    gain = predictor_difference(good, bad, gold, rng)
    expected = stats.spearmanr(good, gold).statistic - stats.spearmanr(bad, gold).statistic
    assert gain.estimate == pytest.approx(expected)
    assert gain.low > 0
    same = predictor_difference(good, good, gold, rng)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)


def test_trials_that_failed_are_counted_and_too_few_say_so():
    rng = generator(4, "test")
    x = rng.standard_normal(10)
    holed = np.where(np.arange(10) == 3, np.nan, x)
    assert predictor_difference(holed, x, x, rng).dropped == 1
    nothing = predictor_difference(x[:2], x[:2], x[:2], rng)
    assert math.isnan(nothing.estimate)
    assert "needs 3" in nothing.reason
