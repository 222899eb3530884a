"""A regular grid over states and actions, each point sent one step ahead by the task's own law.

The grid dataset of Lambert et al. 2020 (2002.04523, section 4): it covers everything and resembles no policy.

Shape legend: N points, O observation size, A action size, S states, K actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from proxygap.base.records import Float32, Transitions

if TYPE_CHECKING:
    from proxygap.base.language import Float64
    from proxygap.base.protocols import Task


def grid_size(task: Task, half_width_O: Sequence[float], points: int) -> int:
    """Number N of points of `grid`: dimensions of half-width 0 have one."""
    actions = task.action_size if task.discrete else points**task.action_size
    return int(points ** sum(width > 0 for width in half_width_O) * actions)


def grid(
    task: Task,
    *,
    points: int,
    half_width_O: Sequence[float],
    center_O: Sequence[float],
    noise_std_O: Sequence[float],
    rng: np.random.Generator,
) -> Transitions:
    """Every point is an episode of one step, cut off where it does not end.

    Args:
        task: knows its law of motion, its reward and its termination.
        points: per dimension, both ends included.
        half_width_O: the grid reaches so far to either side of the center; 0 keeps a dimension at its center.
        center_O: middle of the grid, in the units of the observation.
        noise_std_O: Gaussian noise added to each part of the next observation.
        rng: draws the noise.
    """
    axes = [
        center + (np.linspace(-width, width, points) if width > 0 else np.zeros(1))
        for center, width in zip(center_O, half_width_O, strict=True)
    ]
    obs_SO = _mesh(axes)
    action_KA = _actions(task, points)
    obs_NO = np.repeat(obs_SO, len(action_KA), axis=0).astype(np.float32)
    action_NA = np.tile(action_KA, (len(obs_SO), 1)).astype(np.float32)
    return _stepped(task, obs_NO, action_NA, np.asarray(noise_std_O), rng)


def _stepped(
    task: Task, obs_NO: Float32, action_NA: Float32, noise_std_O: Float64, rng: np.random.Generator
) -> Transitions:
    obs, action = torch.from_numpy(obs_NO), torch.from_numpy(action_NA)
    next_obs_NO = task.next_obs(obs.double(), action.double()).float().numpy()  # rounded once, as an environment does
    if noise_std_O.any():
        next_obs_NO = next_obs_NO + (noise_std_O * rng.standard_normal(next_obs_NO.shape)).astype(np.float32)
    next_obs = torch.from_numpy(next_obs_NO)
    terminated_N = task.terminated(obs, action, next_obs).numpy()
    count = len(obs_NO)
    return Transitions(
        obs_BO=obs_NO,
        action_BA=action_NA,
        next_obs_BO=next_obs_NO,
        outcome_reward_B=task.reward(obs, action, next_obs).float().numpy(),
        component_reward_BR=np.empty((count, 0), np.float32),
        terminated_B=terminated_N,
        truncated_B=~terminated_N,
        episode_B=np.arange(count, dtype=np.int64),
        step_B=np.zeros(count, np.int64),
    )


def _actions(task: Task, points: int) -> Float64:
    return np.eye(task.action_size) if task.discrete else _mesh([np.linspace(-1.0, 1.0, points)] * task.action_size)


def _mesh(axes: Sequence[Float64]) -> Float64:
    """All combinations, the last axis fastest, (points, axes)."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
