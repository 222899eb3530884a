"""Held-out scores of an ensemble, in raw units unless said otherwise.

Shape legend: M members, B rows, T predicted targets.
"""

from __future__ import annotations

import math

import torch

from proxygap.base.protocols import Prediction
from proxygap.fit.dynamics.generalized_gaussian import log_deviation, negative_log_density


def log_likelihood(prediction: Prediction, target_BT: torch.Tensor) -> torch.Tensor:
    """Log-density of each target vector under each member, in nats, shape (M, B), constants included.

    Gaussian, or generalized Gaussian where the prediction has a shape.
    """
    error_MBT, shape_MBT = target_BT - prediction.target_mean, prediction.target_shape
    if shape_MBT is not None:
        log_scale_MBT = prediction.target_std.log() - log_deviation(shape_MBT)
        return -negative_log_density(error_MBT * (-log_scale_MBT).exp(), log_scale_MBT, shape_MBT).sum(dim=-1)
    scaled_MBT = error_MBT / prediction.target_std
    per_target_MBT = -0.5 * scaled_MBT.square() - prediction.target_std.log() - 0.5 * math.log(2.0 * math.pi)
    return per_target_MBT.sum(dim=-1)


def mixture_log_likelihood(prediction: Prediction, target_BT: torch.Tensor) -> torch.Tensor:
    """Log-density under the equal-weight mixture of all members, in nats, shape (B,)."""
    per_member_MB = log_likelihood(prediction, target_BT)
    return per_member_MB.logsumexp(dim=0) - math.log(len(per_member_MB))


def normalized_mse(prediction: Prediction, target_BT: torch.Tensor, std_T: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each member in units of the data's deviation, averaged over rows and targets, (M,)."""
    return ((prediction.target_mean - target_BT) / std_T).square().mean(dim=(1, 2))
