"""Transforms against hand computations and slow second implementations; the peers' moving-mean variance."""

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.judge.transforms import (
    Clip,
    ConfidenceCalibrated,
    LogSigmoidCentered,
    PreferenceAsReward,
    Rows,
    Whiten,
    merged_moments,
)


def rows(count, prompt=0, **more):
    return Rows(np.full(count, prompt, np.int64), **more)


def test_log_sigmoid_centered_by_hand():
    """rlhf 4.4: with baseline 0, the rewards 2, 5, -3 and 9 become these; sums of pairs order lopsided answers last."""
    transform = LogSigmoidCentered()
    state = {"prompt": np.array([0]), "baseline": np.array([0.0])}
    found_B, after = transform(torch.tensor([2.0, 5.0, -3.0, 9.0], dtype=torch.float64), rows(4), state)
    np.testing.assert_allclose(found_B.numpy(), -np.log1p(np.exp([-2.0, -5.0, 3.0, -9.0])), atol=1e-12)
    assert after is state
    assert 2 * found_B[0].item() == pytest.approx(-0.254, abs=5e-4)
    assert (found_B[0] + found_B[1]).item() == pytest.approx(-0.134, abs=5e-4)
    assert (found_B[2] + found_B[3]).item() == pytest.approx(-3.049, abs=5e-4)


def test_the_baseline_is_each_prompts_own_quantile():
    rng = np.random.default_rng(0)
    prompt_B = rng.permutation(np.repeat([7, 2, 30], [40, 10, 1])).astype(np.int64)
    reward_B = torch.tensor(rng.standard_normal(51) + prompt_B)
    state = LogSigmoidCentered(quantile=0.85).fix({}, reward_B, prompt_B)
    assert state["prompt"].tolist() == [2, 7, 30]
    expected_P = [np.quantile(reward_B.numpy()[prompt_B == prompt], 0.85) for prompt in (2, 7, 30)]
    np.testing.assert_allclose(state["baseline"], expected_P, atol=1e-12)
    at_the_baseline = torch.tensor([expected_P[1], expected_P[0]])
    found_B, _ = LogSigmoidCentered()(at_the_baseline, Rows(np.array([7, 2])), state)
    np.testing.assert_allclose(found_B.numpy(), np.log(0.5), atol=1e-12)


def test_the_quantile_of_a_gaussian_reference_is_the_papers():
    reward_B = torch.tensor(3.0 + 2.0 * np.random.default_rng(1).standard_normal(200_000))
    state = LogSigmoidCentered().fix({}, reward_B, np.zeros(200_000, np.int64))
    assert state["baseline"][0] == pytest.approx(3.0 + 1.036 * 2.0, abs=0.02)


@pytest.mark.parametrize("transform", [LogSigmoidCentered(), PreferenceAsReward()])
@pytest.mark.parametrize("prompt", [-1, 1, 99])
def test_a_prompt_without_reference_answers_is_refused(transform, prompt):
    state = transform.fix({}, torch.zeros(4), np.array([0, 2, 3, 3]))
    with pytest.raises(InvalidExperiment, match="no answer of the reference policy") as caught:
        transform(torch.zeros(2), Rows(np.array([2, prompt])), state)
    assert caught.value.value == prompt


def test_preference_as_reward_by_hand():
    transform = PreferenceAsReward(references=2)
    state = transform.fix({}, torch.tensor([1.0, 5.0, 2.0, 9.0]), np.array([4, 6, 4, 4]))  # 9 is a third answer
    found_B, after = transform(torch.tensor([1.5, 5.0], dtype=torch.float64), Rows(np.array([4, 6])), state)
    assert found_B.tolist() == pytest.approx([0.5, 0.5])  # sigmoid(.5) + sigmoid(-.5) = 1; sigmoid(0)
    assert after is state
    far_B, _ = transform(torch.tensor([100.0, -100.0]), Rows(np.array([4, 4])), state)
    assert far_B.tolist() == pytest.approx([1.0, 0.0])


def test_clip():
    found_B, state = Clip(low=-1.0, high=2.0)(torch.tensor([-3.0, 0.5, 7.0]), rows(3), {})
    assert (found_B.tolist(), state) == ([-1.0, 0.5, 2.0], {})
    with pytest.raises(ValueError, match="must be below high"):
        Clip(low=1.0, high=1.0)


def drifting(batches=40, size=25):
    rng = np.random.default_rng(2)
    return [rng.standard_normal(size) * 0.1 + 5.0 * place for place in range(batches)]


@pytest.mark.parametrize("batches", [2, 3, 40])
def test_running_variance_is_that_of_all_samples(batches):
    """Rewards that drift, as a trained policy's do: what lies between batches is nearly all of the variance."""
    moments, averaged = np.zeros(3), []
    for batch in drifting(batches):
        moments = merged_moments(moments, batch)
        averaged.append(batch.var())
    every = np.concatenate(drifting(batches))
    assert moments[0] == len(every)
    assert moments[1] == pytest.approx(every.mean(), rel=1e-12)
    assert moments[2] / moments[0] == pytest.approx(every.var(), rel=1e-12)
    assert np.mean(averaged) < 0.01 * every.var()  # a peer's mean of the batches' variances


