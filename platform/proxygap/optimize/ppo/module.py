"""PPO's networks as an RLModule: a Gaussian actor whose spread is a parameter of its own, and a separate critic.

Shape legend: B batch, O observation size, A action size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from proxygap.base.seeds import torch_generator
from proxygap.rllib import Columns, TorchRLModule

OBS_CLIP = 10.0
"""Normalized observations are kept within this many standard deviations of their mean."""


class PpoModule(TorchRLModule):
    """The field's PPO networks. ``model_config`` holds ``hidden``, ``initial_log_std``, ``normalize_obs`` and ``seed``.

    Raw actions are Gaussian and unbounded; what is executed is the raw action clamped to [-1, 1], and the policy
    gradient is that of the raw one (the field's convention, Stable-Baselines3's among them). The module is also a
    `Policy`. What observations are normalized with is in buffers, so it travels with the weights; the Learner owns the
    statistics behind it (RLlib rounds what travels to float32).
    """

    def setup(self) -> None:
        """Build the networks with weights that depend on the seed alone."""
        obs_size, action_size = self.observation_space.shape[0], self.action_space.shape[0]
        hidden, seed = self.model_config["hidden"], self.model_config["seed"]
        self.actor = tanh_network((obs_size, *hidden, action_size), 0.01, torch_generator(seed, "optimize/actor"))
        self.critic = tanh_network((obs_size, *hidden, 1), 1.0, torch_generator(seed, "optimize/critic"))
        self.log_std = nn.Parameter(torch.full((action_size,), float(self.model_config["initial_log_std"])))
        self.normalize_obs: bool = self.model_config["normalize_obs"]
        self.register_buffer("obs_mean", torch.zeros(obs_size))
        self.register_buffer("obs_scale", torch.ones(obs_size))

    @torch.no_grad()
    def act(self, obs_BO: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A): a sample drawn with ``generator``, or the deterministic one for None."""
        raw_BA = self.mean(obs_BO)
        if generator is not None:
            noise_BA = torch.randn(raw_BA.shape, generator=generator, device=raw_BA.device)
            raw_BA = raw_BA + self.log_std.exp() * noise_BA
        return raw_BA.clamp(-1.0, 1.0)

    @torch.no_grad()
    def value(self, obs_BO: Tensor) -> Tensor:
        """The critic's estimate of the discounted return from each state, shape (B,)."""
        return self.value_estimate(obs_BO)

    def mean(self, obs_BO: Tensor) -> Tensor:
        """Mean of the raw action, shape (B, A), differentiable."""
        mean_BA: Tensor = self.actor(self.normalized(obs_BO))
        return mean_BA

    def value_estimate(self, obs_BO: Tensor) -> Tensor:
        """`value`, differentiable."""
        value_B1: Tensor = self.critic(self.normalized(obs_BO))
        return value_B1.squeeze(-1)

    def normalized(self, obs_BO: Tensor) -> Tensor:
        """Observations as the networks see them; as they are unless ``normalize_obs``."""
        if not self.normalize_obs:
            return obs_BO
        seen_BO: Tensor = ((obs_BO - self.obs_mean) * self.obs_scale).clamp(-OBS_CLIP, OBS_CLIP)
        return seen_BO

    @torch.no_grad()
    def normalize_with(self, mean_O: Tensor, variance_O: Tensor) -> None:
        """Normalize with these statistics from now on."""
        self.obs_mean.copy_(mean_O)
        self.obs_scale.copy_((variance_O + 1e-8).rsqrt())

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What RLlib's own environment runners and connectors expect: inputs of a diagonal Gaussian."""
        mean_BA = self.mean(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat((mean_BA, self.log_std.expand_as(mean_BA)), dim=-1)}


class Moments:
    """Running mean and population variance of all observations seen, in float64.

    Attributes:
        count_mean_variance_3O: rows of count, mean and variance; one tensor, so that it is one array of a state.
    """

    def __init__(self, obs_size: int) -> None:
        self.count_mean_variance_3O = torch.zeros((3, obs_size), dtype=torch.float64)

    def add(self, obs_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Take note of more rows (Chan et al. 1979, Eq. 2.1); returns the mean and the variance of all so far."""
        count_O, mean_O, variance_O = self.count_mean_variance_3O
        new_BO = obs_BO.detach().cpu().double()
        new_count, total_O = float(len(new_BO)), count_O + len(new_BO)
        change_O = new_BO.mean(dim=0) - mean_O
        squares_O = variance_O * count_O + new_BO.var(dim=0, correction=0) * new_count
        squares_O = squares_O + change_O.square() * (count_O * new_count / total_O)
        moments = (total_O, mean_O + change_O * (new_count / total_O), squares_O / total_O)
        self.count_mean_variance_3O = torch.stack(moments)
        return moments[1], moments[2]


def tanh_network(sizes: Sequence[int], last_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with tanh between them; orthogonal weights of gain sqrt(2) (the last: ``last_gain``), zero biases.

    This initialization is what the field's implementations share (Huang et al. 2022, "The 37 implementation details
    of PPO", detail 2).
    """
    layers: list[nn.Module] = []
    pairs = list(pairwise(sizes))
    for index, (inputs, outputs) in enumerate(pairs):
        last = index == len(pairs) - 1
        layers += [_orthogonal(inputs, outputs, last_gain if last else math.sqrt(2), generator)]
        layers += [] if last else [nn.Tanh()]
    return nn.Sequential(*layers)


def _orthogonal(inputs: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def log_prob(raw_BA: Tensor, mean_BA: Tensor, log_std_A: Tensor) -> Tensor:
    """Log-density of raw actions under the diagonal Gaussian, in nats, shape (B,)."""
    z_BA = (raw_BA - mean_BA) * (-log_std_A).exp()
    constant = log_std_A.sum() + 0.5 * raw_BA.shape[-1] * math.log(2 * math.pi)
    return -0.5 * z_BA.square().sum(dim=-1) - constant


def entropy(log_std_A: Tensor) -> Tensor:
    """Entropy of the diagonal Gaussian in nats; the same at every observation."""
    return log_std_A.sum() + 0.5 * log_std_A.numel() * math.log(2 * math.pi * math.e)
