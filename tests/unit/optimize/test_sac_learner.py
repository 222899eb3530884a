"""The lean Learner against a slow second implementation, and its complete state. No Ray cluster is started."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from proxygap.base.errors import NonFiniteValue
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.optimize.settings import SacSettings
from proxygap.optimize.td_error import GeneralizedGaussianTdError, negative_log_likelihood
from proxygap.rllib import DEFAULT_MODULE_ID, RLModuleSpec, SACConfig, learner_batch

O, A, B = 3, 2, 16  # noqa: E741


class Data:
    """What a LearnerGroup hands to a Learner."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def solve_refs(self) -> None:
        """Nothing is remote here."""


def learner(settings: SacSettings, seed: int = 0) -> SacLearner:
    spaces = {
        "observation_space": gym.spaces.Box(-np.inf, np.inf, (O,), np.float32),
        "action_space": gym.spaces.Box(-1.0, 1.0, (A,), np.float32),
    }
    spec = RLModuleSpec(module_class=SacModule, **spaces, model_config=settings.module(seed))
    config = SACConfig().environment(**spaces).rl_module(rl_module_spec=spec)
    config.learners(learner_config_dict={"settings": settings, "seed": seed})
    found = config.copy()
    made = SacLearner(
        config=found, module_spec=found.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: tuple(spaces.values())})
    )
    made.build()
    return made


