from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.imagine.rollouts import branched_rollouts, imagined_return
from proxygap.imagine.settings import HorizonSchedule
from proxygap.testing.dynamics import LinearDynamics


class Ladder:
    """A task whose first coordinate climbs; it ends above 2.5 and pays the coordinate reached."""

    name, obs_size, action_size, max_episode_steps = "ladder", 2, 1, 10

    def __init__(self, known_reward=True, known_termination=True):
        self.known_reward, self.known_termination = known_reward, known_termination

    def make_env(self):
        raise NotImplementedError

    def reward(self, obs_BO, action_BA, next_obs_BO):
        return next_obs_BO[:, 0]

    def terminated(self, obs_BO, action_BA, next_obs_BO):
        return next_obs_BO[:, 0] > 2.5


class Still:
    """Acts zero when asked for its best, noise when asked for a sample."""

    def act(self, obs_BO, *, generator=None):
        return torch.zeros(len(obs_BO), 1) if generator is None else torch.rand(len(obs_BO), 1, generator=generator)

    def value(self, obs_BO):
        return torch.zeros(len(obs_BO))


def climber(*, steps=(1.0,), std=0.0, reward=None, terminal_at=None, elites=None):
    """Every step adds ``steps[member]`` to the first coordinate; actions do nothing."""
    targets = 2 if reward is None else 3
    offset = torch.zeros(len(steps), targets)
    offset[:, 0] = torch.tensor(steps)
    if reward is not None:
        offset[:, 2] = reward
    return LinearDynamics(torch.zeros(3, targets), offset, std=std, terminal_at=terminal_at, elites=elites)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rollouts_stop_at_their_terminal_state_and_keep_it():
    starts = torch.tensor([[0.0, 5.0], [2.0, 6.0], [-9.0, 7.0]])
    imagined = branched_rollouts(climber(), Still(), Ladder(), starts, 4, draw())
    lengths = {origin: int((imagined.obs_BO[:, 1] == origin).sum()) for origin in (5.0, 6.0, 7.0)}
    assert lengths == {5.0: 3, 6.0: 1, 7.0: 4}
    assert imagined.terminated_B.sum() == 2
    assert np.array_equal(imagined.terminated_B, imagined.next_obs_BO[:, 0] > 2.5)
    assert np.array_equal(imagined.next_obs_BO[:, 0], imagined.obs_BO[:, 0] + 1)
    assert np.array_equal(imagined.proxy_reward_B, imagined.next_obs_BO[:, 0])
    assert (imagined.obs_BO.dtype, imagined.terminated_B.dtype) == (np.float32, np.bool_)


def test_learned_laws_are_used_where_the_task_has_none():
    model = climber(reward=0.25, terminal_at=1.5)
    imagined = branched_rollouts(model, Still(), Ladder(False, False), np.zeros((1, 2), np.float32), 9, draw())
    assert imagined.obs_BO[:, 0].tolist() == [0.0, 1.0]
    assert imagined.proxy_reward_B.tolist() == [0.25, 0.25]
    assert imagined.terminated_B.tolist() == [False, True]


@pytest.mark.parametrize(("task", "what"), [(Ladder(False, True), "reward"), (Ladder(True, False), "termination")])
def test_a_law_that_nobody_knows_is_named(task, what):
    with pytest.raises(InvalidExperiment, match=what):
        branched_rollouts(climber(), Still(), task, torch.zeros(1, 2), 1, draw())


def test_equal_generators_give_equal_rollouts_and_the_starts_stay():
    starts, model = torch.randn(50, 2, generator=draw(9)), climber(steps=(0.1, 0.2), std=0.3)
    before = starts.clone()
    first, second, other = (branched_rollouts(model, Still(), Ladder(), starts, 5, draw(s), 16) for s in (1, 1, 2))
    for name in ("obs_BO", "action_BA", "next_obs_BO", "proxy_reward_B", "terminated_B"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.next_obs_BO[:16], other.next_obs_BO[:16])
    assert torch.equal(starts, before)


