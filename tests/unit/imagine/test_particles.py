from __future__ import annotations

import math

import pytest
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.protocols import Prediction
from proxygap.imagine.particles import ParticleReturns
from proxygap.imagine.planners.settings import Planning
from proxygap.testing.dynamics import LinearDynamics


class Track:
    """Pays the first coordinate reached minus a squared action, and ends above ``limit``."""

    name, obs_size, action_size, max_episode_steps = "track", 2, 1, 10

    def __init__(self, limit=math.inf, known_reward=True, known_termination=True):
        self.limit, self.known_reward, self.known_termination = limit, known_reward, known_termination

    def reward(self, obs_BO, action_BA, next_obs_BO):
        return next_obs_BO[:, 0] - action_BA[:, 0].square()

    def terminated(self, obs_BO, action_BA, next_obs_BO):
        return next_obs_BO[:, 0] > self.limit


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def model(members=3, *, std=0.0, targets=2, terminal_at=None, seed=3):
    """Linear members that differ by their offsets."""
    weight_IT = 0.3 * torch.randn(3, targets, generator=draw(seed))
    return LinearDynamics(
        weight_IT, torch.randn(members, targets, generator=draw(seed + 1)), std=std, terminal_at=terminal_at
    )


def returns(stepper, task, obs_BO, *, generator=None, planning=None, **options):
    if not {"members", "groups"} & options.keys():
        options["members"] = stepper.elites
    return ParticleReturns(
        stepper, task, obs_BO, planning=planning or Planning(particles=4), generator=generator or draw(), **options
    )


def sequences(problems=2, candidates=5, horizon=4, seed=8):
    return 2.0 * torch.rand(problems, candidates, horizon, 1, generator=draw(seed)) - 1.0


def starts(problems=2, seed=5):
    return torch.randn(problems, 2, generator=draw(seed))


def by_hand(stepper, task, start_O, sequence_HA, member, discount=1.0):
    """One particle of a model without noise, in the plainest words."""
    obs_O, total = start_O.clone(), 0.0
    for depth, action_A in enumerate(sequence_HA):
        change_T = stepper.predict_rows(torch.tensor([member]), obs_O[None], action_A[None]).target_mean[0]
        next_O = obs_O + change_T[:2]
        total += discount**depth * float(task.reward(obs_O[None], action_A[None], next_O[None])[0])
        if bool(task.terminated(obs_O[None], action_A[None], next_O[None])[0]):
            break
        obs_O = next_O
    return total


@pytest.mark.parametrize("limit", [math.inf, 1.0])
def test_a_particle_per_member_is_the_mean_over_members_rolled_by_hand(limit):
    """With as many particles as members, each candidate is rolled once by every member, and ends where it ends."""
    stepper, task, start_BO, sequence_BNHA = model(), Track(limit), starts(), sequences()
    found_BN = returns(stepper, task, start_BO, planning=Planning(particles=3), discount=0.9)(sequence_BNHA)
    for b in range(2):
        for n in range(5):
            totals = [by_hand(stepper, task, start_BO[b], sequence_BNHA[b, n], m, 0.9) for m in range(3)]
            assert float(found_BN[b, n]) == pytest.approx(sum(totals) / 3, abs=1e-5)


def test_noise_is_that_of_the_prediction_and_shared_by_all_problems():
    """After one step, the mean of very many particles is the mean; equal problems have equal luck."""
    stepper, start_BO = model(1, std=0.7), torch.zeros(2, 2)
    planning = Planning(particles=20_000)
    found_BN = returns(stepper, Track(), start_BO, planning=planning)(sequences(1, 2, 1).expand(2, -1, -1, -1))
    assert torch.equal(found_BN[0], found_BN[1])
    exact_N = torch.tensor([by_hand(stepper, Track(), start_BO[0], s, 0) for s in sequences(1, 2, 1)[0]])
    error_N = found_BN[0] - exact_N
    assert float(error_N.abs().max()) < 5 * 0.7 / math.sqrt(20_000)
    assert float(error_N.abs().min()) > 0.0


