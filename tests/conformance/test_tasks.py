"""Every task keeps every clause of the seam."""

import gymnasium as gym
import numpy as np
import pytest

from proxygap.base.protocols import Task
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.collect.tasks.mo_gymnasium_task import MoGymnasiumTask
from proxygap.testing import tasks as suite

IDS = [
    "InvertedPendulum-v5",
    "Pendulum-v1",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
    "Swimmer-v5",
    "Ant-v5",
    "Reacher-v5",
    "MountainCarContinuous-v0",
]
VECTOR_IDS = [
    "deep-sea-treasure-v0",
    "deep-sea-treasure-concave-v0",
    "deep-sea-treasure-mirrored-v0",
    "resource-gathering-v0",
    "minecart-deterministic-v0",
    "mo-mountaincar-v0",
    "mo-mountaincarcontinuous-v0",
    "mo-hopper-v5",
    "mo-hopper-2obj-v5",
    "mo-halfcheetah-v5",
    "mo-reacher-v5",
]
TASKS: list[Task] = [
    GymnasiumTask(id="CartPole-v1"),
    GymnasiumTask(id="FrozenLake-v1"),
    *(MoGymnasiumTask(id=name) for name in VECTOR_IDS),
    MoGymnasiumTask(id="fruit-tree-v0", max_episode_steps=12),
    MoGymnasiumTask(id="mo-walker2d-v5", utility_weights={"velocity": 1.0, "energy": 1e-3}, reference=(0.0, -6000.0)),
    *(GymnasiumTask(id=name) for name in IDS),
    GymnasiumTask(id="Pendulum-v1", max_episode_steps=30),
    ContinuousCartPole(),
    ContinuousCartPole(force_limit=4.0, process_noise=0.05, start_spread=0.2),
    ContinuousCartPole(distractors=3, process_noise=0.05),
]


@pytest.mark.parametrize("clause", suite.CLAUSES, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.hash[:4]}")
def test_task_keeps_the_clause(task, clause):
    clause(task)


@pytest.mark.parametrize(
    ("task", "reward", "termination"),
    [
        (GymnasiumTask(id="InvertedPendulum-v5"), True, True),
        (GymnasiumTask(id="Pendulum-v1"), True, True),
        (GymnasiumTask(id="Hopper-v5"), False, True),
        (GymnasiumTask(id="HalfCheetah-v5"), False, True),
        (GymnasiumTask(id="Reacher-v5"), False, False),
        (ContinuousCartPole(), True, True),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_known_is_stated(task, reward, termination):
    assert (task.known_reward, task.known_termination) == (reward, termination)


class Broken:
    """A true task, by default the pendulum, with one lie at a time."""

    def __init__(self, lie, true=None):
        self.true, self.lie = true or GymnasiumTask(id="Pendulum-v1"), lie

    def __getattr__(self, name):
        if name.startswith("__") or name in ("true", "lie"):
            raise AttributeError(name)
        return self.lie.get(name, getattr(self.true, name))


class Drifting(gym.ObservationWrapper):
    """Noise that no seed decides."""

    drift = np.float32(0)

    def observation(self, observation):
        Drifting.drift += np.float32(1e-3)
        return observation + Drifting.drift


@pytest.mark.parametrize(
    ("clause", "lie"),
    [
        (suite.spaces_are_standard, {"obs_size": 4}),
        (suite.spaces_are_standard, {"make_env": lambda: gym.make("Pendulum-v1", disable_env_checker=True)}),
        (suite.episodes_end_at_the_limit, {"max_episode_steps": 199}),
        (suite.seeds_decide, {"make_env": lambda: Drifting(GymnasiumTask(id="Pendulum-v1").make_env())}),
        (suite.reward_law_holds, {"reward": lambda obs, action, next_obs: -next_obs[:, 2].square()}),
        (suite.termination_law_holds, {"terminated": lambda obs, action, next_obs: next_obs[:, 2] > 7.5}),
    ],
)
def test_the_suite_catches_a_task_that_lies(clause, lie):
    with pytest.raises(AssertionError):
        clause(Broken(lie))


class Unseeded(gym.Wrapper):
    """Takes no seed, so that nothing ever differs, though the environment draws."""

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=0, options=options)


class Deaf(gym.ActionWrapper):
    """Takes the first entry above 0 instead of the largest."""

    def action(self, action):
        return np.eye(len(action), dtype=np.float32)[(action > 0.5).argmax()]


class Overpaid(gym.RewardWrapper):
    def reward(self, reward):
        return reward + 0.1


TREASURE = MoGymnasiumTask(id="deep-sea-treasure-concave-v0")
LAKE = GymnasiumTask(id="FrozenLake-v1")
SHARED = TREASURE.front()


@pytest.mark.parametrize(
    ("clause", "true", "lie"),
    [
        (suite.seeds_decide, LAKE, {"make_env": lambda: Unseeded(LAKE.make_env())}),
        (suite.choices_are_the_largest_entry, TREASURE, {"make_env": lambda: Deaf(TREASURE.make_env())}),
        (suite.components_add_up, TREASURE, {"make_env": lambda: Overpaid(TREASURE.make_env())}),
        (suite.components_add_up, TREASURE, {"utility": lambda: np.array([0.5, 0.4])}),
        (suite.components_add_up, TREASURE, {"components": (), "utility": lambda: np.zeros(0)}),
        (suite.components_add_up, GymnasiumTask(id="Pendulum-v1"), {"components": ("a", "b")}),
        (suite.front_is_a_front, TREASURE, {"front": lambda: TREASURE.front() - [0, 100]}),
        (suite.front_is_a_front, TREASURE, {"front": lambda: np.vstack([TREASURE.front(), [[1.0, -4.0]]])}),
        (suite.front_is_a_front, TREASURE, {"front": lambda: SHARED}),
        (suite.front_is_a_front, TREASURE, {"reference_point": lambda: np.zeros(3)}),
    ],
)
def test_the_suite_catches_rewards_that_lie(clause, true, lie):
    with pytest.raises(AssertionError):
        clause(Broken(lie, true))
