"""The field's networks for soft actor-critic: plain MLPs, the two critics side by side in one batched product.

Shape legend: B batch, O observation size, A action size, I layer input, J layer output, M networks of each of the two
critics, K = 2 M (the first critic's first).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxygap.optimize.td_error import shape_of

LOG_STD_RANGE = (-20.0, 2.0)
"""Bounds of the actor's log standard deviation (the reference implementation of Haarnoja et al. 2018)."""


class TwinLayer(nn.Module):
    """K linear layers on their own inputs, (K, B, I) -> (K, B, J), or on a shared input, (B, I) -> (K, B, J)."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator, networks: int = 2) -> None:
        super().__init__()
        self.networks = networks
        bound = 1 / math.sqrt(inputs)  # the default of torch.nn.Linear, which peers use
        self.weight = nn.Parameter(torch.empty(networks, inputs, outputs).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(networks, 1, outputs).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers."""
        return torch.baddbmm(self.bias, x.expand(self.networks, *x.shape[-2:]), self.weight)


class TwinCritic(nn.Module):
    """Two independent state-action values with one call: (B, O), (B, A) -> (K, B), K = 2 unless critics have members.

    Args:
        obs_size: O.
        action_size: A.
        hidden: widths of the hidden layers.
        generator: draws the initial weights.
        members: networks of each critic.
        shaped: whether each network also tells the shape of its error (`heads`).
    """

    def __init__(
        self,
        obs_size: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        *,
        members: int = 1,
        shaped: bool = False,
    ) -> None:
        super().__init__()
        self.members, self.shaped = members, shaped
        sizes = [obs_size + action_size, *hidden, 1 + shaped]
        self.layers = nn.ModuleList(TwinLayer(i, j, generator, 2 * members) for i, j in pairwise(sizes))

    def forward(self, obs_BO: Tensor, action_BA: Tensor) -> Tensor:
        """All networks' values, shape (K, B)."""
        return self.heads(obs_BO, action_BA)[0]

    def heads(self, obs_BO: Tensor, action_BA: Tensor) -> tuple[Tensor, Tensor | None]:
        """All networks' values, and the shapes of their errors where they tell them; each (K, B)."""
        x = torch.cat((obs_BO, action_BA), dim=-1)
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        if not self.shaped:
            return out.squeeze(-1), None
        value_KB, raw_KB = out.unbind(-1)
        return value_KB, shape_of(raw_KB)

    def smaller(self, value_KB: Tensor) -> Tensor:
        """The smaller of the two critics' values, each the mean of its members, (B,)."""
        if self.members == 1:
            return value_KB.amin(dim=0)
        return value_KB.reshape(2, self.members, -1).mean(dim=1).amin(dim=0)

    def paired(self, value_KB: Tensor) -> Tensor:
        """For each network the smaller value of its pair, one of each critic: (K, B), or (B,) for a single pair."""
        if self.members == 1:
            return value_KB.amin(dim=0)
        return value_KB.reshape(2, self.members, -1).amin(dim=0).repeat(2, 1)


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
