from __future__ import annotations

import numpy as np
import pytest

from proxygap.base.measurement import Direction
from proxygap.base.seeds import generator
from proxygap.probe.gap import onset, onset_measurements, population, within_run

CLOCK = np.arange(40) * 250.0


def goodhart(peak: float, depth: float, rng: np.random.Generator, noise: float) -> np.ndarray:
    rise = np.minimum(CLOCK / peak, 1.0) * 100
    return rise - np.maximum(CLOCK - peak, 0) / (CLOCK[-1] - peak) * depth + noise * rng.normal(size=40)


def test_signs_follow_directions():
    rng = generator(0, "test")
    loss = np.linspace(5, 1, 20)
    rows = within_run(loss, np.arange(20.0), rng=rng, objective_direction=Direction.LOWER, prefix="held_out_mse/")
    values = {row.name: row.value for row in rows}
    assert values["held_out_mse/spearman"] == pytest.approx(1.0)
    assert values["held_out_mse/kendall_low"] == pytest.approx(1.0)
    rows = within_run(loss, np.arange(20.0), rng=rng)
    assert {row.key: row.value for row in rows}["gap/pearson"] == pytest.approx(-1.0)
    assert len(rows) == 9


def test_onset_of_a_known_peak():
    rng = generator(1, "test")
    peaks, drops = [], []
    for _ in range(20):
        found = onset(np.log1p(CLOCK), goodhart(4000, 60, rng, 5.0), CLOCK, rng, noise_T=np.full(40, 5.0))
        assert found is not None
        peaks.append(found.clock)
        drops.append(found.drop)
        assert found.slope.low > 0
    assert abs(np.mean(peaks) - 4000) <= 750
    expected = 60 * np.mean((CLOCK[-10:] - 4000) / (CLOCK[-1] - 4000))
    assert np.mean(drops) == pytest.approx(expected, abs=5)


def test_no_onset_while_both_rise():
    rng = generator(2, "test")
    found = [onset(CLOCK, CLOCK / 100 + 5 * rng.normal(size=40), CLOCK, rng, resamples=300) for _ in range(50)]
    assert sum(one is not None for one in found) <= 2


def test_no_onset_when_the_objective_falls_too():
    rng = generator(3, "test")
    outcome = goodhart(4000, 60, rng, 5.0)
    assert onset(outcome, outcome, CLOCK, rng) is None
    assert onset(-outcome, outcome, CLOCK, rng, objective_direction=Direction.LOWER) is None


@pytest.mark.parametrize("known", [True, False])
def test_noise_alone_has_no_onset_in_nine_of_ten(known):
    rng = generator(4, "test")
    noise = np.ones(40) if known else None
    found = [onset(CLOCK, rng.normal(size=40), CLOCK, rng, noise_T=noise, resamples=200) for _ in range(200)]
    assert np.mean([one is None for one in found]) >= 0.9


def test_too_short_or_broken_series_have_none():
    rng = generator(5, "test")
    assert onset([1, 2, 3], [3, 2, 1], [1, 2, 3], rng) is None
    broken = goodhart(4000, 60, rng, 5.0)
    broken[3] = np.nan
    assert onset(CLOCK, broken, CLOCK, rng) is not None


def test_onset_is_recorded_either_way():
    rng = generator(6, "test")
    assert [(row.key, row.value) for row in onset_measurements(None)] == [("gap/onset_found", 0.0)]
    found = onset(CLOCK, goodhart(4000, 60, rng, 5.0), CLOCK, rng)
    values = {row.key: row.value for row in onset_measurements(found)}
    assert values["gap/onset_found"] == 1.0
    assert values["gap/onset_real_step"] == found.clock


def test_population_shows_the_trap_of_undertrained_models():
    """Half the models are bad at both; among the good ones objective and outcome have nothing to do with each other."""
    rng = generator(7, "test")
    objective = np.concatenate([rng.normal(-10, 1, 40), rng.normal(0, 1, 41)])
    outcome = np.concatenate([rng.normal(0, 1, 40), rng.normal(10, 1, 41)])
    result = population(objective, outcome, rng=rng)
    assert result.everywhere["spearman"].low > 0.5
    assert result.top_half["spearman"].low < 0 < result.top_half["spearman"].high
    assert result.top_half["spearman"].samples == 41
    values = {row.key: row.value for row in result.measurements()}
    assert values["gap/population/outcome_lost"] == pytest.approx(outcome.max() - outcome[objective.argmax()])


def test_population_counts_what_choosing_by_the_objective_costs():
    result = population([1.0, 2.0, np.nan, 3.0], [5.0, 9.0, 99.0, 4.0], rng=generator(8, "test"))
    assert (result.best_by_objective, result.best_by_outcome) == (3, 1)
    assert result.outcome_lost.estimate == 5.0
    assert (result.outcome_lost.samples, result.outcome_lost.dropped) == (3, 1)
    lower = population([1.0, 2.0, 3.0], [5, 9, 4], rng=generator(8, "test"), objective_direction=Direction.LOWER)
    assert lower.best_by_objective == 0
    with pytest.raises(ValueError, match="no model"):
        population([np.nan], [1.0], rng=generator(8, "test"))
