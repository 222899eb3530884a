"""What the planners share: returns that order candidates, elites and their moments, plans moved on in time.

Shape legend: B problems, N candidates, E elites, H horizon, A action size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Returns = Callable[[torch.Tensor], torch.Tensor]
"""Sequences (B, N, H, A) to predicted returns (B, N)."""


@dataclass(frozen=True, slots=True)
class Elites:
    """The best candidates of each problem, best first; ``finite_BE`` is False where there was nothing better left."""

    sequence_BEHA: torch.Tensor
    return_BE: torch.Tensor
    finite_BE: torch.Tensor

    @property
    def any_B(self) -> torch.Tensor:
        """Whether a problem has an elite at all."""
        return self.finite_BE[:, 0]

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (of the elites themselves, not of what they were drawn from), each (B, H, A).

        NaN for a problem without elites.
        """
        weight_BE11 = self.finite_BE[:, :, None, None].to(self.sequence_BEHA.dtype)
        count_B11 = weight_BE11.sum(dim=1)
        mean_BHA = (weight_BE11 * self.sequence_BEHA).sum(dim=1) / count_B11
        deviation_BEHA = self.sequence_BEHA - mean_BHA[:, None]
        return mean_BHA, (weight_BE11 * deviation_BEHA.square()).sum(dim=1) / count_B11

    def mean_return(self) -> torch.Tensor:
        """Mean return of the elites, shape (B,); NaN for a problem without."""
        total_B = torch.where(self.finite_BE, self.return_BE, 0.0).sum(dim=1)
        return total_B / self.finite_BE.sum(dim=1)


def ranked(returns: Returns, candidate_BNHA: torch.Tensor, *, barred_BN: torch.Tensor | None = None) -> torch.Tensor:
    """Returns that order candidates, (B, N): one that is not finite, or barred, is minus infinity."""
    return_BN = returns(candidate_BNHA).to(candidate_BNHA.device, torch.float32)
    allowed_BN = return_BN.isfinite() if barred_BN is None else return_BN.isfinite() & ~barred_BN
    return torch.where(allowed_BN, return_BN, -torch.inf)


def best(candidate_BNHA: torch.Tensor, return_BN: torch.Tensor, count: int) -> Elites:
    """The ``count`` best candidates of each problem (all, where there are fewer) by `ranked` returns."""
    top = return_BN.topk(min(count, return_BN.shape[1]), dim=1)
    problem_B1 = torch.arange(len(return_BN), device=return_BN.device)[:, None]
    return Elites(candidate_BNHA[problem_B1, top.indices], top.values, top.values.isfinite())


def where(choose_B: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Per problem, ``one`` where chosen, else ``other``; problems first in both."""
    return torch.where(choose_B.reshape(-1, *(1,) * (one.dim() - 1)), one, other)


def moved_on(sequence_HA: torch.Tensor, steps: int, *, repeat: bool) -> torch.Tensor:
    """Sequences (..., H, A) without their first steps; at the end the last action ``repeat``s, or actions are 0."""
    rest_HA = sequence_HA[..., steps:, :]
    missing = sequence_HA.shape[-2] - rest_HA.shape[-2]
    last_HA = sequence_HA[..., -1:, :] if repeat else torch.zeros_like(sequence_HA[..., -1:, :])
    return torch.cat([rest_HA, last_HA.expand(*last_HA.shape[:-2], missing, -1)], dim=-2)
