"""Losses over pairs against gradients by hand, repeated pairs, and the probabilities they are fitted to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from proxygap.fit.reward.losses import (
    BradleyTerry,
    Margin,
    PairLabels,
    Regression,
    RegressionThenScaled,
    ScaledBradleyTerry,
    stages_of,
)

NAN = math.nan


def labels(preference=(1.0,), strength=(1.0,), chosen=(NAN,), rejected=(NAN,)):
    return PairLabels(
        *(torch.tensor([list(row)], dtype=torch.float64) for row in (preference, strength, chosen, rejected))
    )


def pair(chosen, rejected):
    return [torch.tensor([list(row)], dtype=torch.float64, requires_grad=True) for row in (chosen, rejected)]


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def test_bradley_terry_value_and_gradient_by_hand():
    chosen, rejected = pair((0.7,), (-0.4,))
    loss = BradleyTerry(center=0.5)(chosen, rejected, labels())
    assert loss.item() == pytest.approx(-math.log(sigmoid(1.1)) + 0.5 * 0.3**2, rel=1e-12)
    grad_chosen, grad_rejected = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert grad_chosen.item() == pytest.approx(sigmoid(1.1) - 1.0 + 0.3, rel=1e-12)
    assert grad_rejected.item() == pytest.approx(1.0 - sigmoid(1.1) + 0.3, rel=1e-12)


def test_bradley_terry_stays_finite_where_the_exponential_overflows():
    chosen, rejected = pair((1e4, -1e4), (0.0, 0.0))
    loss = BradleyTerry(center=0.0)(chosen, rejected, labels((1.0, 1.0), (1.0, 1.0), (NAN, NAN), (NAN, NAN)))
    assert loss.tolist() == [[0.0, 1e4]]


@pytest.mark.parametrize(
    "loss", [BradleyTerry(center=0.0), BradleyTerry(center=0.0, flip_share=0.3, flip_model="soft_label")]
)
def test_a_tie_is_half_a_preference_in_each_direction(loss):
    tied = loss(*pair((0.9,), (0.1,)), labels((0.5,)))
    assert tied.item() == pytest.approx(-0.5 * math.log(sigmoid(0.8)) - 0.5 * math.log(sigmoid(-0.8)), rel=1e-12)


def test_a_tie_among_flipped_labels_is_half_of_each_flipped_likelihood():
    tied = BradleyTerry(center=0.0, flip_share=0.3)(*pair((0.9,), (0.1,)), labels((0.5,)))
    likelihoods = (0.7 * sigmoid(0.8) + 0.3 * sigmoid(-0.8), 0.7 * sigmoid(-0.8) + 0.3 * sigmoid(0.8))
    assert tied.item() == pytest.approx(-0.5 * math.log(math.prod(likelihoods)), rel=1e-12)


def minimum(loss, agreeing):
    """The gap d that minimizes the mean loss over labels of which a share ``agreeing`` prefers the first."""
    grid = np.linspace(-8.0, 8.0, 32001)
    first, second = (torch.tensor(side)[None] for side in (grid, 0.0 * grid))
    facts = labels(*(np.full(grid.shape, value) for value in (1.0, 1.0, NAN, NAN)))
    return grid[int((agreeing * loss(first, second, facts) + (1 - agreeing) * loss(second, first, facts)).argmin())]


def logit(probability):
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize("flips", [0.0, 0.05, 0.25, 0.4])
@pytest.mark.parametrize("truth", [0.3, 0.5, 0.9])
def test_the_likelihood_of_flipped_labels_is_least_at_the_probability_before_the_flips(truth, flips):
    seen = truth * (1 - flips) + (1 - truth) * flips
    assert minimum(BradleyTerry(flip_share=flips, center=0.0), seen) == pytest.approx(logit(truth), abs=1e-3)


@pytest.mark.parametrize("flips", [0.05, 0.25, 0.4])
def test_a_soft_label_is_least_where_one_label_is_right_with_its_probability(flips):
    loss = BradleyTerry(flip_share=flips, flip_model="soft_label", center=0.0)
    assert minimum(loss, 1.0) == pytest.approx(logit(1 - flips), abs=1e-3)
    assert minimum(loss, 0.9) == pytest.approx(logit(0.9 * (1 - flips) + 0.1 * flips), abs=1e-3)


def test_the_likelihood_of_flipped_labels_by_hand():
    chosen, rejected = pair((0.9,), (0.1,))
    loss = BradleyTerry(flip_share=0.2, center=0.0)(chosen, rejected, labels())
    assert loss.item() == pytest.approx(-math.log(0.8 * sigmoid(0.8) + 0.2 * sigmoid(-0.8)), rel=1e-12)
    far = BradleyTerry(flip_share=0.2, center=0.0)(*pair((-1e4,), (0.0,)), labels())
    assert far.item() == pytest.approx(-math.log(0.2), rel=1e-12)


@pytest.mark.parametrize("strength", [2, 3])
def test_scaled_is_the_pair_repeated(strength):
    once, many = pair((0.3,), (0.6,)), pair((0.3,) * strength, (0.6,) * strength)
    scaled = ScaledBradleyTerry()(*once, labels(strength=(float(strength),))).sum()
    ones = (1.0,) * strength
    repeated = ScaledBradleyTerry()(*many, labels(ones, ones, (NAN,) * strength, (NAN,) * strength)).sum()
    assert scaled.item() == pytest.approx(repeated.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(scaled, once), torch.autograd.grad(repeated, many), strict=True):
        assert a.item() == pytest.approx(b.sum().item(), rel=1e-12)


def test_a_margin_moves_the_point_of_indifference_and_spares_ties():
    loss = Margin(scale=2.0, center=0.0)
    strong = labels(strength=(1.5,))
    assert loss(*pair((3.0,), (0.0,)), strong).item() == pytest.approx(math.log(2.0), rel=1e-12)
    tied = labels((0.5,), (1.5,))
    plain = BradleyTerry(center=0.0)(*pair((3.0,), (0.0,)), tied)
    assert loss(*pair((3.0,), (0.0,)), tied).item() == pytest.approx(plain.item(), rel=1e-12)


def test_a_margin_has_an_effect():
    """A published trainer ignores its margin argument; here the gradient must change by exactly the shift."""
    chosen, rejected = pair((0.2,), (0.1,))
    loss = Margin(source="rating_gap", center=0.0)(chosen, rejected, labels(chosen=(4.0,), rejected=(1.0,)))
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert gradient.item() == pytest.approx(sigmoid(0.1 - 3.0) - 1.0, rel=1e-12)


def test_a_missing_rating_leaves_no_margin():
    loss = Margin(source="rating_gap", center=0.0)(*pair((0.2,), (0.1,)), labels(chosen=(4.0,)))
    assert loss.item() == pytest.approx(-math.log(sigmoid(0.1)), rel=1e-12)


def test_regression_leaves_unrated_items_out():
    chosen, rejected = pair((0.5, 1.0), (2.0, -1.0))
    loss = Regression()(chosen, rejected, labels((1.0, 1.0), (1.0, 1.0), (1.5, NAN), (1.0, NAN)))
    assert loss.tolist() == [[0.5 * 1.0 + 0.5 * 1.0, 0.0]]
    grad_chosen, grad_rejected = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert grad_chosen.tolist() == [[-1.0, 0.0]]
    assert grad_rejected.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("epochs", "split"), [(1, (1, 1)), (2, (1, 1)), (4, (3, 1)), (8, (6, 2))])
def test_regression_comes_first_and_the_second_stage_is_slower(epochs, split):
    first, second = stages_of(RegressionThenScaled(), epochs)
    assert isinstance(first.loss, Regression)
    assert isinstance(second.loss, ScaledBradleyTerry)
    assert (first.epochs, second.epochs) == split
    assert second.rate == 0.5 * first.rate


def test_other_losses_have_one_stage():
    (stage,) = stages_of(Margin(), 7)
    assert (stage.loss, stage.epochs, stage.rate) == (Margin(), 7, 1.0)


def test_half_of_all_labels_flipped_is_refused():
    with pytest.raises(ValidationError):
        BradleyTerry(flip_share=0.5)
