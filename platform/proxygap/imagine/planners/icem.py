"""The sample-efficient cross-entropy method for B problems at once (iCEM; Pinneri et al. 2020, algorithm 1).

Shape legend: B problems, N candidates, E elites, K kept elites, H horizon, A action size.

Candidates are colored noise around the mean, clipped to [-1, 1]; rounds shrink; the best elites of a round stand for
election again in the next one, and, moved on, in the next plan; the last round also tries the mean; the best sequence
of the last round is the answer. Elites that stand again are evaluated again, because returns are random here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from proxygap.base.protocols import Plan, PlanMemory
from proxygap.imagine.planners.elites import Elites, Returns, best, moved_on, ranked, where
from proxygap.imagine.planners.noise import colored

if TYPE_CHECKING:
    from proxygap.imagine.planners.settings import IcemPlanner


def init(settings: IcemPlanner, problems: int, action_size: int) -> PlanMemory:
    """Mean actions 0 and no elites kept."""
    kept = settings.kept_count
    return PlanMemory(
        {
            "mean": torch.zeros(problems, settings.horizon, action_size),
            "kept": torch.zeros(problems, kept, settings.horizon, action_size),
            "stands": torch.zeros(problems, kept, dtype=torch.bool),
        }
    )


def plan(
    settings: IcemPlanner, memory: PlanMemory, returns: Returns, generator: torch.Generator
) -> tuple[Plan, PlanMemory]:
    """Refit to the elites, round after round; the best sequence of the last round, and its return, are the answer."""
    mean_BHA, kept_BKHA, stands_BK = (memory.tensors[name] for name in ("mean", "kept", "stands"))
    std_BHA = torch.full_like(mean_BHA, settings.initial_std)
    answer_BHA, promise_B = mean_BHA, mean_BHA.new_full((len(mean_BHA),), torch.nan)
    evaluated = 0
    for index in range(settings.rounds):
        fresh_BNHA = _fresh(settings, settings.count(index), mean_BHA, std_BHA, generator)
        last = [mean_BHA[:, None]] if index == settings.rounds - 1 else []
        candidate_BNHA = torch.cat([kept_BKHA, fresh_BNHA, *last], dim=1)
        evaluated += candidate_BNHA.shape[1]
        barred_BN = torch.zeros(candidate_BNHA.shape[:2], dtype=torch.bool, device=mean_BHA.device)
        barred_BN[:, : settings.kept_count] = ~stands_BK
        elites = best(candidate_BNHA, ranked(returns, candidate_BNHA, barred_BN=barred_BN), settings.elites)
        mean_BHA, std_BHA = _refitted(settings, elites, mean_BHA, std_BHA)
        kept_BKHA = where(elites.any_B, elites.sequence_BEHA[:, : settings.kept_count], kept_BKHA)
        stands_BK = where(elites.any_B, elites.finite_BE[:, : settings.kept_count], stands_BK)
        answer_BHA = where(elites.any_B, elites.sequence_BEHA[:, 0], answer_BHA)
        promise_B = where(elites.any_B, elites.return_BE[:, 0], promise_B)
    after = PlanMemory({"mean": mean_BHA, "kept": kept_BKHA, "stands": stands_BK})
    return Plan(answer_BHA[:, 0], answer_BHA, promise_B, evaluated), after


def _fresh(
    settings: IcemPlanner, count: int, mean_BHA: torch.Tensor, std_BHA: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Sequences (B, count, H, A) around the means; all problems share the noise."""
    noise_NHA = colored(count, mean_BHA.shape[1], mean_BHA.shape[2], settings.noise_color, generator)
    return torch.addcmul(mean_BHA[:, None], std_BHA[:, None], noise_NHA.to(mean_BHA.device)).clamp_(-1.0, 1.0)


def _refitted(
    settings: IcemPlanner, elites: Elites, mean_BHA: torch.Tensor, std_BHA: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation after a round; those of before where a problem has no elites."""
    elite_mean_BHA, elite_variance_BHA = elites.moments()
    keep = settings.momentum
    return (
        where(elites.any_B, keep * mean_BHA + (1.0 - keep) * elite_mean_BHA, mean_BHA),
        where(elites.any_B, keep * std_BHA + (1.0 - keep) * elite_variance_BHA.sqrt(), std_BHA),
    )


def later(memory: PlanMemory, steps: int) -> PlanMemory:
    """Mean and kept elites without their first steps, their last action repeated.

    The released code draws the last action of a kept elite anew; here a memory moves on without chance.
    """
    moved = {name: moved_on(memory.tensors[name], steps, repeat=True) for name in ("mean", "kept")}
    return PlanMemory({**memory.tensors, **moved})
