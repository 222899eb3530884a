"""An environment put back to where it was continues bit for bit, and refuses what it cannot repeat."""

import gymnasium as gym
import numpy as np
import pytest

from proxygap.base.errors import CheckpointRefused, InvalidExperiment, NonFiniteValue, RunFailed
from proxygap.base.protocols import Stateful
from proxygap.base.records import Transitions
from proxygap.collect.replayable import ReplayableEnv
from proxygap.collect.settings import RewardNoise
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask

TASKS = [
    *(GymnasiumTask(id=name) for name in ("InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Pendulum-v1")),
    ContinuousCartPole(process_noise=0.02),
]


def actions(task, count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, task.action_size)).astype(np.float32)


def play(env, actions_TA):
    return Transitions.concatenate([env.step(action_A) for action_A in actions_TA])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("steps", [0, 1, 37, 230])
def test_continues_bit_for_bit(task, steps):
    before, after = actions(task, steps), actions(task, 300, seed=1)
    straight = ReplayableEnv(task, 5, "env/0")
    for action_A in before:
        straight.step(action_A)
    snapshot = straight.state()
    expected = play(straight, after)
    resumed = ReplayableEnv(task, 5, "env/0")
    resumed.step(actions(task, 1, seed=2)[0])
    resumed.load_state(snapshot)
    assert play(resumed, after).content_hash == expected.content_hash
    assert resumed.state().structure == straight.state().structure
    assert np.array_equal(resumed.obs, straight.obs)


def test_is_stateful_and_its_snapshot_does_not_change():
    env = ReplayableEnv(TASKS[1], 0, "a")
    assert isinstance(env, Stateful)
    env.step(actions(TASKS[1], 1)[0])
    snapshot = env.state()
    copies = {name: array.copy() for name, array in snapshot.arrays.items()}
    play(env, actions(TASKS[1], 30))
    assert snapshot.structure["episode"] == 0
    assert all(np.array_equal(snapshot.arrays[name], copy) for name, copy in copies.items())


def test_rows_link_up_and_number_episodes():
    task = ContinuousCartPole(max_episode_steps=20)
    env = ReplayableEnv(task, 0, "a")
    rows = play(env, np.ones((100, 1), np.float32))
    assert rows.terminated_B.any()
    ends = rows.terminated_B | rows.truncated_B
    assert np.array_equal(rows.next_obs_BO[:-1][~ends[:-1]], rows.obs_BO[1:][~ends[:-1]])
    assert np.array_equal(rows.episode_B, np.concatenate([[0], np.cumsum(ends)[:-1]]))
    assert np.array_equal(rows.step_B == 0, np.concatenate([[True], ends[:-1]]))
    assert (env.episode, env.step_in_episode) == (rows.episode_B[-1] + ends[-1], 0 if ends[-1] else rows.step_B[-1] + 1)


def test_the_action_is_kept_by_value():
    env, action = ReplayableEnv(TASKS[0], 0, "a"), np.full(1, 0.5, np.float32)
    row = env.step(action)
    action[:] = -1
    assert row.action_BA.tolist() == env.state().arrays["actions"].tolist() == [[0.5]]


def test_episodes_and_components_start_differently():
    task = ContinuousCartPole(max_episode_steps=1)
    env = ReplayableEnv(task, 0, "a")
    rows = play(env, np.zeros((20, 1), np.float32))
    starts = [*rows.obs_BO.tolist(), ReplayableEnv(task, 0, "b").obs.tolist(), ReplayableEnv(task, 1, "a").obs.tolist()]
    assert len({tuple(start) for start in starts}) == 22


class Poisoned:
    """A cart-pole that shows, or pays, a non-finite number at its third step; or obeys no seed."""

    name, action_size, components = "Poisoned", 1, ()

    def __init__(self, poison):
        self.poison, self.calls = poison, []

    def make_env(self):
        return Poison(ContinuousCartPole().make_env(), self.poison, self.calls)


class Poison(gym.Wrapper):
    def __init__(self, env, poison, calls):
        super().__init__(env)
        self.poison, self.calls, self.steps = poison, calls, 0

    def reset(self, **options):
        self.calls.append(1)
        obs, info = super().reset(**options)
        return obs + (np.float32(len(self.calls)) if self.poison == "seed" else 0), info

    def step(self, action):
        obs, reward, *rest = super().step(action)
        self.steps += 1
        if self.steps == 3 and self.poison == "obs":
            obs[1] = np.nan
        if self.steps == 3 and self.poison == "reward":
            reward = np.inf
        return obs, reward, *rest


class TwoRewards:
    """Pays (1, minus the number of the step) and, where told to, something that is not that."""

    name, action_size, components = "TwoRewards", 1, ("one", "late")

    def __init__(self, wrong_at=None, wrong=()):
        self.wrong_at, self.wrong = wrong_at, wrong

    def make_env(self):
        return PaysTwo(ContinuousCartPole().make_env(), self)


class PaysTwo(gym.Wrapper):
    def __init__(self, env, task):
        super().__init__(env)
        self.task, self.steps = task, 0

    def step(self, action):
        *rest, info = super().step(action)
        self.steps += 1
        paid = self.task.wrong if self.steps == self.task.wrong_at else np.array([1.0, -self.steps])
        return *rest, {**info, "component_reward": paid}