def test_every_row_and_step_draws_an_elite_of_its_own():
    model = climber(steps=(1e6, 0.25, 0.5, 0.125), elites=(1, 2, 3))
    imagined = branched_rollouts(model, Still(), Ladder(), torch.full((600, 2), -9.0), 2, draw())
    taken = imagined.next_obs_BO[:, 0] - imagined.obs_BO[:, 0]
    values, counts = np.unique(taken, return_counts=True)
    assert values.tolist() == [0.125, 0.25, 0.5]
    assert counts.min() > 400 - 5 * math.sqrt(1200 * 2 / 9)
    both_steps_alike = (taken[:600] == taken[600:]).mean()
    assert both_steps_alike == pytest.approx(1 / 3, abs=0.1)


def test_noise_has_the_predicted_deviation():
    imagined = branched_rollouts(climber(std=0.5), Still(), Ladder(), torch.zeros(20_000, 2), 1, draw())
    noise = imagined.next_obs_BO - np.array([1.0, 0.0], np.float32)
    assert noise.std(axis=0).tolist() == pytest.approx([0.5, 0.5], rel=0.03)
    assert np.abs(noise.mean(axis=0)).max() < 0.02
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.03


def test_batches_cover_all_starts_once():
    starts = torch.arange(25.0).reshape(25, 1).expand(25, 2) - 99
    imagined = branched_rollouts(climber(), Still(), Ladder(), starts, 3, draw(), batch_size=10)
    assert len(imagined) == 75
    assert sorted(imagined.obs_BO[:, 1].tolist()) == sorted((starts[:, 1].tolist()) * 3)


def test_no_starts_imagine_nothing():
    imagined = branched_rollouts(climber(), Still(), Ladder(), torch.zeros(0, 2), 3, draw())
    assert len(imagined) == 0
    assert imagined.obs_BO.shape == (0, 2)
    assert imagined.action_BA.shape == (0, 1)


def test_a_prediction_that_is_not_finite_names_step_and_member():
    with pytest.raises(NonFiniteValue, match=r"imagine.member = \[1\].*step 0"):
        branched_rollouts(climber(steps=(1.0, math.inf), elites=(1,)), Still(), Ladder(), torch.zeros(3, 2), 2, draw())


def test_a_lower_precision_reaches_the_model():
    class Told(LinearDynamics):
        def predict_rows(self, member_B, obs_BO, action_BA, precision="float32"):
            asked.append(precision)
            return super().predict_rows(member_B, obs_BO, action_BA, precision)

    asked, model = [], Told(torch.zeros(3, 2), torch.zeros(1, 2))
    branched_rollouts(model, Still(), Ladder(), torch.zeros(3, 2), 1, draw())
    branched_rollouts(model, Still(), Ladder(), torch.zeros(3, 2), 1, draw(), precision="bfloat16")
    assert asked == ["float32", "bfloat16"]


def test_imagined_return_follows_one_member_until_it_ends():
    model = climber(steps=(9.0, 1.0, 0.5), elites=(1, 2))
    returns = imagined_return(model, Still(), Ladder(), torch.tensor([[0.0, 0.0], [2.0, 0.0]]), 4, draw())
    assert returns.tolist() == [[1 + 2 + 3, 3], [0.5 + 1 + 1.5 + 2, 2.5 + 3]]


def test_imagined_return_of_a_rollout_that_explodes_is_nan_and_spares_the_others():
    model = climber(steps=(1.0, math.nan))
    returns = imagined_return(model, Still(), Ladder(), torch.zeros(2, 2), 2, draw())
    assert returns[0].tolist() == [3.0, 3.0]
    assert returns[1].isnan().all()


@pytest.mark.parametrize(("step", "length"), [(0, 1), (20, 1), (84, 7), (85, 8), (149, 14), (150, 15), (10_000, 15)])
def test_horizon_schedule_is_linear_and_truncated(step, length):
    assert HorizonSchedule(start=1, end=15, from_step=20, to_step=150)(step) == length


def test_horizon_schedule_without_a_ramp_jumps():
    schedule = HorizonSchedule(start=2, end=5, from_step=10, to_step=10)
    assert (schedule(9), schedule(10)) == (2, 5)
