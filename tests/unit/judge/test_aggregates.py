"""Aggregates against hand computations, each other's limits, and the defects of peers."""

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.judge.aggregates import (
    KlRobust,
    LowerConfidenceBound,
    Mean,
    Median,
    Quantile,
    Single,
    UncertaintyWeighted,
    WorstCase,
)

# Three members, four rows, worked out by hand: means 2, 0, 4, 1; biased variances 2/3, 6, 0, 14/3.
SCORES_MB = torch.tensor([[1.0, 3.0, 4.0, -2.0], [2.0, -3.0, 4.0, 2.0], [3.0, 0.0, 4.0, 3.0]], dtype=torch.float64)
ALL = (
    Single(),
    Mean(),
    Median(),
    WorstCase(),
    UncertaintyWeighted(),
    LowerConfidenceBound(),
    Quantile(),
    KlRobust(),
)


@pytest.mark.parametrize(
    ("aggregate", "expected_B"),
    [
        (Single(member=2), [3.0, 0.0, 4.0, 3.0]),
        (Mean(), [2.0, 0.0, 4.0, 1.0]),
        (Median(), [2.0, 0.0, 4.0, 2.0]),
        (WorstCase(), [1.0, -3.0, 4.0, -2.0]),
        (UncertaintyWeighted(penalty=0.5), [2 - 1 / 3, -3.0, 4.0, 1 - 7 / 3]),
        (UncertaintyWeighted(penalty=0.0), [2.0, 0.0, 4.0, 1.0]),
        (LowerConfidenceBound(deviations=2.0), [2 - 2 * (2 / 3) ** 0.5, -2 * 6**0.5, 4.0, 1 - 2 * (14 / 3) ** 0.5]),
        (Quantile(level=0.0), [1.0, -3.0, 4.0, -2.0]),
        (Quantile(level=1.0), [3.0, 3.0, 4.0, 3.0]),
        (Quantile(level=0.25), [1.5, -1.5, 4.0, 0.0]),
        (KlRobust(breadth=1.0), [-np.log(np.mean(np.exp([-1.0, -2.0, -3.0]))), None, 4.0, None]),
    ],
)
def test_by_hand(aggregate, expected_B):
    found_B = aggregate(SCORES_MB).tolist()
    for found, expected in zip(found_B, expected_B, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=1e-12)


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two():
    assert Median()(SCORES_MB.new_tensor([[1.0], [10.0], [3.0], [2.0]])).item() == 2.5


@pytest.mark.parametrize("level", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.77, 1.0])
def test_quantiles_are_numpys(level):
    scores_MB = np.random.default_rng(0).standard_normal((7, 50))
    found_B = Quantile(level=level)(torch.tensor(scores_MB)).numpy()
    np.testing.assert_allclose(found_B, np.quantile(scores_MB, level, axis=0), atol=1e-14)


def test_kl_robust_runs_from_the_worst_case_to_the_mean():
    """rlhf 4.3: b to 0 gives WCO, b to infinity the mean, and mean - var / (2 b) in between to second order."""
    worst_B, mean_B = WorstCase()(SCORES_MB), Mean()(SCORES_MB)
    assert torch.allclose(KlRobust(breadth=1e-3)(SCORES_MB), worst_B, atol=2e-3)  # b log 3 above the minimum at most
    assert torch.allclose(KlRobust(breadth=1e6)(SCORES_MB), mean_B, atol=1e-5)
    second_B = UncertaintyWeighted(penalty=1 / (2 * 100.0))(SCORES_MB)
    third = (KlRobust(breadth=100.0)(SCORES_MB) - second_B).abs().max()
    assert third < 1e-3 < (mean_B - second_B).abs().max()
    both = [KlRobust(breadth=b)(SCORES_MB) for b in (0.1, 1.0, 10.0)]
    assert bool((both[0] <= both[1]).all() and (both[1] <= both[2]).all())


