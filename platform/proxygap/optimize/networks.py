"""The field's networks for soft actor-critic: plain MLPs, the two critics side by side in one batched product.

Shape legend: B batch, O observation size, A action size, I layer input, J layer output, 2 the twin critics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

LOG_STD_RANGE = (-20.0, 2.0)
"""Bounds of the actor's log standard deviation (the reference implementation of Haarnoja et al. 2018)."""


class TwinLayer(nn.Module):
    """Two linear layers on their own inputs, (2, B, I) -> (2, B, J), or on a shared input, (B, I) -> (2, B, J)."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)  # the default of torch.nn.Linear, which peers use
        self.weight = nn.Parameter(torch.empty(2, inputs, outputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(2, 1, outputs).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        return torch.baddbmm(self.bias, x.expand(2, *x.shape[-2:]), self.weight)


class TwinCritic(nn.Module):
    """Two independent state-action values with one call: (B, O), (B, A) -> (2, B)."""

    def __init__(self, obs_size: int, action_size: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_size + action_size, *hidden, 1]
        self.layers = nn.ModuleList(TwinLayer(i, j, generator) for i, j in pairwise(sizes))

    def forward(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """Both critics' values, shape (2, B)."""
        x = torch.cat((obs_BO, action_BA), dim=-1)
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        value: Tensor = self.layers[-1](x)
        return value.squeeze(-1)


class SquashedGaussianActor(nn.Module):
    """Gaussian through tanh: (B, O) -> mean and log standard deviation before the squashing, each (B, A)."""

    def __init__(self, obs_size: int, action_size: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_size, *hidden, 2 * action_size]
        self.layers = nn.ModuleList(linear(i, j, generator) for i, j in pairwise(sizes))

    def forward(self, obs_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and bounded log standard deviation."""
        x = obs_BO
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        mean_BA, log_std_BA = self.layers[-1](x).chunk(2, dim=-1)
        return mean_BA, log_std_BA.clamp(*LOG_STD_RANGE)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A `torch.nn.Linear` whose initial weights come from ``generator`` instead of the global one."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def squash(mean_BA: Tensor, log_std_BA: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterized action and its log-density (Haarnoja et al. 2018, 1812.05905, appendix C, Eq. 26).

    log(1 - tanh(u)^2) is computed as 2 (log 2 - u - softplus(-2u)), which does not underflow.

    Returns:
        Action in [-1, 1], shape (B, A), and log-density in nats, shape (B,).
    """
    raw_BA = mean_BA + log_std_BA.exp() * noise_BA
    normal_BA = -0.5 * noise_BA.square() - log_std_BA - 0.5 * math.log(2 * math.pi)
    jacobian_BA = 2 * (math.log(2) - raw_BA - functional.softplus(-2 * raw_BA))
    return raw_BA.tanh(), (normal_BA - jacobian_BA).sum(dim=-1)
