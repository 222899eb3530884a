"""Objectives of a dynamics model, and of the critics: what is optimized, measured on data the caller names.

All functions are pure, run under ``no_grad``, and take the rows in chunks. A measurement that its data cannot give
(no rows, a single member, no episode long enough) is left out: the result is then shorter, never made up.

Shape legend: B transitions, O observation size, A action size, M members, E elites, T targets (O, plus one where the
reward is learned), S starts of open-loop predictions, K steps, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.records import Float32, Transitions

if TYPE_CHECKING:
    from proxygap.base.protocols import DynamicsModel, Policy, Prediction, Task

Float = NDArray[np.float64]
CHUNK = 20_000
"""Rows predicted at once."""
CLIP = 1e3
"""Normalized error at which an open-loop prediction counts as diverged, and where it is cut off."""
_QUANTILES = {"p10": 0.1, "": 0.5, "p90": 0.9}


def log_likelihood(
    model: DynamicsModel, data: Transitions, name: str = "held_out_log_likelihood"
) -> tuple[Measurement, ...]:
    """Mean log-likelihood per transition, in nats of the raw units, of real transitions under the model.

    ``objective/NAME`` is that of the equal-weight mixture of the elites, which is what imagines (Lakshminarayanan et
    al. 2017, section 2.4); ``objective/NAME_member_mean`` averages the members' own (what each was fitted to).
    """
    if len(data) == 0:
        return ()
    mixture = members = 0.0
    elites = list(model.elites)
    for prediction, target_BT in _predictions(model, data):
        log_p_MB = _log_density(prediction, target_BT)
        mixture += float((log_p_MB[elites].logsumexp(dim=0) - math.log(len(elites))).sum())
        members += float(log_p_MB.mean(dim=0).sum())
    return (
        _objective(name, mixture / len(data), "nats", Direction.HIGHER),
        _objective(f"{name}_member_mean", members / len(data), "nats", Direction.HIGHER),
    )


def mse(model: DynamicsModel, data: Transitions, name: str = "held_out_mse") -> tuple[Measurement, ...]:
    """Squared error of the elites' mean prediction, per target in units of its variance in ``data``, then averaged.

    1 is what the constant mean would score. The standard deviation is floored (`_scale`), so that a target that
    hardly moves cannot dominate.
    """
    if len(data) == 0:
        return ()
    targets = next(iter(_predictions(model, data[:1])))[1].shape[-1]
    scale_T = torch.from_numpy(_scale(_target(data, targets)))
    total = 0.0
    for prediction, target_BT in _predictions(model, data):
        mean_BT = prediction.target_mean.double()[list(model.elites)].mean(dim=0)
        total += float((((mean_BT - target_BT) / scale_T) ** 2).mean(dim=-1).sum())
    return (_objective(name, total / len(data), "", Direction.LOWER),)


def value_weighted_error(
    model: DynamicsModel, data: Transitions, gradient_BO: Float, name: str = "held_out_value_error"
) -> tuple[Measurement, ...]:
    """How wrong the elites' mean next observation makes the value, at most: in squared units of the return.

    ``mean over rows of sum_d (dV/ds_d(s') (f_d - s'_d))^2``: the bound of Voelcker et al. 2022, section 4, without
    its factor O, and with gradients that nothing clips. A learned reward is no part of it.

    Args:
        model: the model to test.
        data: real transitions.
        gradient_BO: of the value at their next observations.
        name: of the measurement.
    """
    if len(data) == 0:
        return ()
    total, first = 0.0, 0
    for prediction, target_BT in _predictions(model, data):
        mean_BT = prediction.target_mean.double()[list(model.elites)].mean(dim=0)
        slope_BO = torch.from_numpy(np.asarray(gradient_BO[first : first + len(target_BT)], np.float64))
        error_BO = (mean_BT - target_BT)[:, : slope_BO.shape[1]]
        total += float((slope_BO * error_BO).square().sum())
        first += len(target_BT)
    return (_objective(name, total / len(data), "reward^2", Direction.LOWER),)


def k_step_error(
    model: DynamicsModel, task: Task, data: Transitions, k: int, max_starts: int = 1000
) -> tuple[Measurement, ...]:
    """Error of open-loop predictions of 1..k steps with the actions really taken, inside real episodes.

    Every elite follows its own mean (TS-infinity without noise; Chua et al. 2018, section 5) from every start that has
    that many real steps ahead of it in its episode. The error of a start is the root mean square over observation
    dimensions, in standard deviations of the observations in ``data``, and over elites. Diverged errors (above
    `CLIP`, or not finite) count as `CLIP`; their share is ``model/k_step_diverged``.

    Args:
        model: the model to test.
        task: gives the observation size.
        data: consecutive rows of real episodes.
        k: longest prediction.
        max_starts: starts used, evenly spread over the data.

    Returns:
        Per step h: median ``model/k_step_error/0h`` and ``model/k_step_error_p10/0h``, ``_p90/0h``; and, where an
        episode has k steps, ``objective/k_step_error``: the median at k.
    """
    ahead_B = _steps_ahead(data)
    starts_S = np.flatnonzero(ahead_B >= 1)
    if len(starts_S) > max_starts:
        starts_S = starts_S[np.linspace(0, len(starts_S) - 1, max_starts).astype(np.int64)]
    if len(starts_S) == 0:
        return ()
    error_KS = _open_loop(model, data, starts_S, np.minimum(ahead_B[starts_S], k), task.obs_size)
    return _fan(error_KS, k)


def disagreement(
    model: DynamicsModel, obs_BO: Float32, action_BA: Float32, name: str = "disagreement"
) -> tuple[Measurement, ...]:
    """Standard deviation over members of their mean predictions, averaged over rows and targets.

    Each target is in units of the standard deviation, over these rows, of the ensemble's mean prediction: 0.1 says
    that members differ by a tenth of how much the prediction varies at all. Nothing for a single member or no row.
    """
    if len(obs_BO) == 0 or model.members < 2:
        return ()
    spread, center = [], []
    with torch.no_grad():
        for obs, action in _chunks(obs_BO, action_BA):
            mean_MBT = model.predict(obs, action).target_mean.double()
            spread.append(mean_MBT.std(dim=0).numpy())
            center.append(mean_MBT.mean(dim=0).numpy())
    value = (np.concatenate(spread) / _scale(np.concatenate(center))).mean()
    return (_objective(name, float(value), "", Direction.LOWER),)


def imagined_return(return_EB: Float32, name: str = "imagined_return") -> tuple[Measurement, ...]:
    """What the model promises: mean over elites and starts of the imagined return, and its spread over elites."""
    elite_E = np.asarray(return_EB, dtype=np.float64).mean(axis=1)
    promised = _objective(name, float(elite_E.mean()), "reward", Direction.HIGHER)
    if len(elite_E) < 2:
        return (promised,)
    return promised, Measurement(f"{name}_std", float(elite_E.std(ddof=1)), Side.MODEL, "reward")


def value_estimate(policy: Policy, start_obs_EO: Float32) -> tuple[Measurement, ...]:
    """What the critics promise: mean estimate of the discounted return from the given start states."""
    with torch.no_grad():
        value_E = policy.value(torch.from_numpy(np.ascontiguousarray(start_obs_EO)))
    return (_objective("value_estimate", float(value_E.double().mean()), "reward", Direction.HIGHER),)


def _log_density(prediction: Prediction, target_BT: torch.Tensor) -> torch.Tensor:
    """Log-density of each target vector under each member, in nats, (M, B), in float64.

    With a shape beta, p(e) = beta / (2 alpha Gamma(1/beta)) exp(-(|e| / alpha)^beta), a generalized Gaussian whose
    scale alpha follows from its standard deviation: std^2 = alpha^2 Gamma(3/beta) / Gamma(1/beta).
    """
    error_MBT, std_MBT = target_BT - prediction.target_mean.double(), prediction.target_std.double()
    if prediction.target_shape is None:
        z_MBT = error_MBT / std_MBT
        return (-0.5 * z_MBT**2 - std_MBT.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
    beta_MBT = prediction.target_shape.double()
    log_norm_MBT, log_third_MBT = (1 / beta_MBT).lgamma(), (3 / beta_MBT).lgamma()
    log_alpha_MBT = std_MBT.log() + 0.5 * (log_norm_MBT - log_third_MBT)
    power_MBT = (error_MBT.abs() * (-log_alpha_MBT).exp()) ** beta_MBT
    return (beta_MBT.log() - math.log(2) - log_alpha_MBT - log_norm_MBT - power_MBT).sum(dim=-1)


def _objective(name: str, value: float, unit: str, direction: Direction) -> Measurement:
    return Measurement(name, value, Side.OBJECTIVE, unit, direction)


def _chunks(*columns: NDArray[np.float32]) -> Iterator[tuple[torch.Tensor, ...]]:
    for start in range(0, len(columns[0]), CHUNK):
        yield tuple(torch.from_numpy(np.ascontiguousarray(column[start : start + CHUNK])) for column in columns)


def _predictions(model: DynamicsModel, data: Transitions) -> Iterator[tuple[Prediction, torch.Tensor]]:
    """Chunk by chunk: the members' predictions and the true target (B, T) in float64."""
    with torch.no_grad():
        for start in range(0, len(data), CHUNK):
            rows = data[start : start + CHUNK]
            (obs, action), *_ = _chunks(rows.obs_BO, rows.action_BA)
            prediction = model.predict(obs, action)
            yield prediction, torch.from_numpy(_target(rows, prediction.target_mean.shape[-1]))


