"""A dynamics model's errors and its members' spread, per transition, in units that make targets comparable.

Every target is divided by its standard deviation in the training data; an error of 1 is that of predicting the mean.
Shape legend: N transitions, I inputs (observation and action), T predicted targets, M members.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from proxygap.base.protocols import DynamicsModel
from proxygap.base.records import Transitions

CHUNK = 20_000
"""Rows predicted at once."""


@dataclass(frozen=True, slots=True)
class Views:
    """What a model says of rows, scaled: the elites' mean, the variance of the members' means, predicted variance."""

    mean_NT: torch.Tensor
    spread_N: torch.Tensor
    noise_N: torch.Tensor


def inputs_of(data: Transitions) -> torch.Tensor:
    """Observation and action, (N, I), float32."""
    return torch.from_numpy(np.concatenate([data.obs_BO, data.action_BA], axis=1).astype(np.float32))


def targets_of(data: Transitions, targets: int) -> torch.Tensor:
    """Change of the observation, then the reward where it is a target too, (N, T), float32."""
    change_NO = data.next_obs_BO - data.obs_BO
    if targets > change_NO.shape[1]:
        change_NO = np.column_stack([change_NO, data.outcome_reward_B])
    return torch.from_numpy(change_NO.astype(np.float32))


def scale_of(rows: torch.Tensor) -> torch.Tensor:
    """Standard deviation per column, at least a thousandth of the largest; 1 where nothing moves at all."""
    std = rows.double().std(dim=0, correction=0)
    largest = float(std.max()) if len(rows) else 0.0
    return (std.clamp(min=1e-3 * largest) if largest > 0 else torch.ones_like(std)).float()


def views(model: DynamicsModel, obs_NO: torch.Tensor, action_NA: torch.Tensor, scale_T: torch.Tensor) -> Views:
    """Ask the model, rows in chunks; variances are averaged over targets."""
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for obs, action in zip(torch.split(obs_NO, CHUNK), torch.split(action_NA, CHUNK), strict=True):
            prediction = model.predict(obs, action)
            mean_MNT, elites = prediction.target_mean / scale_T, list(model.elites)
            spread_N = (mean_MNT - mean_MNT.mean(dim=0)).square().mean(dim=(0, 2))
            noise_N = (prediction.target_std[elites] / scale_T).square().mean(dim=(0, 2))
            parts.append((mean_MNT[elites].mean(dim=0), spread_N, noise_N))
    return Views(*(torch.cat(column) for column in zip(*parts, strict=True)))


def target_count(model: DynamicsModel, data: Transitions) -> int:
    """T, by asking the model for one row."""
    obs, action = torch.from_numpy(data.obs_BO[:1].copy()), torch.from_numpy(data.action_BA[:1].copy())
    with torch.no_grad():
        return int(model.predict(obs, action).target_mean.shape[-1])