def test_component_rewards_are_rows_of_their_own():
    rows = play(ReplayableEnv(TwoRewards(), 0, "a"), np.zeros((4, 1), np.float32))
    assert rows.component_reward_BR.tolist() == [[1, -1], [1, -2], [1, -3], [1, -4]]
    assert rows.component_reward_BR.dtype == np.float32
    assert play(ReplayableEnv(TASKS[0], 0, "a"), np.zeros((4, 1), np.float32)).component_reward_BR.shape == (4, 0)


@pytest.mark.parametrize(
    ("wrong", "error"), [([1.0], RunFailed), ([1.0, 2.0, 3.0], RunFailed), ([1.0, np.nan], NonFiniteValue)]
)
def test_components_that_are_not_the_tasks_are_refused_where_they_arise(wrong, error):
    env = ReplayableEnv(TwoRewards(2, wrong), 0, "a")
    env.step(np.zeros(1, np.float32))
    with pytest.raises(error, match="episode 0, step 2"):
        env.step(np.zeros(1, np.float32))


@pytest.mark.parametrize("poison", ["obs", "reward"])
def test_a_non_finite_value_is_refused_where_it_arises(poison):
    env = ReplayableEnv(Poisoned(poison), 0, "runner/3")
    action = np.zeros(1, np.float32)
    env.step(action), env.step(action)
    with pytest.raises(NonFiniteValue) as caught:
        env.step(action)
    told = str(caught.value)
    assert all(word in told for word in ("Poisoned", "runner/3", "episode 0, step 3"))


@pytest.mark.parametrize(
    ("action", "error"),
    [([np.nan], NonFiniteValue), ([1.5], ValueError), ([0.0, 0.0], ValueError), (0.0, ValueError)],
)
def test_an_impossible_action_is_refused_and_changes_nothing(action, error):
    env = ReplayableEnv(ContinuousCartPole(), 0, "a")
    before = env.obs
    with pytest.raises(error):
        env.step(np.array(action, np.float32))
    assert np.array_equal(env.obs, before)
    assert env.step_in_episode == 0


def test_a_state_of_another_environment_is_refused():
    state = ReplayableEnv(ContinuousCartPole(), 0, "a").state()
    for other in (
        ReplayableEnv(ContinuousCartPole(), 1, "a"),
        ReplayableEnv(ContinuousCartPole(), 0, "b"),
        ReplayableEnv(GymnasiumTask(id="InvertedPendulum-v5"), 0, "a"),
    ):
        with pytest.raises(CheckpointRefused):
            other.load_state(state)


def test_an_environment_that_does_not_repeat_itself_is_refused():
    env = ReplayableEnv(Poisoned("seed"), 0, "a")
    with pytest.raises(CheckpointRefused, match="did not return"):
        env.load_state(env.state())


NOISES = [RewardNoise(kind="gaussian", scale=0.5), RewardNoise(kind="student_t", degrees=3.0, where="first_positive")]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.kind)
def test_noisy_rewards_continue_bit_for_bit(noise):
    task = ContinuousCartPole(max_episode_steps=25)
    before, after = actions(task, 37), actions(task, 60, seed=1)
    straight, resumed = ReplayableEnv(task, 5, "env/0", noise), ReplayableEnv(task, 5, "env/0", noise)
    play(straight, before)
    resumed.load_state(straight.state())
    assert play(resumed, after).content_hash == play(straight, after).content_hash


def test_noise_changes_rewards_alone_and_where_it_is_asked_for():
    task, moves = ContinuousCartPole(), actions(ContinuousCartPole(), 400)
    clean = play(ReplayableEnv(task, 5, "a"), moves)
    noisy = play(ReplayableEnv(task, 5, "a", NOISES[1]), moves)
    for name, column in clean.columns().items():
        assert np.array_equal(column, getattr(noisy, name)) == (name != "outcome_reward_B")
    moved = noisy.outcome_reward_B != clean.outcome_reward_B
    assert np.array_equal(moved, clean.obs_BO[:, 0] > 0)
    assert 0 < moved.sum() < len(moved)
    other = play(ReplayableEnv(task, 5, "b", NOISES[1]), moves)
    assert not np.array_equal(other.outcome_reward_B, noisy.outcome_reward_B)


def test_noise_has_the_distribution_it_is_named_after():
    rng, obs = np.random.default_rng(0), np.zeros(1, np.float32)
    drawn = np.array([NOISES[0].draw(rng, obs) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(0.0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, rel=0.03)
    tails = np.array([RewardNoise(kind="student_t", degrees=3.0).draw(rng, obs) for _ in range(20_000)])
    assert np.mean(np.abs(tails) > 5.841) == pytest.approx(0.01, abs=0.004)  # the t table's 99.5 percent
    assert RewardNoise().draw(rng, obs) == 0.0


def test_noise_is_refused_where_rewards_come_apart():
    with pytest.raises(InvalidExperiment, match="several rewards"):
        ReplayableEnv(TwoRewards(), 0, "a", NOISES[0])
