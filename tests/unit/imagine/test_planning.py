from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.protocols import EpisodicPolicy, Policy, Stateful
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.imagine.law import LawModel
from proxygap.imagine.planners.settings import CemPlanner, IcemPlanner, MppiPlanner, Planning
from proxygap.imagine.planning import PlanningPolicy
from proxygap.testing.dynamics import LinearDynamics


class Origin:
    """Pays for closeness to the origin; never ends."""

    name, obs_size, action_size, max_episode_steps = "origin", 2, 1, 20
    known_reward = known_termination = True

    def reward(self, obs_BO, action_BA, next_obs_BO):
        return -next_obs_BO.square().sum(dim=1) - 0.01 * action_BA[:, 0].square()

    def terminated(self, obs_BO, action_BA, next_obs_BO):
        return torch.zeros(len(obs_BO), dtype=torch.bool)


def linear(members=2):
    offset_MT = 0.05 * torch.arange(float(members))[:, None].expand(-1, 2)
    return LinearDynamics(torch.tensor([[0.0, 0.0], [0.2, 0.0], [0.1, 0.3]]), offset_MT, std=0.05)


PLANNERS = [
    CemPlanner(horizon=4, candidates=30, rounds=2),
    IcemPlanner(horizon=4, candidates=30, rounds=2, elites=6),
    MppiPlanner(horizon=4, candidates=30, temperature=0.1),
]


def policy(planner=PLANNERS[0], *, replan_every=1, seed=0, propagation="ts1", **options):
    options = options or {"members": (0, 1)}
    planning = Planning(planner=planner, particles=4, replan_every=replan_every, propagation=propagation)
    return PlanningPolicy(linear(8), Origin(), planning, seed=seed, **options)


def starts(count, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def played(actor, obs_BO, steps, live_B=None):
    """Actions of every step at observations that do not move, (steps, rows, A)."""
    live_B = torch.arange(len(obs_BO)) if live_B is None else live_B
    return torch.stack([actor.act(obs_BO, live_B) for _ in range(steps)])


def test_it_is_a_policy_within_episodes_and_without():
    assert isinstance(policy(), EpisodicPolicy)
    assert isinstance(policy().episodes(2), Stateful)
    plain: Policy = policy()
    obs_BO = starts(3)
    action_BA = plain.act(obs_BO)
    assert action_BA.shape == (3, 1)
    assert torch.equal(action_BA, plain.act(obs_BO))
    assert torch.equal(action_BA, policy().episodes(3).act(obs_BO, torch.arange(3)))
    assert not torch.equal(action_BA, plain.act(obs_BO, generator=torch.Generator().manual_seed(5)))
    promise_B = plain.value(obs_BO)
    actor = policy().episodes(3)
    actor.act(obs_BO, torch.arange(3))
    assert torch.equal(promise_B, actor.promise_B)


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.kind)
def test_two_calls_give_actors_that_act_alike_and_apart(planner):
    both, obs_BO = policy(planner), starts(3)
    first, second = both.episodes(3), both.episodes(3)
    ahead = played(first, obs_BO, 3)
    assert torch.equal(played(second, obs_BO, 3), ahead)
    assert not torch.equal(ahead[0], ahead[1])
    assert not torch.equal(played(policy(planner, seed=1).episodes(3), obs_BO, 1)[0], ahead[0])


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.kind)
def test_episodes_that_end_do_not_change_the_others(planner):
    obs_BO, whole, some = starts(4), policy(planner).episodes(4), policy(planner).episodes(4)
    together = played(whole, obs_BO, 3)
    torch.testing.assert_close(played(some, obs_BO, 1), together[:1])
    left = torch.tensor([1, 3])
    torch.testing.assert_close(played(some, obs_BO[left], 2, left), together[1:, left])


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.kind)
@pytest.mark.parametrize("replan_every", [1, 3])
def test_an_actor_continues_from_its_state_bit_for_bit(planner, replan_every):
    obs_BO, actor = starts(3), policy(planner, replan_every=replan_every).episodes(3)
    played(actor, obs_BO, 4)
    state = actor.state()
    kept = {name: array.copy() for name, array in state.arrays.items()}
    ahead = played(actor, obs_BO, 4)
    assert all(np.array_equal(array, state.arrays[name], equal_nan=True) for name, array in kept.items())
    resumed = policy(planner, replan_every=replan_every).episodes(3)
    resumed.load_state(state)
    assert torch.equal(played(resumed, obs_BO, 4), ahead)
    mine, theirs = resumed.state(), actor.state()
    assert mine.structure == theirs.structure
    assert all(np.array_equal(array, theirs.arrays[name]) for name, array in mine.arrays.items())


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: planner.kind)
def test_an_episode_that_begins_anew_forgets_its_plan(planner):
    obs_BO, actor = starts(2), policy(planner).episodes(2)
    played(actor, obs_BO, 5)
    actor.begin(torch.tensor([1]))
    assert actor.promise_B.isnan().tolist() == [False, True]
    state = actor.state()
    fresh = policy(planner).episodes(2).state()
    for name, array in fresh.arrays.items():
        if name.startswith("memory/"):
            assert np.array_equal(state.arrays[name][1], array[1]), f"{name} is left of the episode before"
            assert name == "memory/stands" or not np.array_equal(state.arrays[name][0], array[0])


