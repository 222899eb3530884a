"""Rolling a fitted model forward: branched rollouts for the policy to learn from, whole imagined returns to measure.

Shape legend: B rows, O observation size, A action size, T predicted targets, E elites, R = E * B rows.

The model is pure: which member steps a row, and the noise of the step, are drawn here from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import DynamicsModel, EpisodicPolicy, Policy, Prediction, Task
from proxygap.base.records import Float32, Imagined
from proxygap.imagine.stepping import Step, advanced, noise_like, sampled


def branched_rollouts(
    model: DynamicsModel,
    policy: Policy,
    task: Task,
    start_obs_BO: torch.Tensor | Float32,
    horizon: int,
    generator: torch.Generator,
    batch_size: int = 10_000,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Imagined:
    """Rollouts of ``horizon`` steps from each start (MBPO; Janner et al. 2019, algorithm 2, line 9).

    At each step each row draws an elite member, a sampled action and Gaussian noise. A row ends with its terminal
    transition, which is kept: nothing is imagined beyond it. At most ``batch_size`` rollouts advance together. Rows
    come out batch by batch, step by step. ``precision`` is that of the arithmetic inside the model.

    Raises:
        NonFiniteValue: the model predicted NaN or infinity; names the step and the members.
        InvalidExperiment: neither task nor model tells when an episode ends, or what a step pays.
    """
    starts_BO = torch.as_tensor(start_obs_BO, dtype=torch.float32)
    elites_E = torch.tensor(model.elites, dtype=torch.int64)
    parts: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for obs_BO in torch.split(starts_BO, batch_size):
            for depth in range(horizon):
                if len(obs_BO) == 0:
                    break
                action_BA = policy.act(obs_BO, generator=generator)
                member_B = elites_E[_integers(len(elites_E), len(obs_BO), generator)]
                prediction = model.predict_rows(member_B, obs_BO, action_BA, precision)
                _require_finite(prediction, member_B, depth)
                step = _step(prediction, task, obs_BO, action_BA, generator)
                parts.append((obs_BO, action_BA, step.next_obs_BO, step.proxy_reward_B, step.terminated_B))
                obs_BO = step.next_obs_BO[~step.terminated_B]
    return _joined(parts, task)


def imagined_return(
    model: DynamicsModel,
    policy: Policy | EpisodicPolicy,
    task: Task,
    start_obs_BO: torch.Tensor | Float32,
    horizon: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """The undiscounted return that each elite predicts for the deterministic policy from each start, shape (E, B).

    One member steps a whole rollout (TS-infinity; PETS, Chua et al. 2018, section 5), noise included; nothing is paid
    after termination. A rollout whose prediction is not finite ends with return NaN: that is a finding, not an error.
    A policy that remembers what it planned begins an episode for every rollout.
    """
    elites_E = torch.tensor(model.elites, dtype=torch.int64)
    starts_BO = torch.as_tensor(start_obs_BO, dtype=torch.float32)
    member_R = elites_E.repeat_interleave(len(starts_BO))
    obs_RO = starts_BO.repeat(len(elites_E), 1)
    return_R, alive = torch.zeros(len(obs_RO)), torch.arange(len(obs_RO))
    act = _acting(policy, len(obs_RO))
    with torch.no_grad():
        for _ in range(horizon):
            if len(alive) == 0:
                break
            action_RA = act(obs_RO, alive)
            prediction = model.predict_rows(member_R[alive], obs_RO, action_RA)
            step = _step(prediction, task, obs_RO, action_RA, generator)
            finite_R = step.next_obs_BO.isfinite().all(dim=-1) & step.proxy_reward_B.isfinite()
            return_R[alive] += torch.where(finite_R, step.proxy_reward_B, torch.nan)
            going_R = finite_R & ~step.terminated_B
            obs_RO, alive = step.next_obs_BO[going_R], alive[going_R]
    return return_R.reshape(len(elites_E), len(starts_BO))


def _acting(policy: Policy | EpisodicPolicy, rollouts: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Deterministic actions at observations, of the rollouts with these numbers."""
    if isinstance(policy, EpisodicPolicy):
        return policy.episodes(rollouts).act
    return lambda obs_RO, alive: policy.act(obs_RO)  # noqa: ARG005 - it remembers nothing


def _step(
    prediction: Prediction, task: Task, obs_BO: torch.Tensor, action_BA: torch.Tensor, generator: torch.Generator
) -> Step:
    """One step of every row, each with noise of its own."""
    noise_BT = noise_like(prediction, prediction.target_mean.shape, generator)
    return advanced(sampled(prediction, noise_BT), prediction.termination_logit, task, obs_BO, action_BA)


def _integers(bound: int, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(bound, (count,), generator=generator, device=generator.device).cpu()


def _require_finite(prediction: Prediction, member_B: torch.Tensor, depth: int) -> None:
    if math.isfinite(float(prediction.target_mean.sum() + prediction.target_std.sum())):
        return  # the usual case, told by two passes
    finite_B = (prediction.target_mean.isfinite() & prediction.target_std.isfinite()).all(dim=-1)
    if not bool(finite_B.all()):
        raise NonFiniteValue(
            f"{int((~finite_B).sum())} of {len(finite_B)} imagined transitions are not finite at step {depth}",
            field="imagine.member",
            value=sorted(set(member_B[~finite_B].tolist())),
            remedy="shorten imagine.horizon, or fit the model to more data first",
        )


def _joined(parts: list[tuple[torch.Tensor, ...]], task: Task) -> Imagined:
    """All steps as arrays of their own."""
    if not parts:
        none_BO = np.empty((0, task.obs_size), np.float32)
        none_BA, none_B = np.empty((0, task.action_size), np.float32), np.empty(0, np.float32)
        return Imagined(none_BO, none_BA, none_BO.copy(), none_B, np.empty(0, np.bool_))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    obs_BO, action_BA, next_obs_BO, proxy_reward_B = (column.astype(np.float32, copy=False) for column in columns[:4])
    return Imagined(obs_BO, action_BA, next_obs_BO, proxy_reward_B, columns[4].astype(np.bool_, copy=False))