def test_running_variance_is_not_taken_about_a_mean_that_moves():
    """Squares about the mean of the moment, a peer's way, give half the variance after two batches that lie apart."""
    moments, moving_squares = np.zeros(3), 0.0
    for batch in drifting(2):
        moments = merged_moments(moments, batch)
        moving_squares += np.square(batch - moments[1]).sum()
    assert moving_squares / moments[2] == pytest.approx(0.5, abs=0.01)
    assert moments[2] / 50 == pytest.approx(np.concatenate(drifting(2)).var(), rel=1e-12)


def test_moments_do_not_cancel_far_from_zero_and_do_not_depend_on_batching():
    values = 1e8 + np.random.default_rng(3).standard_normal(1000)
    one = merged_moments(np.zeros(3), values)
    many = np.zeros(3)
    for part in np.split(values, [0, 1, 2, 50, 51, 700]):
        many = merged_moments(many, part)
    assert one[2] / one[0] == pytest.approx(values.var(), rel=1e-6)
    np.testing.assert_allclose(many, one, rtol=1e-6)


def test_whiten_uses_all_samples_the_batch_included():
    state, seen = {}, []
    for batch in drifting(batches=5):
        seen.append(batch)
        found_B, state = Whiten()(torch.tensor(batch), rows(len(batch)), state)
        every = np.concatenate(seen)
        np.testing.assert_allclose(found_B.numpy(), (batch - every.mean()) / every.std(), atol=1e-9)
    scaled_B, _ = Whiten(shift=False)(torch.tensor(seen[-1]), rows(25, update=False), state)
    np.testing.assert_allclose(scaled_B.numpy(), seen[-1] / every.std(), atol=1e-9)


def test_whiten_of_constant_rewards_and_of_the_first_one_is_finite():
    one_B, state = Whiten()(torch.tensor([3.0]), rows(1), {})
    assert one_B.item() == 0.0
    same_B, _ = Whiten()(torch.tensor([3.0, 3.0]), rows(2), state)
    assert same_B.tolist() == [0.0, 0.0]
    none_B, _ = Whiten()(torch.tensor([3.0]), rows(1, update=False), {})
    assert none_B.item() == 3.0  # nothing judged yet: the reward itself


def test_ppo_c_by_hand():
    """Average 1 at first; the batch's mean is 3, so 0.9 + 0.3 = 1.2 is what rewards are compared with."""
    transform = ConfidenceCalibrated(weight=2.0, rate=0.1)
    state = transform.fix({}, torch.tensor([0.0, 2.0], dtype=torch.float64), np.zeros(2, np.int64))
    reward_B = torch.tensor([5.0, 5.0, 1.0, 1.0], dtype=torch.float64)
    found_B, after = transform(reward_B, rows(4, confidence_B=np.array([1.0, 0.0, 1.0, np.nan])), state)
    assert after["average"].tolist() == pytest.approx([1.2])
    assert found_B.tolist() == pytest.approx([5 + 3.8, 5 - 3.8, 1 - 0.2, 1.0])
    frozen_B, same = transform(reward_B, rows(4, confidence_B=np.array([1.0, 0, 1, 0.5]), update=False), state)
    assert same["average"].tolist() == [1.0]
    assert frozen_B.tolist() == pytest.approx([9.0, 1.0, 1.0, 1.0])


def test_ppo_c_by_threshold():
    transform = ConfidenceCalibrated(weight=0.5, rate=1.0, adjustment="threshold")
    state = transform.fix({}, torch.zeros(1), np.zeros(1, np.int64))
    reward_B = torch.tensor([-2.0, -6.0], dtype=torch.float64)  # both negative: the average is -4
    found_B, _ = transform(reward_B, rows(2, confidence_B=np.array([1.0, 1.0])), state)
    assert found_B.tolist() == pytest.approx([-2 + 0.5 * 2 * 0.5, -6 - 0.5 * 6 * 0.5])


def test_ppo_c_makes_confidence_pay_where_the_reward_is_good_only():
    """The claim: at equal reward, the more confident answer earns more above the average and less below it."""
    transform = ConfidenceCalibrated()
    state = {"average": np.array([0.0])}
    for reward, better in ((1.5, 1.0), (-1.5, 0.0)):
        paid_B, _ = transform(
            torch.full((11,), reward), rows(11, confidence_B=np.linspace(0, 1, 11), update=False), state
        )
        assert paid_B.argmax().item() == 10 * better


@pytest.mark.parametrize("value", [-0.1, 1.1, 7.0, np.inf])
def test_ppo_c_refuses_what_is_no_confidence(value):
    state = {"average": np.zeros(1)}
    with pytest.raises(InvalidExperiment, match="from 0 to 1"):
        ConfidenceCalibrated()(torch.zeros(2), rows(2, confidence_B=np.array([0.5, value])), state)
    with pytest.raises(InvalidExperiment, match="without confidences"):
        ConfidenceCalibrated()(torch.zeros(2), rows(2), state)


def test_gradients_pass_through_what_is_judged_and_not_through_statistics():
    reward_B = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    for transform in (LogSigmoidCentered(), PreferenceAsReward(), Whiten(), ConfidenceCalibrated()):
        state = transform.fix({}, reward_B, np.zeros(3, np.int64))
        found_B, _ = transform(reward_B, rows(3, confidence_B=np.full(3, 0.75)), state)
        (gradient_B,) = torch.autograd.grad(found_B.sum(), reward_B)
        assert bool((gradient_B > 0).all()), transform.kind