def test_a_plan_is_followed_until_the_next_one_is_due():
    obs_BO, actor = starts(2), policy(replan_every=3).episodes(2)
    first = actor.act(obs_BO, torch.arange(2))
    sequence_BHA = torch.from_numpy(actor.state().arrays["sequence"])
    assert torch.equal(first, sequence_BHA[:, 0])
    for step in (1, 2):
        assert torch.equal(actor.act(torch.full_like(obs_BO, torch.nan), torch.arange(2)), sequence_BHA[:, step])
    actor.act(obs_BO, torch.arange(2))
    assert not np.array_equal(actor.state().arrays["sequence"], sequence_BHA.numpy())


def test_the_next_plan_starts_from_the_rest_of_the_last():
    obs_BO, actor = starts(1), policy(replan_every=2).episodes(1)
    actor.act(obs_BO, torch.arange(1))
    state = actor.state()
    sequence_HA, mean_HA = state.arrays["sequence"][0], state.arrays["memory/mean"][0]
    assert np.array_equal(mean_HA[:2], sequence_HA[2:])
    assert not mean_HA[2:].any()


@pytest.mark.parametrize("propagation", ["ts1", "tsinf", "expectation"])
def test_many_models_plan_at_once_what_each_plans_alone(propagation):
    groups, obs_BO = [(0, 1), (6, 5), (3, 2)], starts(6)
    together = played(policy(groups=groups, propagation=propagation).episodes(6), obs_BO, 3)
    for model, members in enumerate(groups):
        alone = played(
            policy(members=members, propagation=propagation).episodes(2), obs_BO[2 * model : 2 * model + 2], 3
        )
        torch.testing.assert_close(together[:, 2 * model : 2 * model + 2], alone)
    with pytest.raises(ValueError, match="3 models"):
        policy(groups=groups).episodes(4)


@pytest.mark.parametrize(
    "planner",
    [
        CemPlanner(horizon=25, candidates=100, rounds=3),
        IcemPlanner(horizon=25, candidates=40, rounds=3),
        MppiPlanner(horizon=25, candidates=200, sigma=1.0, smoothing=0.7, temperature=0.05),
    ],
    ids=lambda planner: planner.kind,
)
def test_planning_with_the_true_law_balances_the_pole_from_wide_starts(planner):
    """Of 200 at most; a start at the edge costs a little, and falling costs most of it."""
    task = ContinuousCartPole(start_spread=0.2)
    planning = Planning(planner=planner, particles=1, replan_every=4)
    actor = PlanningPolicy(LawModel(task), task, planning, members=(0,), seed=0).episodes(3)
    envs = [task.make_env() for _ in range(3)]
    obs_BO = np.stack([env.reset(seed=number)[0] for number, env in enumerate(envs)])
    earned, over = np.zeros(3), np.zeros(3, bool)
    for _ in range(200):
        live = np.flatnonzero(~over)
        if not len(live):
            break
        action_BA = actor.act(torch.from_numpy(obs_BO[live]), torch.from_numpy(live)).numpy()
        for place, action_A in zip(live, action_BA, strict=True):
            obs_BO[place], reward, terminated, truncated, _ = envs[place].step(action_A)
            earned[place] += reward
            over[place] = terminated or truncated
    assert earned.min() > 175.0, earned.tolist()
    assert earned.mean() > 190.0, earned.tolist()
