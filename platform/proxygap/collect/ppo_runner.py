"""RLlib's environment runner for on-policy learning: whole rollouts as columns, with all that PPO needs to learn.

Rows lie environment after environment, each one's in time. Shape legend: E environments of this runner, T steps,
B = E x T rows, O observation size, A action size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from proxygap.base.records import Bool, Float32, Transitions
from proxygap.collect.env_runner import StepRunner


@dataclass(frozen=True, slots=True)
class Rollout:
    """Transitions of the newest policy, and what it thought when it acted.

    ``transitions.action_BA`` is what was executed; ``raw_action_BA`` is the draw before it was clamped to [-1, 1],
    and ``log_prob_B`` (nats) belongs to that. ``last_B`` marks rows whose successor is not the next row: the episode
    was over, or the rollout was. ``next_value_B`` is there the critic's value of ``next_obs_BO``, and 0 elsewhere and
    where the episode terminated.
    """

    transitions: Transitions
    raw_action_BA: Float32
    log_prob_B: Float32
    value_B: Float32
    next_value_B: Float32
    last_B: Bool

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.last_B)

    def __getitem__(self, rows: slice) -> Rollout:
        """Some of the rows. A cut must not separate a row from its successor: cut whole environments."""
        return Rollout(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Rollout]) -> Rollout:
        """All rows of all parts, in order. Raises ValueError for no parts."""
        names = [field.name for field in fields(Rollout)][1:]
        return Rollout(
            Transitions.concatenate([part.transitions for part in parts]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        )

    def columns(self, proxy_reward_B: Float32) -> dict[str, np.ndarray[Any, Any]]:
        """What a PPO Learner takes, with the reward that is to be optimized."""
        return {
            "obs": self.transitions.obs_BO,
            "action": self.raw_action_BA,
            "log_prob": self.log_prob_B,
            "value": self.value_B,
            "next_value": self.next_value_B,
            "proxy_reward": proxy_reward_B,
            "terminated": self.transitions.terminated_B,
            "last": self.last_B,
        }


class PpoRunner(StepRunner):
    """A `StepRunner` that returns rollouts of a PPO module; environments, noise and state are the same."""

    @torch.inference_mode()
    def sample(self, *, steps: int = 1, **_: Any) -> Rollout:  # type: ignore[override]  # RLlib leaves the type open
        """Take ``steps`` steps in each environment.

        Args:
            steps: T, per environment.

        Returns:
            ``steps * E`` rows, environment after environment.

        Raises:
            NonFiniteValue: the policy or an environment gave NaN or infinity.
        """
        noise_TEA = torch.randn((steps, len(self.envs), self.task.action_size), generator=self.exploration)
        offset_TEA = noise_TEA * self.module.log_std.exp()
        rows: list[list[Transitions]] = [[] for _ in self.envs]
        raw_TEA = torch.empty_like(offset_TEA)
        for step in range(steps):
            raw_EA = torch.add(self.module.mean(self._obs()), offset_TEA[step], out=raw_TEA[step])
            for index, action_A in enumerate(raw_EA.clamp(-1.0, 1.0).numpy()):
                rows[index].append(self._numbered(index, self.envs[index].step(action_A)))
        transitions = Transitions.concatenate([row for each in rows for row in each])
        return self._judged_by_critic(transitions, _flat(raw_TEA), _flat(self._log_prob(noise_TEA)))

    def _obs(self) -> torch.Tensor:
        return torch.from_numpy(np.stack([env.obs for env in self.envs]))

    def _log_prob(self, noise_TEA: torch.Tensor) -> torch.Tensor:
        """Log-density of the raw action: the noise is its distance from the mean in standard deviations."""
        constant = self.module.log_std.sum() + 0.5 * noise_TEA.shape[-1] * math.log(2 * math.pi)
        log_prob_TE: torch.Tensor = -0.5 * noise_TEA.square().sum(dim=-1) - constant
        return log_prob_TE

    def _judged_by_critic(self, transitions: Transitions, raw_BA: Float32, log_prob_B: Float32) -> Rollout:
        steps = len(transitions) // len(self.envs)
        last_B = transitions.terminated_B | transitions.truncated_B
        last_B[steps - 1 :: steps] = True
        next_value_B = np.zeros(len(transitions), np.float32)
        open_B = last_B & ~transitions.terminated_B
        next_value_B[open_B] = self.module.value(torch.from_numpy(transitions.next_obs_BO[open_B])).numpy()
        value_B = self.module.value(torch.from_numpy(transitions.obs_BO)).numpy()
        return Rollout(transitions, raw_BA, log_prob_B, value_B, next_value_B, last_B)


def _flat(tensor_TE: torch.Tensor) -> Float32:
    """(T, E, ...) to (E x T, ...), environment after environment."""
    flat: Float32 = tensor_TE.transpose(0, 1).reshape(-1, *tensor_TE.shape[2:]).numpy()
    return flat