def _target(data: Transitions, targets: int) -> Float:
    """Change of the observation, then the reward where it is a target too."""
    change_BO = data.next_obs_BO.astype(np.float64) - data.obs_BO
    if targets == change_BO.shape[1]:
        return change_BO
    return np.column_stack([change_BO, data.outcome_reward_B.astype(np.float64)])


def _scale(values_BT: Float) -> Float:
    """Standard deviation per column, at least a thousandth of the largest; 1 where nothing moves at all."""
    std_T: Float = values_BT.std(axis=0)
    largest = float(std_T.max())
    return np.maximum(std_T, 1e-3 * largest) if largest > 0 else np.ones_like(std_T)


def _steps_ahead(data: Transitions) -> NDArray[np.int64]:
    """Per row, how many consecutive transitions of its episode begin with it."""
    follows_B = (np.diff(data.episode_B) == 0) & (np.diff(data.step_B) == 1)
    ends = np.append(np.flatnonzero(~follows_B), len(data) - 1)
    rows_B = np.arange(len(data))
    return ends[np.searchsorted(ends, rows_B)] - rows_B + 1 if len(data) else rows_B


def _open_loop(
    model: DynamicsModel, data: Transitions, starts_S: NDArray[np.int64], ahead_S: NDArray[np.int64], obs_size: int
) -> Float:
    """Error (K, S) after each step; NaN where the episode is over."""
    center_O = torch.from_numpy(data.obs_BO.mean(axis=0, dtype=np.float64))
    scale_O = torch.from_numpy(_scale(data.obs_BO.astype(np.float64)))
    elites, steps = list(model.elites), int(ahead_S.max())
    member_X = torch.tensor(elites).repeat_interleave(len(starts_S))
    obs_XO = torch.from_numpy(data.obs_BO[starts_S]).repeat(len(elites), 1)
    error_KS = np.full((steps, len(starts_S)), np.nan)
    for step in range(steps):
        rows_S = np.minimum(starts_S + step, len(data) - 1)
        action_XA = torch.from_numpy(data.action_BA[rows_S]).repeat(len(elites), 1)
        obs_XO = _bounded(_advance(model, member_X, obs_XO, action_XA, obs_size), center_O, scale_O)
        real_SO = torch.from_numpy(data.next_obs_BO[rows_S].astype(np.float64))
        z_ESO = (obs_XO.double().reshape(len(elites), len(starts_S), obs_size) - real_SO) / scale_O
        live_S = ahead_S > step
        error_KS[step, live_S] = (z_ESO**2).mean(dim=(0, 2)).sqrt().clamp(max=CLIP).numpy()[live_S]
    return error_KS


