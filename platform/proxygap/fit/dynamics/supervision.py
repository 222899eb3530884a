"""Transitions become the two sides of a fit: raw rows, weights with mean 1, and the steps that follow each row.

Shape legend: N rows, I inputs (observation, then action), O observation size, T predicted targets, K steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import DynamicsLoss
from proxygap.base.records import Float32, Transitions
from proxygap.fit.dynamics.network import Normalizer
from proxygap.fit.dynamics.rows import Later, Motion, Rows, Side


def raw_rows(data: Transitions, learn_reward: bool, device: torch.device) -> Rows:
    """Inputs, raw targets (the change of the observation, then the reward where it is learned) and termination (0, 1).

    Raises:
        ValueError: there is no row.
        NonFiniteValue: a column holds NaN or infinity; names column and row.
    """
    if len(data) == 0:
        raise ValueError("there are no transitions to fit")
    for name in ("obs_BO", "action_BA", "next_obs_BO", "outcome_reward_B"):
        if not np.isfinite(getattr(data, name)).all():
            row = int(np.argwhere(~np.isfinite(getattr(data, name)))[0][0])
            raise NonFiniteValue(
                "the transitions to fit hold NaN or infinity",
                field=name,
                value=f"row {row}",
                remedy="check the environment that produced them",
            )
    targets = [data.next_obs_BO - data.obs_BO]
    if learn_reward:
        targets.append(data.outcome_reward_B[:, None])
    columns = (np.concatenate([data.obs_BO, data.action_BA], axis=1), np.concatenate(targets, axis=1))
    inputs, outputs, ended = (
        torch.from_numpy(column.astype(np.float32)).to(device) for column in (*columns, data.terminated_B)
    )
    return Rows(inputs, outputs, ended)


def fit_weights(
    weight_NT: Float32 | None, target_NT: torch.Tensor, inside: NDArray[np.int64], std_T: torch.Tensor | None
) -> torch.Tensor | None:
    """Weights (N, T) for squared normalized errors, with mean 1 over the rows ``inside``; None weighs all alike.

    Args:
        weight_NT: weights as the dynamics loss gave them.
        target_NT: the targets they are for.
        inside: the training rows.
        std_T: the targets' deviations, where weights are meant for raw errors: e_raw = std e_normalized.

    Raises:
        NonFiniteValue: a weight is NaN or infinite; names the row.
        ValueError: another shape, a negative weight, or none at all on the training rows.
    """
    if weight_NT is None and std_T is None:
        return None
    if weight_NT is None:
        scaled_NT = torch.ones_like(target_NT)
    else:
        _check_weights(weight_NT, tuple(target_NT.shape))
        scaled_NT = torch.tensor(np.asarray(weight_NT, np.float32), device=target_NT.device)
    if std_T is not None:
        scaled_NT = scaled_NT * std_T.square()
    mean = float(scaled_NT[torch.from_numpy(inside).to(target_NT.device)].double().mean())
    if mean <= 0.0:
        raise ValueError("no training row carries any weight")
    return scaled_NT / mean


def _check_weights(weight_NT: Float32, shape: tuple[int, ...]) -> None:
    if weight_NT.shape != shape:
        raise ValueError(f"weights have shape {weight_NT.shape}; {shape} are the rows and targets of this fit")
    bad_N = ~(np.isfinite(weight_NT) & (weight_NT >= 0)).all(axis=1)
    if not bad_N.any():
        return
    row = int(np.flatnonzero(bad_N)[0])
    if np.isfinite(weight_NT[row]).all():
        raise ValueError(f"row {row} has a negative weight")
    raise NonFiniteValue(
        "a weight of the dynamics loss is NaN or infinite",
        field="weight_NT",
        value=f"row {row}",
        remedy="check what the loss weighs by",
    )


def side(
    data: Transitions,
    whole: Rows,
    numbers: NDArray[np.int64],
    loss: DynamicsLoss,
    inputs: Normalizer,
    targets: Normalizer,
) -> Side:
    """The rows ``numbers`` of ``whole``, with the steps after each where ``loss`` looks further than one.

    Held-out rows that all weigh nothing are scored alike.
    """
    rows = whole.take(torch.from_numpy(numbers).to(whole.input_NI.device))
    if rows.weight_NT is not None and not bool(rows.weight_NT.any()):
        rows = replace(rows, weight_NT=None)
    if len(loss.step_weights) == 1:
        return Side(rows)
    obs = slice(data.obs_BO.shape[1])
    motion = Motion(targets.std[obs] / inputs.std[obs], targets.mean[obs] / inputs.std[obs])
    return Side(rows, later_steps(data, whole, numbers, loss.step_weights, motion))


def later_steps(
    data: Transitions, whole: Rows, inside: NDArray[np.int64], step_weights: Sequence[float], motion: Motion
) -> Later:
    """What follows each of the rows ``inside``; a step counts only where it is one of them, and the first always does.

    The weights of a row's steps are ``step_weights`` over those that count, scaled to sum 1.
    """
    device, after_N = whole.input_NI.device, successors(data)
    counts_N = np.zeros(len(data), np.bool_)
    counts_N[inside] = True
    here, rows, weights = inside, [], [np.full(len(inside), step_weights[0])]
    alive = np.ones(len(inside), np.bool_)
    for weight in step_weights[1:]:
        alive &= after_N[here] >= 0
        here = np.where(alive, after_N[here], here)
        rows.append(here)
        weights.append(weight * (alive & counts_N[here]))
    weight_KN = np.stack(weights) / np.sum(weights, axis=0)
    row_KN = np.array(rows, np.int64).reshape(len(rows), len(inside))
    return Later(
        whole,
        torch.from_numpy(row_KN).to(device),
        torch.from_numpy(weight_KN.astype(np.float32)).to(device),
        motion,
    )


def successors(data: Transitions) -> NDArray[np.int64]:
    """Per row, the row of the next step of its episode, or -1: it must begin exactly where this one ended."""
    order = np.lexsort((data.step_B, data.episode_B))
    one, next_one = order[:-1], order[1:]
    follows = (data.episode_B[one] == data.episode_B[next_one]) & (data.step_B[one] + 1 == data.step_B[next_one])
    follows &= (data.next_obs_BO[one] == data.obs_BO[next_one]).all(axis=1)
    after_N = np.full(len(data), -1, np.int64)
    after_N[one[follows]] = next_one[follows]
    return after_N
