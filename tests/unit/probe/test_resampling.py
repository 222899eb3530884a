from __future__ import annotations

import numpy as np
import pytest

from proxygap.base.seeds import generator
from proxygap.probe.resampling import (
    Verifier,
    accuracy_at,
    accuracy_given_pass,
    best_budget,
    passed_within,
    plateau,
    utility,
)

MIXED = np.linspace(0.02, 0.9, 23)


def simulated(right_I, verifier, budget, rng, runs=4000):
    """Draw until a sample passes, for each item and run; shares of passed, and of passed and right."""
    right = rng.random((runs, len(right_I), budget)) < right_I[:, None]
    rate = np.where(right, verifier.true_positive, verifier.false_positive)
    passes = rng.random(right.shape) < rate
    first = passes.argmax(axis=2)[..., None]
    passed = passes.any(axis=2)
    return passed.mean(), (passed & np.take_along_axis(right, first, axis=2)[..., 0]).mean()


@pytest.mark.parametrize("budget", [1, 4, 32])
def test_simulated_resampling_agrees_within_two_points(budget):
    verifier = Verifier(0.9, 0.15)
    passed, right = simulated(MIXED, verifier, budget, generator(0, f"test/{budget}"))
    budgets = np.array([budget])
    assert passed_within(MIXED, verifier, budgets).mean() == pytest.approx(passed, abs=0.02)
    assert accuracy_at(MIXED, verifier, budgets)[0] == pytest.approx(right, abs=0.02)


def test_the_plateau_caps_any_budget():
    verifier = Verifier(0.9, 0.15)
    budgets = np.array([1, 10, 100, 1000, 100_000])
    reached = accuracy_at(MIXED, verifier, budgets)
    assert (np.diff(reached) >= 0).all()
    assert reached[-1] == pytest.approx(plateau(MIXED, verifier), abs=1e-12)
    assert plateau(MIXED, verifier) < 0.85
    assert accuracy_given_pass(np.array([0.5]), verifier)[0] == pytest.approx(0.45 / (0.45 + 0.075))


def test_a_perfect_verifier_has_no_plateau_below_1_and_no_finite_best_budget():
    perfect = Verifier(1.0, 0.0)
    assert plateau(MIXED, perfect) == 1.0
    assert accuracy_at(MIXED, perfect, np.array([10_000]))[0] == pytest.approx(1.0)
    assert best_budget(MIXED, perfect, limit=2000) is None
    # with a price per sample it is finite again: one item of accuracy 1/2 gains 2^-k from its k-th sample
    assert best_budget(np.array([0.5]), perfect, sample_cost=0.1) == 3


def test_false_positives_make_the_best_budget_finite_and_small():
    best = best_budget(MIXED, Verifier(1.0, 0.1), wrong_cost=1.0)
    assert best is not None
    assert 1 <= best <= 20
    worth = utility(MIXED, Verifier(1.0, 0.1), np.array([best - 1, best, best + 1, 1000]))
    assert worth.argmax() == 1
    assert worth[3] < worth[1] - 0.005


def test_not_answering_is_best_where_every_pass_is_a_likely_mistake():
    assert best_budget(np.array([0.1, 0.2]), Verifier(0.5, 0.5), wrong_cost=1.0) == 0


def test_a_weak_sampler_with_many_samples_does_not_reach_a_strong_one_with_one():
    weak, strong = np.full(10, 0.2), np.full(10, 0.85)
    careless = Verifier(1.0, 0.3)  # wrong answers of the weak sampler fool it more often
    assert accuracy_at(weak, careless, np.array([1000]))[0] < accuracy_at(strong, Verifier(1.0, 1.0), np.array([1]))[0]


def test_rates_outside_their_range_are_refused():
    for rates in ((0.0, 0.1), (1.1, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="rates"):
            Verifier(*rates)
