"""How well an estimate of a model's error ranks its true errors.

Shape legend: B transitions, O observation size, M members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.records import Transitions
from proxygap.probe.statistics import finite_pairs

if TYPE_CHECKING:
    from proxygap.base.protocols import DynamicsModel, Task

Float = NDArray[np.float64]
LEAST_PAIRS = 10
"""Fewer pairs than this are not ranked."""


def true_errors(model: DynamicsModel, task: Task, data: Transitions) -> Float:
    """Squared error of the elites' mean change of the observation, averaged over dimensions, (B,).

    Against the task's own law of motion where it is known, so that the environment's noise is no error; else against
    what happened. Each dimension is in standard deviations of its change in ``data``.
    """
    obs_BO, action_BA = (torch.from_numpy(column.copy()) for column in (data.obs_BO, data.action_BA))
    happened_BO = data.next_obs_BO.astype(np.float64) - data.obs_BO
    with torch.no_grad():
        mean_MBT = model.predict(obs_BO, action_BA).target_mean
        law_BO = task.next_obs(obs_BO, action_BA).double() - obs_BO if task.known_dynamics else None
    mean_BO = mean_MBT[list(model.elites)].double().mean(dim=0)[:, : task.obs_size]
    true_BO = happened_BO if law_BO is None else law_BO.numpy()
    scale_O = happened_BO.std(axis=0)
    scale_O = np.maximum(scale_O, 1e-3 * scale_O.max()) if scale_O.max() > 0 else np.ones_like(scale_O)
    error_B: Float = np.square((mean_BO.numpy() - true_BO) / scale_O).mean(axis=1)
    return error_B


def uncertainty_quality(uncertainty_B: ArrayLike, error_B: ArrayLike, kind: str) -> tuple[Measurement, ...]:
    """``model/uncertainty_spearman/KIND``: the rank correlation of estimate and true error; 1 ranks perfectly.

    ``model/uncertainty_ratio/KIND`` is the mean estimate over the mean error: below 1, the model is thought better than
    it is. Nothing for fewer than `LEAST_PAIRS` pairs; no correlation where a side is constant.
    """
    estimate_B, true_B, _ = finite_pairs(uncertainty_B, error_B)
    if len(true_B) < LEAST_PAIRS:
        return ()
    found = []
    if np.ptp(estimate_B) > 0 and np.ptp(true_B) > 0:
        rho = float(stats.spearmanr(estimate_B, true_B).statistic)
        found.append(Measurement(f"uncertainty_spearman/{kind}", rho, Side.MODEL, "", Direction.HIGHER))
    if true_B.mean() > 0:
        ratio = float(estimate_B.mean() / true_B.mean())
        found.append(Measurement(f"uncertainty_ratio/{kind}", ratio, Side.MODEL))
    return tuple(found)
