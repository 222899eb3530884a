from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import expit

from proxygap.base.seeds import generator
from proxygap.probe.ranking import (
    difficulty,
    dpo_loss,
    flip_threshold,
    ideal_log_ratio,
    idealized_ranking_accuracy,
    normalized_ranking_accuracy,
    ranking_accuracy,
    ranking_measurements,
)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def all_pairs(table_PK):
    """Every ordered pair of answers to the same prompt, as two columns."""
    ordered = list(itertools.permutations(range(table_PK.shape[1]), 2))
    pairs = [(prompt, *pair) for prompt in range(len(table_PK)) for pair in ordered]
    prompt, chosen, rejected = np.array(pairs).T
    return table_PK[prompt, chosen], table_PK[prompt, rejected]


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0, 5.0])
def test_a_pair_is_ranked_right_exactly_when_its_loss_is_below_the_threshold(beta):
    rng = generator(0, "test")
    reference, policy = (log_softmax(2 * rng.standard_normal((4, 8))) for _ in range(2))
    (chosen, rejected), (chosen_ref, rejected_ref) = all_pairs(policy), all_pairs(reference)
    loss = dpo_loss(chosen, rejected, chosen_ref, rejected_ref, beta)
    by_rule = loss <= flip_threshold(chosen_ref, rejected_ref, beta)
    assert len(by_rule) == 224
    np.testing.assert_array_equal(by_rule, chosen >= rejected)
    assert 0 < ranking_accuracy(chosen, rejected) < 1


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_the_closed_form_is_the_log_ratio_of_the_exact_optimum(beta):
    rng = generator(1, "test")
    reference, reward = log_softmax(rng.standard_normal((4, 8))), rng.standard_normal((4, 8))
    optimum = log_softmax(reference + reward / beta)
    (chosen, rejected), (chosen_ref, rejected_ref) = all_pairs(optimum), all_pairs(reference)
    chosen_reward, rejected_reward = all_pairs(reward)
    proportion = expit(chosen_reward - rejected_reward)
    np.testing.assert_allclose(
        ideal_log_ratio(chosen_ref, rejected_ref, proportion, beta), chosen - rejected, atol=1e-9
    )
    labeled = proportion > 0.5
    columns = [column[labeled] for column in (chosen_ref, rejected_ref, proportion)]
    assert idealized_ranking_accuracy(*columns, beta) == ranking_accuracy(chosen[labeled], rejected[labeled])


def test_a_certain_label_is_always_ideal_and_a_weak_one_cannot_move_a_stiff_policy():
    chosen_ref, rejected_ref = np.array([-1.0, -3.0, -9.0]), np.array([-2.0, -2.0, -1.0])
    assert idealized_ranking_accuracy(chosen_ref, rejected_ref, np.ones(3), 10.0) == 1.0
    # logit(0.75) = 1.0986: with beta 1 it lifts a difficulty of 1, not of 8; with beta 0.1 both
    assert idealized_ranking_accuracy(chosen_ref, rejected_ref, np.full(3, 0.75), 1.0) == pytest.approx(2 / 3)
    assert idealized_ranking_accuracy(chosen_ref, rejected_ref, np.full(3, 0.75), 0.1) == 1.0
    np.testing.assert_array_equal(difficulty(chosen_ref, rejected_ref), [-1.0, 1.0, 8.0])


def test_the_loss_falls_far_before_a_hard_pair_flips():
    # difficulty 5 at beta 0.1: the loss must go from log 2 to -log sigmoid(0.5)
    threshold = flip_threshold(np.array([-6.0]), np.array([-1.0]), 0.1)
    assert threshold[0] == pytest.approx(-math.log(expit(0.5)))
    # closing four fifths of the distance lowers the loss and flips nothing
    chosen, rejected = np.array([-4.0]), np.array([-3.0])
    loss = dpo_loss(chosen, rejected, np.array([-6.0]), np.array([-1.0]), 0.1)
    assert threshold[0] < loss[0] < math.log(2)
    assert ranking_accuracy(chosen, rejected) == 0.0


def test_length_normalization():
    chosen, rejected = np.array([-8.0, -3.0]), np.array([-3.0, -4.0])
    assert ranking_accuracy(chosen, rejected) == 0.5
    assert normalized_ranking_accuracy(chosen, rejected, np.array([8, 1]), np.array([2, 4])) == 0.5
    assert normalized_ranking_accuracy(chosen, rejected, np.array([8, 1]), np.array([2, 1])) == 1.0


def test_measurements_by_hand():
    policy = (np.array([-1.0, -5.0, -1.0, -1.0]), np.array([-2.0, -1.0, -3.0, -2.0]))
    reference = (np.array([-3.0, -5.0, -1.0, -1.0]), np.array([-2.0, -1.0, -3.0, -2.0]))
    found = {m.key: m.value for m in ranking_measurements(*policy, *reference, proportion_N=0.75, beta=1.0)}
    assert found == {
        "model/ranking_accuracy": 0.75,
        "model/ranking_accuracy_reference": 0.5,
        "model/ranking_accuracy_idealized": 0.75,
        "model/ranking_flipped": 0.5,
        "gap/alignment_gap": 0.0,
    }
    nothing = np.zeros(0)
    assert ranking_measurements(nothing, nothing, nothing, nothing, proportion_N=0.75, beta=1.0) == ()
