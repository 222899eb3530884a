"""Soft actor-critic as an RLModule: actor, twin critics, their targets and the temperature, all in one state.

RLlib keeps the temperature outside the module, and its checkpoints forget it; here it is a parameter like any other.
Shape legend: B batch, O observation size, A action size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from proxygap.base.seeds import torch_generator
from proxygap.optimize.networks import SquashedGaussianActor, TwinCritic, squash
from proxygap.rllib import Columns, InferenceOnlyAPI, TorchRLModule


class SacModule(TorchRLModule, InferenceOnlyAPI):
    """The field's SAC networks. ``model_config`` is `SacSettings.module`; ``members`` and ``shaped`` may be left out.

    The module is also a `Policy`: it acts in [-1, 1] and estimates values.
    """

    def setup(self) -> None:
        """Build the networks with weights that depend on the seed alone."""
        obs_size, action_size = self.observation_space.shape[0], self.action_space.shape[0]
        hidden, seed = self.model_config["hidden"], self.model_config["seed"]
        self.actor = SquashedGaussianActor(obs_size, action_size, hidden, torch_generator(seed, "optimize/actor"))
        kinds = {"members": self.model_config.get("members", 1), "shaped": self.model_config.get("shaped", False)}
        self.critics, self.targets = (
            TwinCritic(obs_size, action_size, hidden, torch_generator(seed, "optimize/critics"), **kinds)
            for _ in range(2)
        )
        self.targets.requires_grad_(requires_grad=False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(self.model_config["initial_temperature"])))

    def get_non_inference_attributes(self) -> list[str]:
        """What environment runners need not carry."""
        return ["critics", "targets", "log_temperature"]

    @torch.no_grad()
    def act(self, obs_BO: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], shape (B, A): a sample drawn with ``generator``, or the deterministic one for None."""
        raw_BA, log_std_BA = self.actor(obs_BO)
        if generator is not None:
            noise_BA = torch.randn(raw_BA.shape, generator=generator, device=raw_BA.device)
            raw_BA = raw_BA + log_std_BA.exp() * noise_BA
        action_BA: Tensor = raw_BA.tanh()
        return action_BA

    @torch.no_grad()
    def value(self, obs_BO: Tensor) -> Tensor:
        """The smaller critic's estimate of the discounted return of the deterministic policy, shape (B,)."""
        return self.critics.smaller(self.critics(obs_BO, self.act(obs_BO)))

    def sample(self, obs_BO: Tensor, noise_BA: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable action and its log-density for given standard normal noise."""
        mean_BA, log_std_BA = self.actor(obs_BO)
        return squash(mean_BA, log_std_BA, noise_BA)

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What RLlib's own environment runners and connectors expect: inputs of a squashed Gaussian."""
        mean_BA, log_std_BA = self.actor(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat((mean_BA, log_std_BA), dim=-1)}
