"""One shape for every environment: flat float32 observations, actions in [-1, 1].

One lean wrapper in place of Gymnasium's three (rescale, flatten, cast): the step is on the hot path.
Shape legend: O observation size, A action size.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

Float32Env = gym.Env[NDArray[np.float32], NDArray[np.float32]]


class StandardEnv(gym.Wrapper[NDArray[np.float32], NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """Flatten and round observations to float32; map actions from [-1, 1] onto the finite bounds of the environment.

    Args:
        env: an environment whose observations and actions are boxes, the actions finitely bounded.
    """

    def __init__(self, env: gym.Env[NDArray[Any], NDArray[Any]]) -> None:
        super().__init__(env)
        obs_box, action_box = env.observation_space, env.action_space
        assert isinstance(obs_box, gym.spaces.Box)
        assert isinstance(action_box, gym.spaces.Box)
        low, high = action_box.low.astype(np.float64), action_box.high.astype(np.float64)
        self._middle, self._half = (low + high) / 2, (high - low) / 2
        self._action_shape, self._action_dtype = action_box.shape, action_box.dtype
        self.observation_space = gym.spaces.Box(
            low=obs_box.low.astype(np.float32).ravel(), high=obs_box.high.astype(np.float32).ravel(), dtype=np.float32
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (low.size,), np.float32)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """One step; ``action`` has shape (A,) and the observation comes back with shape (O,)."""
        # In float64, so that -1 and 1 meet the bounds exactly after rounding.
        native = (self._middle + self._half * action.reshape(self._action_shape)).astype(self._action_dtype)
        obs, reward, terminated, truncated, info = self.env.step(native)
        return _flat(obs), float(reward), bool(terminated), bool(truncated), info

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; the first observation has shape (O,)."""
        obs, info = self.env.reset(seed=seed, options=options)
        return _flat(obs), info


def _flat(obs: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy of its own: some environments reuse their buffer."""
    return np.array(obs, dtype=np.float32).ravel()
