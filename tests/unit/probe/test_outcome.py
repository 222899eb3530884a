from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue, RunFailed
from proxygap.base.measurement import Direction
from proxygap.probe.catalog import OUTCOMES_OF
from proxygap.probe.outcome import Evaluator, outcome_measurements


class Countdown(gym.Env):
    """Starts at a random height, falls by 1 + action each step, pays 2, ends at or below 0."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, crash_at=None, poison_at=None):
        self.crash_at, self.poison_at = crash_at, poison_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.height = 0, float(self.np_random.integers(1, 12))
        return np.array([self.height], np.float32), {}

    def step(self, action):
        if self.steps == self.crash_at:
            raise OSError("the physics is gone")
        self.steps += 1
        self.height -= 1 + float(action[0])
        pay = np.nan if self.steps == self.poison_at else 2.0
        return np.array([self.height], np.float32), pay, self.height <= 0, False, {}


class Task:
    name, obs_size, action_size, max_episode_steps = "Countdown-v0", 1, 1, 8

    def __init__(self, **trouble):
        self.trouble, self.made = trouble, 0

    def make_env(self):
        self.made += 1
        return Countdown(**self.trouble)


class Still:
    def __init__(self):
        self.batches = []

    def act(self, obs_BO, *, generator=None):
        assert generator is None
        self.batches.append(len(obs_BO))
        return torch.zeros(len(obs_BO), 1)


def test_returns_lengths_and_rows_are_those_of_the_episodes():
    task, policy = Task(), Still()
    evaluator = Evaluator(task, seed=3, episodes=6, discount=0.5)
    evaluation = evaluator.evaluate(policy)
    start = evaluation.start_obs_EO[:, 0]
    length = np.minimum(start, 8)
    assert task.made == 6
    assert len(set(start)) > 1
    np.testing.assert_array_equal(evaluation.length_E, length)
    np.testing.assert_array_equal(evaluation.outcome_return_E, 2 * length)
    np.testing.assert_allclose(evaluation.discounted_return_E, 4 * (1 - 0.5**length))
    rows = evaluation.transitions
    assert [len(part) for part in rows.episodes()] == list(length)
    np.testing.assert_array_equal(rows.next_obs_BO, rows.obs_BO - 1)
    last = np.append(np.flatnonzero(np.diff(rows.episode_B)), len(rows) - 1)
    np.testing.assert_array_equal(rows.terminated_B[last], start <= 8)
    np.testing.assert_array_equal(rows.truncated_B[last], start >= 8)
    assert rows.terminated_B.sum() == (start <= 8).sum()
    assert policy.batches == [int((length > step).sum()) for step in range(int(length.max()))]
    assert rows.obs_BO.dtype == np.float32


def test_every_evaluation_starts_from_the_same_states():
    evaluator = Evaluator(Task(), seed=3, episodes=4)
    first, second = evaluator.evaluate(Still()), evaluator.evaluate(Still())
    assert first.transitions.content_hash == second.transitions.content_hash
    again = Evaluator(Task(), seed=3, episodes=4).evaluate(Still())
    assert again.transitions.content_hash == first.transitions.content_hash
    other = Evaluator(Task(), seed=4, episodes=4).evaluate(Still())
    assert other.transitions.content_hash != first.transitions.content_hash
    more = Evaluator(Task(), seed=3, episodes=6).evaluate(Still())
    np.testing.assert_array_equal(more.start_obs_EO[:4], first.start_obs_EO)


def test_a_crashing_environment_is_named():
    with pytest.raises(RunFailed, match=r"Countdown-v0 raised OSError in evaluation episode 0 at step 0: the physics"):
        Evaluator(Task(crash_at=0), 0, 2).evaluate(Still())


def test_non_finite_numbers_are_refused():
    with pytest.raises(NonFiniteValue, match="outcome reward is not finite in evaluation episode 0 at step 0"):
        Evaluator(Task(poison_at=1), 0, 2).evaluate(Still())

    class Diverged:
        def act(self, obs_BO, *, generator=None):
            return torch.full((len(obs_BO), 1), torch.nan)

    with pytest.raises(NonFiniteValue, match="action of the policy"):
        Evaluator(Task(), 0, 2).evaluate(Diverged())


def test_every_outcome_of_the_catalog_is_measured_with_its_spread():
    evaluation = Evaluator(Task(), 3, 5).evaluate(Still())
    values = {row.key: row.value for row in outcome_measurements(tuple(OUTCOMES_OF["control"]), evaluation)}
    returns = evaluation.outcome_return_E
    assert values["outcome/return"] == returns.mean()
    assert values["outcome/return_std"] == pytest.approx(returns.std(ddof=1))
    assert (values["outcome/return_min"], values["outcome/return_max"]) == (returns.min(), returns.max())
    assert values["outcome/episode_length"] == evaluation.length_E.mean()
    assert set(OUTCOMES_OF["control"]) <= {key.removeprefix("outcome/") for key in values}
    alone = outcome_measurements(["return"], Evaluator(Task(), 3, 1).evaluate(Still()))
    assert "return_std" not in {row.name for row in alone}
    with pytest.raises(InvalidExperiment, match="reward"):
        outcome_measurements(["reward"], evaluation)


class Vector(Countdown):
    """Pays 3 of the one thing each step, and minus the number of steps so far of the other."""

    def step(self, action):
        obs, pay, terminated, truncated, _ = super().step(action)
        return obs, pay, terminated, truncated, {"component_reward": np.array([3.0, -float(self.steps)])}


class VectorTask(Task):
    components = ("gain", "cost")

    def make_env(self):
        return Vector(**self.trouble)


def test_components_are_summed_over_each_episode():
    evaluation = Evaluator(VectorTask(), seed=3, episodes=6).evaluate(Still())
    length_E = evaluation.length_E.astype(float)
    expected_ER = np.stack([3 * length_E, -length_E * (length_E + 1) / 2], axis=1)
    np.testing.assert_array_equal(evaluation.component_return_ER, expected_ER)
    rows = evaluation.transitions
    np.testing.assert_array_equal(rows.component_reward_BR[:, 1], -(rows.step_B + 1))
    found = {m.key: m for m in outcome_measurements(["return", "hypervolume"], evaluation, ("gain", "cost"))}
    assert set(found) == {
        *(f"outcome/return{which}" for which in ("", "_min", "_max", "_std")),
        "outcome/return/gain",
        "outcome/return/cost",
    }
    assert found["outcome/return/gain"].value == pytest.approx(expected_ER[:, 0].mean())
    assert found["outcome/return/cost"].value == pytest.approx(expected_ER[:, 1].mean())
    assert found["outcome/return/cost"].direction == Direction.HIGHER


def test_one_reward_has_no_components():
    evaluation = Evaluator(Task(), seed=3, episodes=4).evaluate(Still())
    assert evaluation.component_return_ER.shape == (4, 0)
    assert evaluation.transitions.component_reward_BR.shape == (len(evaluation.transitions), 0)


def test_a_component_that_is_not_finite_is_named():
    class Poisoned(Vector):
        def step(self, action):
            *answer, info = super().step(action)
            info["component_reward"][1] = np.nan
            return (*answer, info)

    task = VectorTask()
    task.make_env = Poisoned
    with pytest.raises(NonFiniteValue, match="component reward"):
        Evaluator(task, seed=3, episodes=1).evaluate(Still())


class Planner:
    """Acts by what it did before in the episode: 0, 0.1, 0.2, ...; copy c does ``gain_Q[c]`` times that."""

    def __init__(self, gain_Q=(1.0,), episodes_of_one=4):
        self.gain_Q, self.episodes_of_one, self.begun, self.calls = gain_Q, episodes_of_one, [], []

    def episodes(self, count):
        self.begun.append(count)
        return Actor(self, count)


class Actor:
    def __init__(self, policy, count):
        self.policy, self.step_B = policy, torch.zeros(count)
        self.gain_B = torch.tensor(policy.gain_Q).repeat_interleave(policy.episodes_of_one)[:count]

    def act(self, obs_BO, live_B):
        assert live_B.dtype == torch.int64
        assert len(obs_BO) == len(live_B)
        self.policy.calls.append(live_B.tolist())
        action_BA = (0.1 * self.step_B * self.gain_B)[live_B, None].clamp(-1, 1)
        self.step_B[live_B] += 1
        return action_BA


def test_a_policy_that_remembers_begins_anew_with_each_evaluation():
    evaluator, policy = Evaluator(Task(), seed=3, episodes=4), Planner()
    first, second = evaluator.evaluate(policy), evaluator.evaluate(policy)
    assert policy.begun == [4, 4]
    assert first.transitions.content_hash == second.transitions.content_hash
    rows = first.transitions
    np.testing.assert_allclose(rows.action_BA[:, 0], 0.1 * rows.step_B, atol=1e-6)
    over = [[index for index in range(4) if first.length_E[index] > step] for step in range(first.length_E.max())]
    assert policy.calls == over * 2


def test_many_copies_live_the_episodes_that_each_would_live_alone():
    gains = (1.0, -2.0, 0.5)
    evaluator = Evaluator(Task(), seed=3, episodes=4)
    together = Planner(gains)
    many = evaluator.evaluate_many(together, 3)
    assert together.begun == [12]
    assert len(together.calls) == max(one.length_E.max() for one in many)
    assert len({one.transitions.content_hash for one in many}) == 3
    for gain, one in zip(gains, many, strict=True):
        alone = Evaluator(Task(), seed=3, episodes=4).evaluate(Planner((gain,)))
        assert alone.transitions.content_hash == one.transitions.content_hash
        np.testing.assert_array_equal(alone.outcome_return_E, one.outcome_return_E)
        np.testing.assert_array_equal(alone.start_obs_EO, one.start_obs_EO)
    again = evaluator.evaluate(Planner())
    assert again.transitions.content_hash == many[0].transitions.content_hash


def test_copies_meet_the_same_noise_of_the_environment():
    from proxygap.collect.tasks.cartpole import ContinuousCartPole

    task = ContinuousCartPole(process_noise=0.1, max_episode_steps=5)
    evaluator = Evaluator(task, seed=0, episodes=2)
    first, second = evaluator.evaluate_many(Planner((1.0, 1.0), episodes_of_one=2), 2)
    assert first.transitions.content_hash == second.transitions.content_hash
    calm = Evaluator(task.model_copy(update={"process_noise": 0.0}), 0, 2).evaluate(Planner(episodes_of_one=2))
    assert not np.array_equal(calm.transitions.obs_BO[1], first.transitions.obs_BO[1])
    evaluator.close()


def test_an_error_among_copies_names_the_copy():
    class Wild(Planner):
        def episodes(self, count):
            actor = super().episodes(count)
            actor.gain_B[5] = torch.nan
            return actor

    with pytest.raises(NonFiniteValue, match="evaluation episode 1 of copy 1 at step 0"):
        Evaluator(Task(), 3, 4).evaluate_many(Wild((1.0, 1.0)), 2)
