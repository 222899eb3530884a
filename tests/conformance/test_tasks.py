"""Every task keeps every clause of the seam."""

import gymnasium as gym
import numpy as np
import pytest

from proxygap.base.protocols import Task
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
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
TASKS: list[Task] = [
    *(GymnasiumTask(id=name) for name in IDS),
    GymnasiumTask(id="Pendulum-v1", max_episode_steps=30),
    ContinuousCartPole(),
    ContinuousCartPole(force_limit=4.0, process_noise=0.05, start_spread=0.2),
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
    """The pendulum, with one lie at a time."""

    def __init__(self, lie):
        self.true, self.lie = GymnasiumTask(id="Pendulum-v1"), lie

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
