"""Losses and advantages against hand computations, loops in plain Python, and padding of any width."""

from __future__ import annotations

import math

import pytest
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.optimize.language.advantages import (
    generalized_advantages,
    group_relative,
    leave_one_out,
    normalized,
    returns_to_go,
    token_rewards,
)
from proxygap.optimize.language.losses import aggregated, policy_loss, token_entropy, value_loss
from proxygap.optimize.language.settings import Aggregation

AGGREGATIONS: tuple[Aggregation, ...] = ("token_mean", "sequence_mean", "sequence_sum")
LENGTHS = (3, 1, 5, 2)


def mask_of(tokens: int) -> torch.Tensor:
    return torch.arange(tokens) < torch.tensor(LENGTHS)[:, None]


def ragged(tokens: int, seed: int = 0) -> torch.Tensor:
    """The same values for any width; what stands at padding is different each time, and not harmless."""
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    padded = torch.full((4, tokens), 1e3 * tokens, dtype=torch.float64)
    padded[:, :5] = values
    return padded.where(mask_of(tokens), 1e3 * tokens)


def test_aggregation_by_hand() -> None:
    value = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = [aggregated(value, mask, how).item() for how in AGGREGATIONS]
    assert found == pytest.approx([16 / 4, (6 / 3 + 10) / 2, (6 + 10) / 2])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_changes_neither_losses_nor_gradients(aggregation: Aggregation) -> None:
    """Regression: peers divide by the padded length, so that one long answer weakens all others."""
    found = []
    for tokens in (5, 9, 40):
        new = ragged(tokens).requires_grad_()
        loss, share = policy_loss(
            new, ragged(tokens, 1), ragged(tokens, 2), mask_of(tokens), clip=0.2, aggregation=aggregation
        )
        value = value_loss(new, ragged(tokens, 3), ragged(tokens, 4), mask_of(tokens), clip=0.2)
        (gradient,) = torch.autograd.grad(loss + value, new)
        assert (gradient[~mask_of(tokens)] == 0).all()
        found.append(torch.cat((gradient[:, :5].flatten(), torch.stack((loss, share.double(), value)).detach())))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)


def test_policy_loss_equals_a_loop() -> None:
    new, old, advantage = ragged(5).requires_grad_(), ragged(5, 1), ragged(5, 2)
    loss, share = policy_loss(new, old, advantage, mask_of(5), clip=0.2, aggregation="sequence_sum")
    total, clipped = 0.0, 0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio, gain = math.exp(new[row, t].item() - old[row, t].item()), advantage[row, t].item()
            bounded = min(max(ratio, 0.8), 1.2) * gain
            total -= min(ratio * gain, bounded) / 4
            clipped += bounded < ratio * gain
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert share.item() == pytest.approx(clipped / sum(LENGTHS))
    assert 0 < clipped < sum(LENGTHS)


def test_on_policy_the_gradient_is_that_of_reinforce() -> None:
    log_prob, advantage = ragged(5), ragged(5, 2)
    one, other = log_prob.clone().requires_grad_(), log_prob.clone().requires_grad_()
    policy_loss(one, log_prob, advantage, mask_of(5), clip=0.2, aggregation="sequence_sum")[0].backward()
    (-(advantage * other).where(mask_of(5), 0.0).sum(1).mean()).backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=0)