def test_uwo_means_the_same_in_both_halves_of_an_experiment():
    """A peer takes numpy's variance (1/M) in best-of-n and torch's (1/(M-1)) in PPO; the penalty then differs by half
    for three members. Ours is the biased one, whatever the type of the scores and for one member, too."""
    scores_MB = SCORES_MB.numpy()
    biased_B = scores_MB.mean(0) - 0.5 * np.var(scores_MB, axis=0)
    np.testing.assert_allclose(UncertaintyWeighted()(SCORES_MB).numpy(), biased_B, atol=1e-12)
    np.testing.assert_allclose(UncertaintyWeighted()(SCORES_MB.float()).numpy(), biased_B, atol=1e-6)
    peers_B = SCORES_MB.mean(0) - 0.5 * torch.var(SCORES_MB, dim=0)
    assert float((UncertaintyWeighted()(SCORES_MB) - peers_B).abs().max()) == pytest.approx(0.5 * (9 - 6))
    adjusted_B = UncertaintyWeighted(penalty=0.5 * 3 / 2)(SCORES_MB)
    assert torch.allclose(adjusted_B, peers_B)  # the conversion that the docstring gives
    assert torch.equal(UncertaintyWeighted()(SCORES_MB[:1]), SCORES_MB[0])  # 1/(M-1) would be NaN


@pytest.mark.parametrize("aggregate", ALL, ids=lambda aggregate: aggregate.kind)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_names_its_member(aggregate, value):
    scores_MB = SCORES_MB.clone()
    scores_MB[1, 2] = value
    with pytest.raises(NonFiniteValue, match="member 1 of 3 gives row 2") as caught:
        aggregate(scores_MB)
    assert caught.value.field == "score of member 1"
    assert caught.value.remedy
    assert repr(caught.value.value) == repr(value)


@pytest.mark.parametrize("aggregate", ALL, ids=lambda aggregate: aggregate.kind)
def test_members_that_agree_are_taken_at_their_word(aggregate):
    """Equal scores give that score: no aggregate helps against an error that all members share."""
    score_B = torch.linspace(-2, 2, 9, dtype=torch.float64)
    assert torch.allclose(aggregate(score_B.expand(5, 9)), score_B, atol=1e-12)


@pytest.mark.parametrize("aggregate", ALL[1:], ids=lambda aggregate: aggregate.kind)
def test_the_order_of_members_is_of_no_account_and_rows_do_not_mix(aggregate):
    whole_B = aggregate(SCORES_MB)
    assert torch.allclose(aggregate(SCORES_MB[[2, 0, 1]]), whole_B, atol=1e-12)
    assert torch.allclose(torch.stack([aggregate(SCORES_MB[:, [row]])[0] for row in range(4)]), whole_B, atol=1e-12)


def test_gradients_pass_through():
    scores_MB = SCORES_MB.clone().requires_grad_()
    for aggregate in ALL:
        (gradient_MB,) = torch.autograd.grad(aggregate(scores_MB).sum(), scores_MB)
        assert bool(gradient_MB.isfinite().all()), aggregate.kind
        assert gradient_MB[:, 0].sum().item() == pytest.approx(1.0), aggregate.kind


def test_a_member_that_is_not_there():
    with pytest.raises(InvalidExperiment, match="3 members, counted from 0"):
        Single(member=3)(SCORES_MB)


def test_conservative_aggregates_beat_a_single_heavy_tailed_proxy_at_best_of_n():
    """The arms model (rlhf 5.1), one row of it: gold of the proxy's best 1,024th of 8,000 arms, t3 errors."""
    rng = np.random.default_rng(0)
    gold_B = rng.standard_normal(8000)
    scores_MB = gold_B + rng.standard_t(3, (5, 8000)) / 3**0.5
    scores_MB = (scores_MB - scores_MB.mean(1, keepdims=True)) / scores_MB.std(1, keepdims=True)

    def gold_of_the_best(aggregate):
        return gold_B[np.argsort(aggregate(torch.tensor(scores_MB)).numpy())[-8:]].mean()

    single = gold_of_the_best(Single())
    assert gold_of_the_best(WorstCase()) > single + 1.0
    assert gold_of_the_best(UncertaintyWeighted()) > single + 1.0
