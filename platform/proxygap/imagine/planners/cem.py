"""The cross-entropy method for B problems at once (PETS; Chua et al. 2018, algorithm 1).

Shape legend: B problems, N candidates, H horizon, A action size.

As in PETS's released code: candidates come from a normal cut at two deviations, whose deviation is at most half of the
mean's distance from the nearer bound, so that every candidate lies in [-1, 1] and none is clipped; mean and variance
are refitted to the elites with momentum; the next plan starts from this mean, moved on, and from the first variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from proxygap.base.protocols import Plan, PlanMemory
from proxygap.imagine.planners.elites import Returns, best, moved_on, ranked, where
from proxygap.imagine.planners.noise import TRUNCATION, truncated

if TYPE_CHECKING:
    from proxygap.imagine.planners.settings import CemPlanner


def init(settings: CemPlanner, problems: int, action_size: int) -> PlanMemory:
    """Mean actions 0."""
    return PlanMemory({"mean": torch.zeros(problems, settings.horizon, action_size)})


def plan(
    settings: CemPlanner, memory: PlanMemory, returns: Returns, generator: torch.Generator
) -> tuple[Plan, PlanMemory]:
    """Refit to the elites, round after round.

    The answer is the mean, which promises what the last elites returned on average, or the best of all rounds.
    """
    mean_BHA = memory.tensors["mean"]
    variance_BHA = torch.full_like(mean_BHA, settings.initial_std**2)
    promise_B = mean_BHA.new_full((len(mean_BHA),), torch.nan)
    best_BHA, best_B = mean_BHA, torch.full_like(promise_B, -torch.inf)
    for _ in range(settings.rounds):
        candidate_BNHA = _candidates(settings, mean_BHA, variance_BHA, generator)
        return_BN = ranked(returns, candidate_BNHA)
        elites = best(candidate_BNHA, return_BN, settings.elite_count)
        elite_mean_BHA, elite_variance_BHA = elites.moments()
        keep = settings.momentum
        mean_BHA, variance_BHA = (
            where(elites.any_B, keep * old_BHA + (1.0 - keep) * new_BHA, old_BHA)
            for old_BHA, new_BHA in ((mean_BHA, elite_mean_BHA), (variance_BHA, elite_variance_BHA))
        )
        promise_B = where(elites.any_B, elites.mean_return(), promise_B)
        better_B = elites.return_BE[:, 0] > best_B
        best_BHA = where(better_B, elites.sequence_BEHA[:, 0], best_BHA)
        best_B = where(better_B, elites.return_BE[:, 0], best_B)
    if settings.answer == "best":
        sequence_BHA, promise_B = best_BHA, where(best_B.isfinite(), best_B, promise_B)
    else:
        sequence_BHA = mean_BHA
    answer = Plan(sequence_BHA[:, 0], sequence_BHA, promise_B, settings.rounds * settings.candidates)
    return answer, PlanMemory({"mean": mean_BHA})


def _candidates(
    settings: CemPlanner, mean_BHA: torch.Tensor, variance_BHA: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Sequences (B, N, H, A) around the means; all problems share the noise."""
    noise_NHA = truncated(settings.candidates, mean_BHA.shape[1], mean_BHA.shape[2], generator).to(mean_BHA.device)
    std_BHA = variance_BHA.sqrt().minimum((1.0 - mean_BHA.abs()) / TRUNCATION)
    return torch.addcmul(mean_BHA[:, None], std_BHA[:, None], noise_NHA)


def later(memory: PlanMemory, steps: int) -> PlanMemory:
    """The mean without its first steps, actions 0 at the end."""
    return PlanMemory({"mean": moved_on(memory.tensors["mean"], steps, repeat=False)})
