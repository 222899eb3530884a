"""The networks against torch's own layers and distributions."""

from __future__ import annotations

import math

import pytest
import torch

from proxygap.base.seeds import torch_generator
from proxygap.optimize.networks import LOG_STD_RANGE, SquashedGaussianActor, TwinCritic, squash


def test_twin_critic_is_two_separate_multilayer_perceptrons() -> None:
    critic = TwinCritic(3, 2, (5, 4), torch_generator(0, "critic"))
    obs, action = torch.randn(7, 3), torch.randn(7, 2)
    for twin in range(2):
        x = torch.cat((obs, action), dim=-1)
        for depth, layer in enumerate(critic.layers):
            x = x @ layer.weight[twin] + layer.bias[twin, 0]
            x = x.relu() if depth < 2 else x
        torch.testing.assert_close(critic(obs, action)[twin], x.squeeze(-1))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.rand(3)  # whatever was drawn globally before
    first = TwinCritic(3, 2, (8,), torch_generator(1, "critic")).state_dict()
    torch.rand(5)
    again = TwinCritic(3, 2, (8,), torch_generator(1, "critic")).state_dict()
    other = TwinCritic(3, 2, (8,), torch_generator(2, "critic")).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_initial_weights_are_bounded_as_torch_bounds_them() -> None:
    critic = TwinCritic(10, 6, (64,), torch_generator(0, "critic"))
    weight = critic.layers[0].weight
    assert weight.abs().max() <= 1 / math.sqrt(16)
    assert weight.std().item() == pytest.approx(2 / math.sqrt(16) / math.sqrt(12), rel=0.05)


def test_log_density_is_that_of_torchs_transformed_distribution() -> None:
    mean, log_std, noise = torch.randn(50, 3).double(), torch.randn(50, 3).double() * 0.3, torch.randn(50, 3).double()
    action, log_prob = squash(mean, log_std, noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    squashed = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform(cache_size=1))
    raw = mean + log_std.exp() * noise
    by_hand = normal.log_prob(raw) - torch.log1p(-(raw.tanh() ** 2))
    torch.testing.assert_close(log_prob, by_hand.sum(-1))
    torch.testing.assert_close(log_prob, squashed.log_prob(action).sum(-1), rtol=1e-6, atol=1e-6)


def test_log_density_stays_finite_where_tanh_saturates() -> None:
    mean = torch.full((1, 1), 30.0, requires_grad=True)
    action, log_prob = squash(mean, torch.zeros(1, 1), torch.zeros(1, 1))
    log_prob.sum().backward()
    assert action.item() == 1.0
    assert log_prob.isfinite().all()
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


def test_actor_bounds_its_log_standard_deviation() -> None:
    actor = SquashedGaussianActor(2, 1, (4,), torch_generator(0, "actor"))
    with torch.no_grad():
        actor.layers[-1].bias[1:] = 1e6
    _, log_std = actor(torch.zeros(3, 2))
    assert log_std.max().item() == LOG_STD_RANGE[1]


def test_critics_with_members_are_pairs() -> None:
    critic = TwinCritic(3, 2, (5,), torch_generator(0, "critic"), members=3, shaped=True)
    obs, action = torch.randn(7, 3), torch.randn(7, 2)
    value, shape = critic.heads(obs, action)
    assert shape is not None
    assert value.shape == shape.shape == (6, 7)
    assert bool((shape > 0).all())
    assert torch.equal(critic(obs, action), value)
    first, second = value[:3], value[3:]
    torch.testing.assert_close(critic.smaller(value), torch.minimum(first.mean(dim=0), second.mean(dim=0)))
    assert torch.equal(critic.paired(value), torch.minimum(first, second).repeat(2, 1))


def test_a_single_pair_has_one_smaller_value() -> None:
    critic, value = TwinCritic(3, 2, (5,), torch_generator(0, "critic")), torch.randn(2, 7)
    assert torch.equal(critic.smaller(value), critic.paired(value))
    assert torch.equal(critic.smaller(value), torch.minimum(*value))
