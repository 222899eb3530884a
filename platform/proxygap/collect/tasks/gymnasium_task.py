"""Any registered Gymnasium environment with continuous actions, by its id.

Shape legend: B batch, O observation size, A action size. Importing this module loads neither Gymnasium nor torch.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import logging
import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment
from proxygap.collect.tasks.laws import Laws, laws_of

if TYPE_CHECKING:
    import torch
    from gymnasium.envs.registration import EnvSpec

    from proxygap.collect.tasks.standard import Float32Env


class GymnasiumTask(Settings):
    """A registered Gymnasium environment with its default arguments (Towers et al. 2024, 2407.17032).

    Raises:
        InvalidExperiment: for an unknown id, or one without a time limit where none is set.
    """

    family: ClassVar[Literal["control"]] = "control"
    kind: Literal["gymnasium"] = "gymnasium"
    id: str = Field(min_length=1, max_length=200)
    """Gymnasium id with its version, e.g. ``Hopper-v5``; ``module:id`` imports the module that registers it first."""
    max_episode_steps: PositiveInt = Field(default_factory=int)  # filled in below, and never 0
    """Steps after which an episode is truncated. Default: the limit that the id is registered with."""

    @model_validator(mode="before")
    @classmethod
    def _fill_limit(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("max_episode_steps") is not None:
            return fields
        env_id = fields.get("id")
        if not isinstance(env_id, str) or not env_id:
            return fields
        return {**fields, "max_episode_steps": _registered_limit(env_id)}

    @property
    def name(self) -> str:
        """The id."""
        return self.id

    @property
    def obs_size(self) -> int:
        """Length O of the flat observation. Raises `InvalidExperiment` like `check`."""
        return _sizes(self.id).obs

    @property
    def action_size(self) -> int:
        """Length A of the action. Raises `InvalidExperiment` like `check`."""
        return _sizes(self.id).action

    @property
    def known_reward(self) -> bool:
        """Whether the observation determines the reward and its law is written down here."""
        return self._laws.reward is not None

    @property
    def known_termination(self) -> bool:
        """Whether the observation determines the end of the episode and its law is written down here."""
        return self._laws.terminated is not None

    @property
    def _laws(self) -> Laws:
        return laws_of(self.id)

    def check(self) -> None:
        """Refuse, with `InvalidExperiment`, what cannot be run here; nothing but the environment is constructed."""
        _sizes(self.id)

    def make_env(self) -> Float32Env:
        """A fresh environment: observations (O,) float32, actions (A,) in [-1, 1], truncated at the time limit."""
        from proxygap.collect.tasks.standard import StandardEnv

        return StandardEnv(_construct(self.id, self.max_episode_steps))

    def reward(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:
        """The environment's reward of each transition, shape (B,). Raises TypeError where it is unknown."""
        if self._laws.reward is None:
            raise TypeError(f"the reward of {self.id} is not a known function of its observations: learn it")
        return self._laws.reward(obs_BO, action_BA, next_obs_BO)

    def terminated(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:
        """Whether each transition ends its episode, bool, shape (B,). Raises TypeError where it is unknown."""
        if self._laws.terminated is None:
            raise TypeError(f"the termination of {self.id} is not a known function of its observations: learn it")
        return self._laws.terminated(obs_BO, action_BA, next_obs_BO)


@dataclass(frozen=True, slots=True)
class _Sizes:
    obs: int
    action: int


@lru_cache(maxsize=64)
def _sizes(env_id: str) -> _Sizes:
    """Sizes of the spaces of a usable environment; `InvalidExperiment` for any other."""
    import numpy as np
    from gymnasium.spaces import Box

    env = _construct(env_id, -1)
    obs_space, action_space = env.observation_space, env.action_space
    env.close()
    real = isinstance(action_space, Box) and np.issubdtype(action_space.dtype, np.floating)
    if not isinstance(action_space, Box) or not real or 0 in action_space.shape:
        raise _refusal("acts with something other than real numbers", env_id, f"its actions are {action_space}")
    if not action_space.is_bounded():
        raise _refusal("has actions without finite bounds", env_id, f"its actions are {action_space}")
    if not isinstance(obs_space, Box) or 0 in obs_space.shape:
        raise _refusal("observes something other than an array of numbers", env_id, f"it observes {obs_space}")
    return _Sizes(math.prod(obs_space.shape), math.prod(action_space.shape))


def _refusal(problem: str, env_id: str, detail: str) -> InvalidExperiment:
    return InvalidExperiment(
        f"{problem}: {detail}",
        field="task.id",
        value=env_id,
        remedy="Choose an environment whose observations and bounded actions are boxes of real numbers",
    )


def _registered_limit(env_id: str) -> int:
    limit = _spec(env_id).max_episode_steps
    if limit is None:
        _sizes(env_id)  # an environment that cannot be run at all is refused for that
        raise InvalidExperiment(
            f"{env_id} is registered without a time limit",
            field="task.max_episode_steps",
            remedy="Set it to the steps after which an episode is cut",
        )
    return limit


def _spec(env_id: str) -> EnvSpec:
    """The registry's entry, after importing the module of ``module:id``."""
    import gymnasium as gym

    module, _, bare_id = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError, TypeError) as error:
            raise InvalidExperiment(
                f"the module {module!r} cannot be imported: {error}",
                field="task.id",
                value=env_id,
                remedy="Install the package that registers this environment",
            ) from error
    if bare_id not in gym.registry:
        raise InvalidExperiment(
            "no environment is registered under this id", field="task.id", value=env_id, remedy=_suggestion(bare_id)
        )
    return gym.registry[bare_id]


def _suggestion(env_id: str) -> str:
    import gymnasium as gym

    by_lower = {known.lower(): known for known in gym.registry}
    near = difflib.get_close_matches(env_id.lower(), by_lower, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {by_lower[near[0]]!r}?"
    return "Write the id as Gymnasium registers it, e.g. 'InvertedPendulum-v5', or 'module:id' to import its module"


def _construct(env_id: str, max_episode_steps: int) -> Any:
    """The environment inside nothing but its own wrappers and a time limit (none for -1)."""
    import gymnasium as gym

    _log_simulator_warnings()
    spec = copy.deepcopy(_spec(env_id))
    spec.order_enforce = False
    errors = (gym.error.Error, ImportError, AttributeError, TypeError, ValueError, RuntimeError, OSError)
    try:
        return gym.make(spec, max_episode_steps=max_episode_steps, disable_env_checker=True)
    except errors as error:
        raise InvalidExperiment(
            f"the environment cannot be constructed here: {error}".rstrip("."),
            field="task.id",
            value=env_id,
            remedy="Install what it needs, or choose another environment",
        ) from error


@cache
def _log_simulator_warnings() -> None:
    """Send MuJoCo's warnings to `logging`; by default it appends them to a file in the working directory."""
    import mujoco

    mujoco.set_mju_user_warning(_log_simulator_warning)


def _log_simulator_warning(message: str) -> None:
    # What is deprecated is Gymnasium's model file; the user can do nothing about it.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    logging.getLogger(__name__).log(level, "MuJoCo: %s", message)
