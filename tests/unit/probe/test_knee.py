from __future__ import annotations

import math

import numpy as np
import pytest

from proxygap.base.seeds import generator
from proxygap.probe.knee import knee
from proxygap.probe.overoptimization import Curve


def curves_of(gold_ST, kl_T=None, proxy_ST=None):
    kl = np.linspace(0.0, 9.0, gold_ST.shape[1]) if kl_T is None else kl_T
    proxy = np.broadcast_to(np.sqrt(kl), gold_ST.shape) if proxy_ST is None else proxy_ST
    return [Curve(kl, gold, p) for gold, p in zip(gold_ST, proxy, strict=True)]


def seeds_around(shape_T, rng, seeds, noise, wander=0.0):
    """Curves with noise of their own at each point and a deviation of the seed that grows along the curve."""
    deviation = wander * rng.standard_normal((seeds, 1)) * np.linspace(0, 1, len(shape_T))
    return shape_T + deviation + noise * rng.standard_normal((seeds, len(shape_T)))


def test_a_clear_hump_is_found_where_it_is():
    d = np.linspace(0, 3, 13)
    gold = d * (1.2 - 0.4 * d)
    found = knee(curves_of(seeds_around(gold, generator(0, "test"), 8, 0.03), d**2), generator(1, "test"))
    assert found.found
    assert found.reason == ""
    assert found.d.low <= 1.5 <= found.d.high
    assert found.kl.low <= 2.25 <= found.kl.high
    assert found.d.high - found.d.low < 1.6
    assert found.gold.low <= 0.9 <= found.gold.high + 0.03
    assert found.drop.estimate == pytest.approx(0.9, abs=0.05)
    assert found.drop_p == 1 / 256
    assert found.proxy_rise.estimate == pytest.approx(3 - d[found.index])


@pytest.mark.parametrize("shape", ["line", "root", "plateau", "flat"])
@pytest.mark.parametrize("points", [10, 40])
def test_a_curve_that_never_turns_down_has_a_knee_no_more_often_than_chance(shape, points):
    x = np.linspace(0, 1, points)
    gold = {"line": x, "root": np.sqrt(x), "plateau": np.minimum(3 * x, 1.0), "flat": 0 * x}[shape]
    rng = generator(2, f"test/{shape}/{points}")
    runs = 150
    hits = 0
    for _ in range(runs):
        found = knee(curves_of(seeds_around(gold, rng, 7, 0.2, 0.3)), rng, resamples=50)
        hits += found.found
        assert found.found or (found.reason and math.isnan(found.d.estimate))
    # 5% nominal; three standard errors of 150 runs above it
    assert hits / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_monotone_curve_says_why_there_is_none():
    found = knee(curves_of(np.tile(np.linspace(0, 1, 12), (6, 1))), generator(0, "test"))
    assert not found.found
    assert found.reason == "gold is highest at the end"
    assert found.drop.estimate == 0.0
    assert {m.key: m.value for m in found.measurements()}["gap/knee_found"] == 0.0
    assert not any(m.name == "knee_d" or "knee_kl" in m.name for m in found.measurements())


def test_power_a_fall_of_two_standard_errors_is_mostly_seen():
    d = np.linspace(0, 3, 24)
    gold = np.minimum(d, 1.5) - 0.3 * np.maximum(d - 1.5, 0)
    rng = generator(3, "test")
    hits = sum(knee(curves_of(seeds_around(gold, rng, 10, 0.15, 0.2)), rng, resamples=50).found for _ in range(60))
    assert hits / 60 >= 0.9


def test_the_interval_of_the_position_covers_the_true_peak():
    d = np.linspace(0, 3, 16)
    gold = d * (1.3 - 0.5 * d)  # the peak at 1.3 lies between two points
    rng = generator(4, "test")
    covered = []
    for _ in range(100):
        found = knee(curves_of(seeds_around(gold, rng, 6, 0.1, 0.05), d**2), rng, resamples=300)
        if found.found:
            covered.append(found.d.low <= 1.3 <= found.d.high)
    assert len(covered) >= 95
    assert np.mean(covered) >= 0.9


def test_the_drop_is_not_flattered_by_picking_the_highest_point():
    rng = generator(5, "test")
    drops = [knee(curves_of(rng.standard_normal((6, 30))), rng, resamples=10).drop.estimate for _ in range(300)]
    naive = np.mean([np.max(rng.standard_normal((6, 30)).mean(axis=0)) for _ in range(300)])
    assert naive > 0.7
    assert abs(np.mean(drops)) < 3 * np.std(drops) / math.sqrt(300) + 0.02


def test_too_few_seeds_can_never_show_a_fall():
    gold = np.concatenate([np.linspace(0, 1, 8), np.linspace(1, -3, 8)])
    found = knee(curves_of(np.tile(gold, (4, 1))), generator(0, "test"))
    assert not found.found
    assert "at least 5 are needed" in found.reason
    assert found.drop.estimate > 3
    one = knee(curves_of(gold[None, :]), generator(0, "test"))
    assert not one.found
    assert math.isnan(one.drop.low)


def test_a_failed_seed_is_left_out_and_counted():
    gold = np.tile(np.concatenate([np.linspace(0, 1, 8), np.linspace(1, -1, 8)]), (7, 1))
    gold[3, 5] = np.nan
    found = knee(curves_of(gold), generator(0, "test"))
    assert found.found
    assert found.d.dropped == 1
    assert found.d.samples == 6
    nothing = knee(curves_of(np.full((3, 8), np.nan)), generator(0, "test"))
    assert not nothing.found
    assert "no finite curve" in nothing.reason


def test_curves_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="by_distance"):
        knee([*curves_of(np.zeros((1, 5))), *curves_of(np.zeros((1, 6)))], generator(0, "test"))


def test_the_same_seed_gives_the_same_interval():
    d = np.linspace(0, 3, 13)
    curves = curves_of(seeds_around(d * (1.2 - 0.4 * d), generator(0, "test"), 14, 0.1), d**2)
    assert knee(curves, generator(1, "test")) == knee(curves, generator(1, "test"))