def test_a_generalized_gaussian_is_sampled_by_its_shape():
    class Heavy(LinearDynamics):
        def step_members(self, member_ids, obs_KBO, action_KBA, precision="float32"):
            plain = super().step_members(member_ids, obs_KBO, action_KBA, precision)
            return Prediction(plain.target_mean, plain.target_std, None, torch.full_like(plain.target_mean, 0.8))

    stepper = Heavy(torch.zeros(3, 2), torch.zeros(1, 2), std=0.5)
    candidates = torch.zeros(1, 40_000, 1, 1)
    noise = returns(stepper, Track(), torch.zeros(1, 2), planning=Planning(particles=1))(candidates)[0]
    kurtosis = float((noise**4).mean() / (noise**2).mean() ** 2)
    expected = math.gamma(5 / 0.8) * math.gamma(1 / 0.8) / math.gamma(3 / 0.8) ** 2
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)
    assert kurtosis == pytest.approx(expected, rel=0.2)


def test_expectation_rolls_the_mean_of_the_members_means():
    stepper, task, start_BO, sequence_BNHA = model(std=9.0), Track(2.0), starts(), sequences()
    averaged = LinearDynamics(stepper._weight_IT, stepper._offset_MT.mean(dim=0, keepdim=True))
    found_BN = returns(stepper, task, start_BO, planning=Planning(particles=7, propagation="expectation"))(
        sequence_BNHA
    )
    expected_BN = [[by_hand(averaged, task, start_BO[b], sequence_BNHA[b, n], 0) for n in range(5)] for b in range(2)]
    torch.testing.assert_close(found_BN, torch.tensor(expected_BN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("propagation", ["ts1", "tsinf", "expectation"])
@pytest.mark.parametrize("particles", [1, 4, 6])
def test_returns_do_not_depend_on_what_is_evaluated_beside_them(propagation, particles):
    """Three models of two members, five problems unevenly spread over them; each problem alone gives the same."""
    stepper, start_BO, sequence_BNHA = model(6, std=0.4), starts(5), sequences(5)
    planning = Planning(particles=particles, propagation=propagation)
    groups, group_B = [(0, 1), (2, 3), (5, 4)], torch.tensor([2, 0, 2, 2, 0])
    options = {"planning": planning, "groups": groups}
    together_BN = returns(stepper, Track(1.5), start_BO, group_B=group_B, **options)(sequence_BNHA)
    for b in range(5):
        alone_N = returns(stepper, Track(1.5), start_BO[b : b + 1], group_B=group_B[b : b + 1], **options)
        torch.testing.assert_close(together_BN[b : b + 1], alone_N(sequence_BNHA[b : b + 1]))
        only = {"planning": planning, "members": groups[group_B[b]]}
        torch.testing.assert_close(
            together_BN[b : b + 1], returns(stepper, Track(1.5), start_BO[b : b + 1], **only)(sequence_BNHA[b : b + 1])
        )


class Tally:
    """Members that add a power of ten to the first coordinate: a return tells who stepped, and how often."""

    def step_members(self, member_ids, obs_KBO, action_KBA, precision="float32"):
        change_KBO = torch.zeros_like(obs_KBO)
        change_KBO[..., 0] = torch.tensor([10.0**member for member in member_ids])[:, None]
        return Prediction(change_KBO, torch.zeros_like(change_KBO), None)


class Last(Track):
    """Pays the change of the first coordinate."""

    def reward(self, obs_BO, action_BA, next_obs_BO):
        return next_obs_BO[:, 0] - obs_BO[:, 0]


def stepped(propagation, particles, candidates=300, horizon=3, seed=0, members=(0, 1, 2)):
    """How often each member stepped for each candidate, (N, members)."""
    planning = Planning(particles=particles, propagation=propagation)
    evaluate = returns(Tally(), Last(), torch.zeros(1, 2), planning=planning, members=members, generator=draw(seed))
    total_N = (particles * evaluate(torch.zeros(1, candidates, horizon, 1))[0]).round().long()
    return torch.stack([total_N // 10**member % 10 for member in members], dim=1)


def test_a_particle_of_tsinf_keeps_its_member_and_members_share_particles_evenly():
    counts_NM = stepped("tsinf", 1)
    assert set(map(tuple, counts_NM.tolist())) == {(3, 0, 0), (0, 3, 0), (0, 0, 3)}
    assert counts_NM.sum(dim=0).tolist() == [300, 300, 300]
    assert stepped("tsinf", 3).unique().tolist() == [3]


def test_a_particle_of_ts1_meets_every_member_with_equal_probability():
    together = torch.cat([stepped("ts1", 2, seed=seed) for seed in range(20)])
    share_M = together.sum(dim=0) / together.sum()
    torch.testing.assert_close(share_M, torch.full((3,), 1 / 3), atol=0.01, rtol=0.0)
    alone = torch.cat([stepped("ts1", 1, 10, horizon=2, seed=seed) for seed in range(300)])
    twice = (alone == 2).any(dim=1).float().mean()
    assert float(twice) == pytest.approx(1 / 3, abs=0.1), "the next member does not depend on the last"
    assert stepped("ts1", 3, horizon=2).sum(dim=1).tolist() == [6] * 300


def test_the_choice_of_members_is_seeded():
    first, again, other = (stepped("ts1", 1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_is_earned_after_the_terminal_step():
    stepper = LinearDynamics(torch.zeros(3, 2), torch.tensor([[1.0, 0.0]]))
    found = returns(stepper, Track(2.5), torch.tensor([[0.0, 0.0], [2.0, 0.0], [-9.0, 0.0]]))(torch.zeros(3, 1, 5, 1))
    assert found[:, 0].tolist() == [1 + 2 + 3, 3, -8 - 7 - 6 - 5 - 4]


def test_learned_laws_are_used_where_the_task_has_none():
    stepper = model(3, targets=3, terminal_at=0.7)
    task, start_BO, sequence_BNHA = Track(known_reward=False, known_termination=False), starts(), sequences()

    class AsLearned(Track):
        def __init__(self, member):
            super().__init__()
            self.member = member

        def reward(self, obs_BO, action_BA, next_obs_BO):
            return stepper.predict_rows(torch.tensor([self.member]), obs_BO, action_BA).target_mean[:, 2]

        def terminated(self, obs_BO, action_BA, next_obs_BO):
            return next_obs_BO[:, 0] > 0.7

    found_BN = returns(stepper, task, start_BO, planning=Planning(particles=3))(sequence_BNHA)
    for b in range(2):
        totals = [by_hand(stepper, AsLearned(m), start_BO[b], sequence_BNHA[b, 0], m) for m in range(3)]
        assert float(found_BN[b, 0]) == pytest.approx(sum(totals) / 3, abs=1e-5)
    averaged = returns(stepper, task, start_BO, planning=Planning(propagation="expectation"))(sequence_BNHA)
    assert bool(averaged.isfinite().all())


@pytest.mark.parametrize(
    ("task", "what"), [(Track(known_reward=False), "reward"), (Track(known_termination=False), "termination")]
)
def test_a_law_that_nobody_knows_is_named(task, what):
    with pytest.raises(InvalidExperiment, match=what):
        returns(model(), task, starts())(sequences())


def test_a_particle_that_explodes_makes_its_candidate_nan_and_no_other():
    class Explosive(LinearDynamics):
        def step_members(self, member_ids, obs_KBO, action_KBA, precision="float32"):
            plain = super().step_members(member_ids, obs_KBO, action_KBA, precision)
            wild = torch.where(action_KBA > 0.9, torch.inf, plain.target_mean)
            return Prediction(torch.where(obs_KBO[..., :1] > 50.0, torch.nan, wild), plain.target_std, None)

    stepper = Explosive(torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [60.0, 0.0]]))
    sequence_BNHA = torch.zeros(1, 3, 3, 1)
    sequence_BNHA[0, 0, 1] = 1.0
    found = returns(stepper, Track(), torch.zeros(1, 2), planning=Planning(particles=2), members=(0,))(sequence_BNHA)
    assert found[0].isnan().tolist() == [True, False, False]
    assert returns(stepper, Track(), torch.zeros(1, 2), planning=Planning(particles=2))(sequence_BNHA).isnan().all()
    ended = returns(stepper, Track(limit=9.0), torch.zeros(1, 2), planning=Planning(particles=2))(sequence_BNHA[:, 1:])
    assert bool(ended.isfinite().all()), "what an ended particle would have become does not matter"


def test_inputs_stay_as_they_were_and_a_state_can_be_branched_from_twice():
    stepper, start_BO, sequence_BNHA = model(std=0.3), starts(), sequences()
    kept_start, kept_sequence = start_BO.clone(), sequence_BNHA.clone()
    first = returns(stepper, Track(), start_BO)(sequence_BNHA)
    second = returns(stepper, Track(), start_BO)(sequence_BNHA)
    assert torch.equal(first, second)
    assert torch.equal(start_BO, kept_start)
    assert torch.equal(sequence_BNHA, kept_sequence)


@pytest.mark.parametrize("options", [{"members": (0,), "groups": [(0,)]}, {"groups": [(0,), (1, 2)]}, {"groups": [()]}])
def test_models_that_cannot_share_a_call_are_refused(options):
    with pytest.raises(ValueError, match="members"):
        returns(model(), Track(), starts(), **options)
