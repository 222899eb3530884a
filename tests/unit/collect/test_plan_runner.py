"""Episodes of a policy that remembers: begun anew where they end, kept over new models and checkpoints. No Ray."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from proxygap.base.protocols import State
from proxygap.collect.plan_runner import PlanRunner
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.optimize.planning_module import PlanningModule
from proxygap.rllib import RLModuleSpec, SACConfig

PENDULUM = GymnasiumTask(id="Pendulum-v1", max_episode_steps=5)


class Counting:
    """Acts by the model it was made of and by how often it acted in the episode: model + steps / 10."""

    def __init__(self, model: State) -> None:
        self.base = float(model.arrays["base"])

    def episodes(self, count: int) -> Count:
        return Count(self.base, count)

    def act(self, obs_BO: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        del generator
        return torch.full((len(obs_BO), 1), self.base)

    def value(self, obs_BO: torch.Tensor) -> torch.Tensor:
        return torch.full((len(obs_BO),), 7.0)


class Count:
    """Its steps are all it remembers."""

    def __init__(self, base: float, count: int) -> None:
        self.base, self.step_B = base, torch.full((count,), 5.0)  # a runner must say where episodes begin

    def begin(self, place_B: torch.Tensor) -> None:
        self.step_B[place_B] = 0.0

    def act(self, obs_BO: torch.Tensor, live_B: torch.Tensor) -> torch.Tensor:
        del obs_BO
        action_BA = self.base + 0.1 * self.step_B[live_B, None]
        self.step_B[live_B] += 1
        return action_BA

    def state(self) -> State:
        return State({"step": self.step_B.numpy().copy()}, {})

    def load_state(self, state: State) -> None:
        self.step_B = torch.tensor(state.arrays["step"])


def model(base: float) -> State:
    return State({"base": np.array(base, np.float32)}, {})


def runner(count: int = 2) -> PlanRunner:
    spaces = {
        "observation_space": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        "action_space": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
    }
    options = {"task": PENDULUM, "seed": 0, "count": count, "threads": 1}
    config = SACConfig().environment(**spaces, env_config=options)
    spec = RLModuleSpec(module_class=PlanningModule, **spaces, model_config={"recipe": Counting})
    config.rl_module(rl_module_spec=spec)
    return PlanRunner(config=config.copy())


def acted(subject: PlanRunner, steps: int) -> list[float]:
    """Actions of the first environment."""
    return subject.sample(steps=steps).action_BA[::2, 0].round(3).tolist()


def test_an_episode_that_begins_has_nothing_planned() -> None:
    subject = runner()
    subject.module.take(model(0.0), 1)
    assert acted(subject, 12) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4] * 2 + [0.0, 0.1], abs=1e-6)


def test_planning_may_begin_in_the_middle_of_an_episode() -> None:
    subject = runner()
    subject.module.take(model(-0.5), 1)
    subject.sample(steps=3, random=True)
    assert acted(subject, 3) == pytest.approx([0.0, 0.1, -0.5], abs=1e-6)  # the actor as it is made, then begun


def test_a_new_model_goes_on_with_what_was_remembered() -> None:
    subject = runner()
    subject.module.take(model(0.0), 1)
    assert acted(subject, 2) == pytest.approx([0.0, 0.1], abs=1e-6)
    subject.module.take(model(-1.0), 2)
    assert acted(subject, 4) == pytest.approx([-0.8, -0.7, -0.6, -1.0], abs=1e-6)
    subject.module.take(model(0.5), 2)  # that version is there already
    assert acted(subject, 1) == pytest.approx([-0.9], abs=1e-6)


def test_state_continues_in_the_middle_of_an_episode_also_before_the_model_is_there() -> None:
    first, second = runner(), runner()
    first.module.take(model(0.0), 1)
    first.sample(steps=2, random=True)
    assert "actor" not in first.part_state().structure
    acted(first, 7)
    saved = first.part_state()
    second.load_part_state(saved)
    again = second.part_state()
    assert again.structure == saved.structure
    assert all(np.array_equal(array, again.arrays[name]) for name, array in saved.arrays.items())
    with pytest.raises(RuntimeError, match="no model"):
        second.sample()
    second.load_part_state(saved)
    second.module.take(model(0.0), 1)
    assert acted(second, 6) == acted(first, 6)
    first.load_part_state(runner().part_state())  # nothing was planned yet: nothing is left of what was
    assert acted(first, 1) == pytest.approx([0.0], abs=1e-6)


def test_a_life_after_a_loss_remembers_nothing() -> None:
    subject = runner()
    subject.module.take(model(0.0), 1)
    subject.begin_life(3)
    assert acted(subject, 1) == pytest.approx([0.0], abs=1e-6)


def test_the_module_carries_its_model_as_weights() -> None:
    sender, receiver = runner().module, runner().module
    assert sender.get_state() == {}
    receiver.set_state({})
    sender.take(model(0.25), 3)
    receiver.set_state(sender.get_state(inference_only=True))
    assert receiver.version == 3
    assert receiver.act(torch.zeros(4, 3)).tolist() == [[0.25]] * 4
    assert receiver.value(torch.zeros(2, 3)).tolist() == [7.0] * 2
    assert list(receiver.parameters()) == []