def test_value_loss_by_hand() -> None:
    value, old, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 2.9]]), torch.tensor([[0.4, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    # The first moved by 1, so 0.2 is what counts when that is worse: (1 - 0.4)^2 = 0.36 against (0.2 - 0.4)^2 = 0.04.
    assert value_loss(value, old, target, mask, clip=0.2).item() == pytest.approx(0.5 * (0.36 + 9.0) / 2)
    assert value_loss(value, old, torch.tensor([[1.0, 0.0]]), mask, clip=0.2).item() == pytest.approx(
        0.5 * (0.64 + 9.0) / 2
    )
    assert value_loss(value, old, torch.tensor([[1.0, 0.0]]), mask, clip=None).item() == pytest.approx(0.5 * 9.0 / 2)


def test_entropy_of_a_uniform_and_of_a_certain_token() -> None:
    logits = torch.zeros(1, 3, 8)
    logits[0, 1, 2], logits[0, 2] = 1e4, math.nan
    mask = torch.tensor([[True, True, False]])
    assert token_entropy(logits, mask).item() == pytest.approx(math.log(8) / 2, rel=1e-6)


def test_the_reward_is_paid_at_the_last_real_token() -> None:
    penalty = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.0, 0.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), penalty, torch.tensor([3, 1]))
    torch.testing.assert_close(found, torch.tensor([[-0.1, -0.2, 9.7], [19.6, 0.0, 0.0]]))


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_returns_to_go_by_hand(discount: float) -> None:
    reward = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    expected = [[1 + discount * 2 + discount**2 * 4, 2 + discount * 4, 4.0], [3.0, 0.0, 0.0]]
    torch.testing.assert_close(returns_to_go(reward, discount), torch.tensor(expected))


@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_equal_the_definition_row_by_row(discount: float, gae_lambda: float) -> None:
    reward, value = ragged(9).masked_fill(~mask_of(9), 0.0), ragged(9, 1)
    found = generalized_advantages(reward, value, mask_of(9), discount, gae_lambda)
    for row, length in enumerate(LENGTHS):
        values = [*value[row, :length].tolist(), 0.0]  # the end of an answer is terminal
        deltas = [reward[row, t].item() + discount * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            expected = sum((discount * gae_lambda) ** (j - t) * deltas[j] for j in range(t, length))
            assert found[row, t].item() == pytest.approx(expected, rel=1e-12)
        assert (found[row, length:] == 0).all()


def test_with_lambda_one_the_advantage_is_return_minus_value() -> None:
    reward, value = ragged(7).masked_fill(~mask_of(7), 0.0), ragged(7, 1)
    found = generalized_advantages(reward, value, mask_of(7), 1.0, 1.0)
    expected = (returns_to_go(reward, 1.0) - value).where(mask_of(7), 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_leave_one_out_by_hand_in_any_order() -> None:
    reward, group = torch.tensor([1.0, 7.0, 2.0, 3.0, 9.0]), torch.tensor([5, 0, 5, 5, 0])
    expected = torch.tensor([1 - 2.5, 7 - 9.0, 2 - 2.0, 3 - 1.5, 9 - 7.0])
    torch.testing.assert_close(leave_one_out(reward, group), expected)


def test_group_relative_by_hand() -> None:
    reward, group = torch.tensor([1.0, 5.0, 3.0, 4.0, 4.0]), torch.tensor([2, 2, 2, 1, 1])
    plain = group_relative(reward, group, divide_by_std=False)
    torch.testing.assert_close(plain, torch.tensor([-2.0, 2.0, 0.0, 0.0, 0.0]))
    divided = group_relative(reward, group, divide_by_std=True)
    torch.testing.assert_close(divided, torch.tensor([-2.0, 2.0, 0.0, 0.0, 0.0]) / (2.0 + 1e-4))


def test_a_group_of_one_is_refused() -> None:
    for compare in (leave_one_out, lambda r, g: group_relative(r, g, divide_by_std=True)):
        with pytest.raises(InvalidExperiment, match="answers_per_prompt = 1"):
            compare(torch.ones(3), torch.tensor([0, 0, 1]))


def test_normalization_counts_real_tokens_alone() -> None:
    for tokens in (5, 30):
        found = normalized(ragged(tokens), mask_of(tokens))
        real = found[mask_of(tokens)]
        assert real.mean().item() == pytest.approx(0.0, abs=1e-12)
        assert real.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
        assert (found[~mask_of(tokens)] == 0).all()
    assert (normalized(torch.full((4, 5), 3.0), mask_of(5)) == 0).all()
