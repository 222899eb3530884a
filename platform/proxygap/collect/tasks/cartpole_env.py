"""The simulator of the continuous cart-pole: scalar arithmetic, which beats arrays of four by far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from proxygap.collect.tasks.cartpole import (
    ACTION_COST,
    ANGLE_LIMIT,
    CART_MASS,
    DISTRACTOR_SIZE,
    GRAVITY,
    POLE_LENGTH,
    POLE_MASS,
    POSITION_LIMIT,
    STEP_S,
    wandered,
)

if TYPE_CHECKING:
    from proxygap.collect.tasks.cartpole import ContinuousCartPole


class CartPoleEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One cart-pole. Its state is rounded to float32 at each step, so that the observation is the whole state.

    Args:
        task: the physical settings.
    """

    def __init__(self, task: ContinuousCartPole) -> None:
        self._task = task
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_size,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._obs = np.zeros(task.obs_size, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start near upright and center; distractors never change where the rest starts."""
        super().reset(seed=seed, options=options)
        spread = self._task.start_spread
        self._obs[:4] = self.np_random.uniform(-spread, spread, 4)
        if self._task.distractors:
            self._obs[4:] = DISTRACTOR_SIZE * self.np_random.uniform(0.1, 0.9, self._task.distractors)
        return self._obs.copy(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step of 0.02 s."""
        push = float(action[0])
        position, velocity, angle, spin, *distractors = self._obs.tolist()
        state = advance(position, velocity, angle, spin, self._task.force_limit * push)
        self._obs = np.array([*state, *map(wandered, distractors)], np.float32)
        if self._task.process_noise:
            self._obs[1:4:2] += self.np_random.normal(0.0, self._task.process_noise, 2).astype(np.float32)
        position, _, angle, *_ = self._obs.tolist()
        across = position + POLE_LENGTH * math.sin(angle)
        below = POLE_LENGTH * (1.0 - math.cos(angle))
        closeness = math.exp(-(across**2 + below**2) / POLE_LENGTH**2)
        terminated = not (abs(position) <= POSITION_LIMIT and abs(angle) <= ANGLE_LIMIT)
        return self._obs.copy(), closeness - ACTION_COST * push**2, terminated, False, {}


def advance(
    position: float, velocity: float, angle: float, spin: float, force: float
) -> tuple[float, float, float, float]:
    """The state 0.02 s later under ``force`` (N), by one explicit Euler step.

    Equations of motion without friction: Barto, Sutton and Anderson 1983, appendix, as in Gymnasium's ``cartpole.py``.
    """
    half, mass = POLE_LENGTH / 2, CART_MASS + POLE_MASS
    sine, cosine = math.sin(angle), math.cos(angle)
    thrust = (force + POLE_MASS * half * spin**2 * sine) / mass
    spin_rate = (GRAVITY * sine - cosine * thrust) / (half * (4.0 / 3.0 - POLE_MASS * cosine**2 / mass))
    acceleration = thrust - POLE_MASS * half * spin_rate * cosine / mass
    return (
        position + STEP_S * velocity,
        velocity + STEP_S * acceleration,
        angle + STEP_S * spin,
        spin + STEP_S * spin_rate,
    )