def columns(updates: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    rows = updates * B
    return {
        "obs": rng.standard_normal((rows, O), dtype=np.float32),
        "action": rng.uniform(-1, 1, (rows, A)).astype(np.float32),
        "next_obs": rng.standard_normal((rows, O), dtype=np.float32),
        "proxy_reward": rng.standard_normal(rows, dtype=np.float32),
        "terminated": rng.random(rows) < 0.2,
    }


def update(subject: SacLearner, data: dict[str, np.ndarray[Any, Any]]) -> dict[str, float]:
    return subject.update(training_data=Data(learner_batch(data, len(data["proxy_reward"]))))


SETTINGS = SacSettings(hidden=(8, 8), batch_size=B, learning_rate=1e-2, target_rate=0.1)


def slow_update(networks: SacModule, data: dict[str, torch.Tensor], noise: torch.Tensor, adams: dict[str, Any]) -> None:
    """Algorithm 1 of Haarnoja et al. 2018 written out with autograd over everything and plain Adam."""
    alpha = networks.log_temperature.exp().detach()
    with torch.no_grad():
        next_action, next_log_prob = networks.sample(data["next_obs"], noise[0])
        q1, q2 = networks.targets(data["next_obs"], next_action)
        alive = 1.0 - data["terminated"].float()
        target = data["proxy_reward"] + 0.99 * alive * (torch.minimum(q1, q2) - alpha * next_log_prob)
    q1, q2 = networks.critics(data["obs"], data["action"])
    critic_loss = 0.5 * torch.nn.functional.mse_loss(q1, target) + 0.5 * torch.nn.functional.mse_loss(q2, target)
    step(adams["critics"], critic_loss)
    action, log_prob = networks.sample(data["obs"], noise[1])
    q1, q2 = networks.critics(data["obs"], action)
    step(adams["actor"], (alpha * log_prob - torch.minimum(q1, q2)).mean())
    step(adams["temperature"], -(networks.log_temperature * (log_prob.detach() + -float(A)).mean()))
    with torch.no_grad():
        for target_param, param in zip(networks.targets.parameters(), networks.critics.parameters(), strict=True):
            target_param.copy_(0.9 * target_param + 0.1 * param)


def step(adam: torch.optim.Adam, loss: torch.Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    adam.step()


def test_three_updates_equal_the_slow_implementation() -> None:
    fast, data = learner(SETTINGS), columns(3)
    slow = copy.deepcopy(fast.networks)
    adams = {
        "critics": torch.optim.Adam(slow.critics.parameters(), lr=1e-2),
        "actor": torch.optim.Adam(slow.actor.parameters(), lr=1e-2),
        "temperature": torch.optim.Adam([slow.log_temperature], lr=1e-2),
    }
    noise = torch.Generator().manual_seed(0)
    noise.set_state(fast.noise.get_state())
    drawn = torch.randn((3, 2, B, A), generator=noise)
    for index in range(3):
        rows = {name: torch.from_numpy(column[index * B : (index + 1) * B]) for name, column in data.items()}
        slow_update(slow, rows, drawn[index], adams)
    update(fast, data)
    for name, tensor in slow.state_dict().items():
        torch.testing.assert_close(fast.networks.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_terminal_transitions_do_not_bootstrap() -> None:
    settings = SETTINGS.model_copy()
    subject, data = learner(settings), columns(400)
    data["terminated"][:] = True
    data["proxy_reward"][:] = 2.5
    assert update(subject, data)["mean_value"] < 3.0
    obs, action = torch.from_numpy(data["obs"][:B]), torch.from_numpy(data["action"][:B])
    assert subject.networks.critics(obs, action).mean().item() == pytest.approx(2.5, abs=0.2)


def test_temperature_follows_the_entropy_target() -> None:
    low, high = (learner(SacSettings(hidden=(8,), batch_size=B, target_entropy=t)) for t in (-50.0, 50.0))
    for subject in (low, high):
        update(subject, columns(20))
    assert low.networks.log_temperature.item() < 0 < high.networks.log_temperature.item()


def test_state_continues_bit_for_bit() -> None:
    first, data = learner(SETTINGS), columns(4)
    update(first, data)
    state = first.part_state()
    update(first, columns(4, seed=1))
    second = learner(SETTINGS, seed=9)
    second.load_part_state(state)
    update(second, columns(4, seed=1))
    one, other = first.part_state().arrays, second.part_state().arrays
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_state_is_a_copy() -> None:
    subject = learner(SETTINGS)
    update(subject, columns(1))
    state = subject.part_state()
    before = {name: array.copy() for name, array in state.arrays.items()}
    update(subject, columns(2))
    assert all(np.array_equal(before[name], state.arrays[name]) for name in before)


def test_not_a_number_is_refused() -> None:
    subject, data = learner(SETTINGS), columns(1)
    data["proxy_reward"][3] = math.nan
    with pytest.raises(NonFiniteValue, match="learning_rate"):
        update(subject, data)


def test_policy_acts_deterministically_without_a_generator_and_repeatably_with_one() -> None:
    policy, obs = learner(SETTINGS).networks, torch.randn(5, O)
    assert torch.equal(policy.act(obs), policy.act(obs))
    draws = [policy.act(obs, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert policy.value(obs).shape == (5,)


SHAPED = SETTINGS.model_copy(update={"critic_loss": GeneralizedGaussianTdError(members=2, least_effective_batch=4)})


def test_a_shaped_update_of_the_critics_equals_the_slow_implementation() -> None:
    subject, data = learner(SHAPED), columns(1)
    slow, noise = copy.deepcopy(subject.networks), torch.Generator().manual_seed(0)
    noise.set_state(subject.noise.get_state())
    drawn = torch.randn((1, 2, B, A), generator=noise)[0]
    rows = {name: torch.from_numpy(column) for name, column in data.items()}
    with torch.no_grad():
        next_action, next_log_prob = slow.sample(rows["next_obs"], drawn[0])
        q = slow.targets(rows["next_obs"], next_action)  # first critic's two members, then the second's
        pairs = [torch.minimum(q[0], q[2]), torch.minimum(q[1], q[3])]
        alive, alpha = 1.0 - rows["terminated"].float(), slow.log_temperature.exp()
        targets = [rows["proxy_reward"] + 0.99 * alive * (pair - alpha * next_log_prob) for pair in pairs]
    value, shape = slow.critics.heads(rows["obs"], rows["action"])
    loss = torch.zeros(())
    for network in range(4):
        error = value[network] - targets[network % 2]
        weight = (shape[network] / shape[network].sum()).detach()
        loss = loss + (weight * negative_log_likelihood(error, shape[network])).sum()
    agreed = SHAPED.critic_loss.agreement_weights(value - torch.stack(targets).repeat(2, 1))
    loss = loss + 0.1 * (agreed * (value - torch.stack(targets).repeat(2, 1)).abs()).sum()
    step(torch.optim.Adam(slow.critics.parameters(), lr=1e-2), loss)
    told = update(subject, data)
    assert told["critic_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert told["td_shape"] == pytest.approx(shape.mean().item(), rel=1e-4)
    assert 0.0 <= told["td_coverage_90"] <= 1.0
    for name, tensor in slow.critics.state_dict().items():
        torch.testing.assert_close(subject.networks.critics.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_shaped_critics_learn_a_value_and_continue_bit_for_bit() -> None:
    subject, data = learner(SHAPED), columns(300)
    data["terminated"][:] = True
    data["proxy_reward"][:] = 2.5 + 0.5 * data["proxy_reward"]
    update(subject, data)
    obs, action = torch.from_numpy(data["obs"][:B]), torch.from_numpy(data["action"][:B])
    assert subject.networks.critics(obs, action).mean().item() == pytest.approx(2.5, abs=0.3)
    assert subject.networks.value(obs).shape == (B,)
    resumed = learner(SHAPED, seed=9)
    resumed.load_part_state(subject.part_state())
    for one in (subject, resumed):
        update(one, columns(2, seed=1))
    one, other = subject.part_state().arrays, resumed.part_state().arrays
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_plain_learner_tells_nothing_of_shapes() -> None:
    assert not any(name.startswith("td_") for name in update(learner(SETTINGS), columns(1)))