def _advance(
    model: DynamicsModel, member_X: torch.Tensor, obs_XO: torch.Tensor, action_XA: torch.Tensor, obs_size: int
) -> torch.Tensor:
    """The members' mean next observation, rows in chunks."""
    with torch.no_grad():
        parts = [
            obs + model.predict_rows(member, obs, action).target_mean[:, :obs_size]
            for member, obs, action in zip(*(torch.split(x, CHUNK) for x in (member_X, obs_XO, action_XA)), strict=True)
        ]
    return torch.cat(parts)


def _bounded(obs_XO: torch.Tensor, center_O: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """Keep diverged states finite, so that the model can still be asked, but far beyond the clipping distance."""
    bound_O = 1e3 * CLIP * scale_O
    z_XO = torch.nan_to_num(obs_XO.double() - center_O, nan=math.inf)
    return (center_O + torch.maximum(torch.minimum(z_XO, bound_O), -bound_O)).float()


def _fan(error_KS: Float, k: int) -> tuple[Measurement, ...]:
    width = max(2, len(str(k)))
    fan = []
    for step, error_S in enumerate(error_KS, start=1):
        live_S = error_S[np.isfinite(error_S)]
        for suffix, share in _QUANTILES.items():
            name = f"k_step_error{suffix and '_' + suffix}/{step:0{width}d}"
            fan.append(Measurement(name, float(np.quantile(live_S, share)), Side.MODEL, "std", Direction.LOWER))
    diverged = float((error_KS[np.isfinite(error_KS)] >= CLIP).mean())
    fan.append(Measurement("k_step_diverged", diverged, Side.MODEL, "", Direction.LOWER))
    if len(error_KS) == k:
        last_S = error_KS[-1][np.isfinite(error_KS[-1])]
        fan.append(_objective("k_step_error", float(np.median(last_S)), "std", Direction.LOWER))
    return tuple(fan)
