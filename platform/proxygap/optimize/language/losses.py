"""Losses of a language policy over tokens: pure functions, tensors in, scalar out.

Shape legend: B answers, T answer tokens, V vocabulary. Padding is where ``mask_BT`` is False; whatever stands there
changes neither a loss nor its gradient, and the width of the padding changes nothing at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxygap.optimize.language.settings import Aggregation


def aggregated(value_BT: Tensor, mask_BT: Tensor, aggregation: Aggregation) -> Tensor:
    """One number from a value per token; only real tokens count, in the sum and in what it is divided by.

    ``token_mean``: over all real tokens (DAPO; Yu et al. 2025, 2503.14476). ``sequence_mean``: over each answer's
    real tokens, then over answers (GRPO; Shao et al. 2024, 2402.03300, section 4.1). ``sequence_sum``: sum over each
    answer's tokens, mean over answers (the policy gradient; Dr.GRPO up to its constant divisor, 2503.20783).
    """
    value_BT = value_BT.masked_fill(~mask_BT, 0.0)
    if aggregation == "token_mean":
        return value_BT.sum() / mask_BT.sum()
    if aggregation == "sequence_mean":
        return (value_BT.sum(dim=-1) / mask_BT.sum(dim=-1)).mean()
    return value_BT.sum(dim=-1).mean()


def policy_loss(
    log_prob_BT: Tensor,
    old_log_prob_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float,
    aggregation: Aggregation,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate over tokens (Schulman et al. 2017, 1707.06347, Eq. 7), negated.

    Args:
        log_prob_BT: of the policy that is trained, with its gradient.
        old_log_prob_BT: of the policy that sampled; equal ones make this the plain policy gradient.
        advantage_BT: without a gradient; for advantages of whole answers every token has the answer's.
        mask_BT: True at real tokens.
        clip: epsilon.
        aggregation: see `aggregated`.

    Returns:
        The loss and the share of real tokens where clipping took the gradient away; the latter without a gradient.
    """
    ratio_BT = (log_prob_BT - old_log_prob_BT).masked_fill(~mask_BT, 0.0).exp()
    free_BT = ratio_BT * advantage_BT
    bounded_BT = ratio_BT.clamp(1.0 - clip, 1.0 + clip) * advantage_BT
    loss = -aggregated(torch.minimum(free_BT, bounded_BT), mask_BT, aggregation)
    with torch.no_grad():
        clip_share = (bounded_BT < free_BT).logical_and(mask_BT).sum() / mask_BT.sum()
    return loss, clip_share


def value_loss(
    value_BT: Tensor, old_value_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, *, clip: float | None
) -> Tensor:
    """Half the squared error of the value head, mean over real tokens; the larger of plain and clipped.

    Clipping as in the released code of Schulman et al. 2017 (baselines, ppo2); the paper itself does not clip values.
    """
    error_BT = (value_BT - return_BT).square()
    if clip is not None:
        near_BT = old_value_BT + (value_BT - old_value_BT).clamp(-clip, clip)
        error_BT = torch.maximum(error_BT, (near_BT - return_BT).square())
    return 0.5 * aggregated(error_BT, mask_BT, "token_mean")


@torch.no_grad()
def token_entropy(logits_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    """Entropy of the next-token distribution in nats, mean over real tokens; for the record, it has no gradient."""
    log_prob_BTV = logits_BTV.log_softmax(dim=-1)
    return aggregated(-(log_prob_BTV.exp() * log_prob_BTV).sum(dim=-1), mask_BT, "token_mean")
