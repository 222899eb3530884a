"""Model predictive path integral control for B problems at once (Williams et al. 2017), as PDDM has it.

PDDM: Nagabandi et al. 2019, 1909.11652, section 4.

Shape legend: B problems, N candidates, H horizon, A action size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from proxygap.base.protocols import Plan, PlanMemory
from proxygap.imagine.planners.elites import Returns, moved_on, ranked, where
from proxygap.imagine.planners.noise import smoothed, white

if TYPE_CHECKING:
    from proxygap.imagine.planners.settings import MppiPlanner


def init(settings: MppiPlanner, problems: int, action_size: int) -> PlanMemory:
    """Mean actions 0."""
    return PlanMemory({"mean": torch.zeros(problems, settings.horizon, action_size)})


def plan(
    settings: MppiPlanner, memory: PlanMemory, returns: Returns, generator: torch.Generator
) -> tuple[Plan, PlanMemory]:
    """Average all candidates, weighted by ``exp(return / temperature)``, round after round (PDDM, Eq. 3 and 4).

    The answer is the last mean, and its promise the mean of the returns with the same weights.
    """
    mean_BHA = memory.tensors["mean"]
    promise_B = mean_BHA.new_full((len(mean_BHA),), torch.nan)
    for _ in range(settings.rounds):
        noise_NHA = settings.sigma * white(settings.candidates, mean_BHA.shape[1], mean_BHA.shape[2], generator)
        noise_NHA = smoothed(noise_NHA, settings.smoothing).to(mean_BHA.device)
        candidate_BNHA = (mean_BHA[:, None] + noise_NHA).clamp_(-1.0, 1.0)
        return_BN = ranked(returns, candidate_BNHA)
        finite_BN = return_BN.isfinite()
        weight_BN = (return_BN / settings.temperature).softmax(dim=1)  # NaN where nothing is finite
        average_BHA = torch.einsum("bn,bnha->bha", weight_BN, candidate_BNHA)
        any_B = finite_BN.any(dim=1)
        mean_BHA = where(any_B, average_BHA, mean_BHA)
        promised_B = (weight_BN * torch.where(finite_BN, return_BN, 0.0)).sum(dim=1)
        promise_B = where(any_B, promised_B, promise_B)
    answer = Plan(mean_BHA[:, 0], mean_BHA, promise_B, settings.rounds * settings.candidates)
    return answer, PlanMemory({"mean": mean_BHA})


def later(memory: PlanMemory, steps: int) -> PlanMemory:
    """The mean without its first steps, its last action repeated."""
    return PlanMemory({"mean": moved_on(memory.tensors["mean"], steps, repeat=True)})
