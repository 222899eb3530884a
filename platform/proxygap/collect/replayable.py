"""An environment that can be put back to where it was, whatever simulator is inside.

A simulator's hidden state (solver warm starts, generators, counters of wrappers) cannot be read out in general, but it
is determined by the seed of the episode and the actions since. Those two are the state here; loading plays them again.
Shape legend: O observation size, A action size, R component rewards, T steps of the running episode.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.errors import CheckpointRefused, InvalidExperiment, NonFiniteValue, RunFailed
from proxygap.base.protocols import State
from proxygap.base.records import Float32, Transitions
from proxygap.base.seeds import derived_seed, generator
from proxygap.collect.settings import RewardNoise

if TYPE_CHECKING:
    from proxygap.base.protocols import Task

_NO_NOISE = RewardNoise()
_NO_COMPONENTS = np.empty(0, np.float32)


class ReplayableEnv:
    """A task's environment, seeded episode by episode, that starts anew by itself when an episode ends.

    Args:
        task: what to make the environment of.
        seed: seed of the run.
        component: name of this environment among all generators of the run; two environments must not share one.
        reward_noise: what is added to the rewards; it has a generator of its own in each episode.

    Raises:
        InvalidExperiment: noise for a task that pays several rewards apart.
    """

    def __init__(self, task: Task, seed: int, component: str, reward_noise: RewardNoise = _NO_NOISE) -> None:
        self._task, self._seed, self._component = task, seed, component
        self._components = len(task.components)
        self._noise = reward_noise
        if reward_noise.kind != "none" and self._components:
            raise InvalidExperiment(
                f"{task.name} pays several rewards apart, and noise is for one",
                field="collect.reward_noise.kind",
                value=reward_noise.kind,
                remedy="Choose none, or another task",
            )
        self._env = task.make_env()
        self._start(0)

    @property
    def obs(self) -> Float32:
        """The current observation (O,), a copy."""
        return self._obs.copy()

    @property
    def episode(self) -> int:
        """Number of the running episode, from 0."""
        return self._episode

    @property
    def step_in_episode(self) -> int:
        """Steps taken in the running episode."""
        return len(self._actions)

    def step(self, action_A: Float32) -> Transitions:
        """Take one step; after the end of an episode the next one has begun.

        Args:
            action_A: in [-1, 1].

        Returns:
            One transition (a row of its own arrays); ``next_obs_BO`` is the last of its episode where that ended.

        Raises:
            NonFiniteValue: when the action, the observation or a reward is NaN or infinite.
            RunFailed: when the environment itself raised, or paid another number of components than the task names; the
                error names episode and step.
            ValueError: for an action of another shape or outside [-1, 1].
        """
        obs_O, episode, step = self._obs, self._episode, self.step_in_episode
        action_A = self._checked_action(action_A)
        reward, component_R, terminated, truncated = self._advance(action_A)
        row = Transitions(
            obs_BO=obs_O[None].copy(),
            action_BA=action_A[None].copy(),
            next_obs_BO=self._obs[None].copy(),
            outcome_reward_B=np.array([reward], np.float32),
            component_reward_BR=component_R[None],
            terminated_B=np.array([terminated]),
            truncated_B=np.array([truncated]),
            episode_B=np.array([episode], np.int64),
            step_B=np.array([step], np.int64),
        )
        if terminated or truncated:
            self._start(episode + 1)
        return row

    def state(self) -> State:
        """Number of the episode, its actions so far (T, A), and the observation they must lead to."""
        actions_TA = np.array(self._actions, np.float32).reshape(-1, self._task.action_size)
        structure = {"task": self._task.name, "seed": self._seed, "component": self._component}
        return State({"actions": actions_TA, "obs": self.obs}, {**structure, "episode": self._episode})

    def load_state(self, state: State) -> None:
        """Play the episode of `state` up to its last action.

        Raises:
            CheckpointRefused: when the state is of another environment, or the environment does not repeat itself.
        """
        for name, mine in (("task", self._task.name), ("seed", self._seed), ("component", self._component)):
            if state.structure[name] != mine:
                raise CheckpointRefused(
                    f"belongs to another environment than this one ({mine!r})",
                    field=f"{self._component}.{name}",
                    value=state.structure[name],
                    remedy="Resume with the experiment that wrote the checkpoint",
                )
        self._start(int(state.structure["episode"]))
        for action_A in np.array(state.arrays["actions"], np.float32):
            self._advance(action_A)
        if not np.array_equal(self._obs, state.arrays["obs"]):
            raise CheckpointRefused(
                f"{self._task.name} did not return to its observation after {self.step_in_episode} equal actions",
                field=self._component,
                remedy="Resume on the same versions of simulator and Python, with an environment that obeys its seed",
            )

    def close(self) -> None:
        """Release the simulator."""
        self._env.close()  # type: ignore[no-untyped-call]

    def _start(self, episode: int) -> None:
        seed = derived_seed(self._seed, f"{self._component}/episode/{episode}") % 2**31
        self._episode, self._actions = episode, list[Float32]()
        with self._crashes_named():
            self._obs, _ = self._env.reset(seed=seed)
        self._noise_rng = generator(self._seed, f"{self._component}/reward_noise/{episode}")
        self._require_finite(self._obs, "first observation")

    def _advance(self, action_A: Float32) -> tuple[float, Float32, bool, bool]:
        self._actions.append(action_A)
        noise = self._noise.draw(self._noise_rng, self._obs)
        with self._crashes_named():
            self._obs, reward, terminated, truncated, info = self._env.step(action_A)
        self._require_finite(self._obs, "observation")
        if not math.isfinite(reward):
            self._refuse("reward", reward)
        component_R = self._paid_apart(info) if self._components else _NO_COMPONENTS
        return float(reward) + noise, component_R, bool(terminated), bool(truncated)

    def _paid_apart(self, info: dict[str, Any]) -> Float32:
        component_R = np.array(info.get("component_reward", ()), np.float32)
        if component_R.shape != (self._components,):
            raise RunFailed(
                f"component_reward has shape {component_R.shape} at episode {self._episode}, step "
                f"{self.step_in_episode}, and the task has {self._components} components",
                field=f"{self._task.name} ({self._component})",
                remedy="Fix the environment, or choose another task",
            )
        self._require_finite(component_R, "component reward")
        return component_R

    @contextlib.contextmanager
    def _crashes_named(self) -> Iterator[None]:
        """Whatever the environment's own code raises fails this run, and no other."""
        try:
            yield
        except Exception as crash:
            raise RunFailed(
                f"the environment raised {type(crash).__name__} at episode {self._episode}, "
                f"step {self.step_in_episode}: {crash}",
                field=f"{self._task.name} ({self._component})",
                remedy="Fix the environment, or choose another task",
            ) from crash

    def _checked_action(self, action_A: Float32) -> Float32:
        """A copy that the caller cannot change later."""
        action_A = np.array(action_A, np.float32)
        if action_A.shape != (self._task.action_size,):
            raise ValueError(f"an action of {self._task.name} has shape ({self._task.action_size},): {action_A.shape}")
        self._require_finite(action_A, "action")
        if np.abs(action_A).max() > 1.0:
            raise ValueError(f"actions are in [-1, 1]: {action_A}")
        return action_A

    def _require_finite(self, array: Float32, what: str) -> None:
        if not np.isfinite(array).all():
            self._refuse(what, array.tolist())

    def _refuse(self, what: str, value: object) -> None:
        raise NonFiniteValue(
            f"the {what} is not finite at episode {self._episode}, step {self.step_in_episode}",
            field=f"{self._task.name} ({self._component})",
            value=value,
            remedy="Look at the environment's dynamics for these actions; the run's episodes hold them",
        )
