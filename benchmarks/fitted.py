"""A model fitted to real steps of the cart-pole, and what a lower precision does to its predictions.

Shape legend: K elites, W windows of consecutive steps, B rows, O observation size, A action size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.fit.dynamics.ensemble import GaussianEnsemble
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

Precision = Literal["float32", "bfloat16"]

STILL = ContinuousCartPole(force_limit=4.0, start_spread=0.2)
TASK = ContinuousCartPole(force_limit=4.0, process_noise=0.05, start_spread=0.2)
HORIZONS = (1, 5, 15)


def real_steps(steps: int, seed: int, task: ContinuousCartPole = TASK) -> Transitions:
    """Steps of a policy that leans against the lean, every other episode, and acts at random otherwise."""
    rng, env, rows = generator(seed, "bench/actions"), task.make_env(), []
    episode = step = 0
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        balancing = np.clip(3.0 * obs[2] + obs[3] + 0.1 * obs[0] + 0.2 * obs[1], -1.0, 1.0)
        push = balancing if episode % 2 else rng.uniform(-1.0, 1.0)
        action = np.array([np.clip(push + rng.normal(0.0, 0.3), -1.0, 1.0)], np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, next_obs, reward, terminated, truncated, episode, step))
        obs, step = next_obs, step + 1
        if terminated or truncated:
            episode, step = episode + 1, 0
            obs, _ = env.reset(seed=seed + episode)
    obs_B, action_B, next_B, reward_B, terminated_B, truncated_B, episode_B, step_B = zip(*rows, strict=True)
    return Transitions(
        np.stack(obs_B),
        np.stack(action_B),
        np.stack(next_B),
        np.array(reward_B, np.float32),
        np.zeros((steps, 0), np.float32),
        np.array(terminated_B),
        np.array(truncated_B),
        np.array(episode_B),
        np.array(step_B),
    )


def fitted_cartpole(*, learn_reward: bool, task: ContinuousCartPole = TASK) -> GaussianEnsemble:
    """Seven members of 4x200, five elites, fitted to 5,000 real steps."""
    settings = GaussianEnsembleSettings(max_epochs=30)
    model = settings.build(obs_size=4, action_size=1, learn_reward=learn_reward, learn_termination=False, seed=0)
    model.fit(real_steps(5000, 0, task), 0)
    return model


def windows(data: Transitions, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States (W, length + 1, O) and actions (W, length, A) of stretches within episodes that do not overlap."""
    states, actions = [], []
    for rows in data.episodes():
        for start in range(0, len(rows) - length + 1, length):
            part = rows[slice(start, start + length)]
            states.append(np.concatenate([part.obs_BO[:1], part.next_obs_BO]))
            actions.append(part.action_BA)
    return torch.from_numpy(np.stack(states)), torch.from_numpy(np.stack(actions))


def open_loop_error(model: GaussianEnsemble, data: Transitions, precision: Precision) -> dict[int, np.ndarray]:
    """Squared error of each window after 1, 5 and 15 steps of an elite's means, in variances of the state; (W,)."""
    state_WHO, action_WHA = windows(data, max(HORIZONS))
    elites = model.elites
    obs_KWO = state_WHO[:, 0].expand(len(elites), -1, -1)
    variance_O = torch.from_numpy(data.obs_BO).var(dim=0)
    errors = {}
    for step in range(max(HORIZONS)):
        action_KWA = action_WHA[:, step].expand(len(elites), -1, -1)
        change = model.step_members(elites, obs_KWO.contiguous(), action_KWA.contiguous(), precision).target_mean
        obs_KWO = obs_KWO + change[..., : obs_KWO.shape[-1]]
        if step + 1 in HORIZONS:
            error_KWO = (obs_KWO - state_WHO[:, step + 1]).square() / variance_O
            errors[step + 1] = error_KWO.mean(dim=(0, 2)).numpy()
    return errors


def log_likelihood(model: GaussianEnsemble, data: Transitions, precision: Precision) -> np.ndarray:
    """Of each real step, mean over the elites, in nats; (B,)."""
    obs_BO, action_BA = torch.from_numpy(data.obs_BO), torch.from_numpy(data.action_BA)
    count = len(model.elites)
    inputs = [rows.expand(count, -1, -1).contiguous() for rows in (obs_BO, action_BA)]
    prediction = model.step_members(model.elites, *inputs, precision)
    change_BO = torch.from_numpy(data.next_obs_BO) - obs_BO
    width = change_BO.shape[-1]
    normal = torch.distributions.Normal(prediction.target_mean[..., :width], prediction.target_std[..., :width])
    return normal.log_prob(change_BO).sum(dim=-1).mean(dim=0).numpy()


def interval(statistic: Callable[[np.ndarray], float], rows: int, draws: int = 2000) -> dict[str, float]:
    """A statistic of resampled row numbers: its value on all rows, and the middle 95% of its bootstrap."""
    rng = generator(0, "bench/bootstrap")
    drawn = [statistic(rng.integers(rows, size=rows)) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = {"value": statistic(np.arange(rows)), "low": low, "high": high}
    return {name: float(f"{value:.5g}") for name, value in found.items()}


def price_of_bfloat16(task: ContinuousCartPole) -> dict[str, dict[str, float]]:
    """On fresh real steps: error in bfloat16 over error in float32, and what it costs in likelihood, with intervals."""
    model, data = fitted_cartpole(learn_reward=False, task=task), real_steps(6000, 1000, task)
    exact, coarse = (open_loop_error(model, data, precision) for precision in ("float32", "bfloat16"))
    found = {
        f"root mean squared error after {steps} steps, bfloat16 / float32": interval(
            lambda some, steps=steps: float(np.sqrt(coarse[steps][some].mean() / exact[steps][some].mean())),
            len(exact[steps]),
        )
        for steps in HORIZONS
    }
    apart_B = log_likelihood(model, data, "bfloat16") - log_likelihood(model, data, "float32")
    found["log-likelihood, bfloat16 - float32, nats"] = interval(lambda some: float(apart_B[some].mean()), len(data))
    return found
