"""What a run says whose evaluations are models: intervals over single models, the better half, the cost of choosing."""

from __future__ import annotations

import numpy as np
import pytest

from proxygap.base.measurement import Direction
from proxygap.probe.gap import across_models, population


def values(objective: np.ndarray, outcome: np.ndarray, **options: object) -> dict[str, float]:
    rng = np.random.default_rng(0)
    return {m.key: m.value for m in across_models(objective, outcome, rng=rng, resamples=400, **options)}  # type: ignore[arg-type]


def test_it_is_the_correlation_across_models_and_within_the_better_half() -> None:
    """Bad models are bad at everything: all of them correlate, and the better half does not."""
    rng = np.random.default_rng(1)
    bad, good = np.linspace(0, 1, 20), np.linspace(2, 3, 20)
    outcome = np.concatenate([bad, 5.0 + rng.permutation(20) * 0.01])
    found = values(np.concatenate([bad, good]), outcome)
    same = population(np.concatenate([bad, good]), outcome, rng=np.random.default_rng(0), resamples=400)
    assert found["gap/spearman"] == same.everywhere["spearman"].estimate > 0.7
    assert found["gap/spearman_low"] == same.everywhere["spearman"].low > 0
    assert found["gap/top_half/spearman"] == same.top_half["spearman"].estimate
    assert abs(found["gap/top_half/spearman"]) < 0.5
    assert found["gap/selection_loss"] == pytest.approx(outcome.max() - outcome[-1])


def test_the_order_of_models_changes_no_estimate_and_lower_may_be_better() -> None:
    rng = np.random.default_rng(2)
    error, outcome, order = rng.normal(size=12), rng.normal(size=12), rng.permutation(12)
    one = values(error, outcome, objective_direction=Direction.LOWER)
    other = values(error[order], outcome[order], objective_direction=Direction.LOWER)
    for name in ("gap/spearman", "gap/kendall", "gap/top_half/spearman", "gap/selection_loss"):
        assert one[name] == pytest.approx(other[name])
    assert one["gap/spearman"] == pytest.approx(-values(error, outcome)["gap/spearman"])
    assert one["gap/selection_loss"] == pytest.approx(outcome.max() - outcome[error.argmin()])


def test_nothing_is_said_before_a_model_has_both_sides() -> None:
    assert values(np.array([np.nan, 1.0]), np.array([1.0, np.nan])) == {}
    first = values(np.array([1.0]), np.array([2.0]))
    assert np.isnan(first["gap/spearman"])
    assert first["gap/selection_loss"] == 0.0
