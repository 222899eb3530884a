"""A pendulum whose step takes 4 ms of waiting and no computing: experience gathered at the pace of the world."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.pendulum import PendulumEnv

STEP_S = 0.004


class SlowPendulum(PendulumEnv):
    """Gymnasium's pendulum, slower."""

    def step(self, action: Any) -> Any:
        time.sleep(STEP_S)
        return super().step(action)


gym.register("SlowPendulum-v0", SlowPendulum, max_episode_steps=64)
