"""One imagined step: sample the target, then the task's own laws where they are known, the model's word where not.

Shape legend: B rows, O observation size, A action size, T predicted targets. Noise may lack leading axes of the
prediction, or have 1 there: rows that share it see the same luck (common random numbers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.protocols import Prediction, Task

_ATTEMPTS = 4
"""Proposals per gamma variate: each is accepted with probability 0.95 or more, so that all fail once in 10^5."""


@dataclass(frozen=True, slots=True)
class Step:
    """One imagined transition per row."""

    next_obs_BO: torch.Tensor
    proxy_reward_B: torch.Tensor
    terminated_B: torch.Tensor


def noise_like(prediction: Prediction, size: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Noise for ``size`` (..., T) targets, as `sampled` wants it for this kind of prediction, where the prediction is.

    Standard normals (..., T); for a generalized Gaussian the raw material of `_generalized`, one axis more.
    """
    where = generator.device
    if prediction.target_shape is None:
        return torch.randn(size, generator=generator, device=where).to(prediction.target_mean.device)
    normal = torch.randn((*size, _ATTEMPTS), generator=generator, device=where)
    uniform = torch.rand((*size, _ATTEMPTS + 1), generator=generator, device=where)
    return torch.cat([normal, uniform], dim=-1).to(prediction.target_mean.device)


def sampled(prediction: Prediction, noise: torch.Tensor) -> torch.Tensor:
    """Targets drawn from a prediction, with its mean and deviation whatever their shape is."""
    if prediction.target_shape is not None:
        noise = _generalized(noise, prediction.target_shape)
    return prediction.target_mean + prediction.target_std * noise


def _generalized(noise: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Generalized Gaussian variates of mean 0 and deviation 1 for shapes beta, from a fixed number of random numbers.

    ``sign alpha G^(1/beta)`` with G ~ Gamma(1/beta) (Nadarajah 2005), and G ~ Gamma(1 + 1/beta) U^beta, so that the
    power and the sign leave a uniform number in (-1, 1) alone. The gamma variate is the first accepted proposal of
    Marsaglia and Tsang 2000; ``alpha = sqrt(Gamma(1/beta) / Gamma(3/beta))`` makes the variance 1.
    """
    normal, proposal, uniform = noise[..., :_ATTEMPTS], noise[..., _ATTEMPTS:-1], noise[..., -1]
    inverse = shape.reciprocal()
    d = (inverse + 2.0 / 3.0)[..., None]
    cube = (1.0 + normal / (9.0 * d).sqrt()).pow(3)
    bound = 0.5 * normal.square() + d * (1.0 - cube + cube.clamp(min=1e-30).log())
    accepted = (cube > 0.0) & (proposal.log() < bound)
    first = accepted.to(torch.uint8).argmax(dim=-1, keepdim=True)
    gamma = (d * cube.clamp(min=1e-30)).gather(-1, first.expand(*cube.shape[:-1], 1))[..., 0]
    scale = (0.5 * (torch.lgamma(inverse) - torch.lgamma(3.0 * inverse))).exp()
    return (2.0 * uniform - 1.0) * gamma.pow(inverse) * scale


def advanced(
    target_BT: torch.Tensor,
    termination_logit_B: torch.Tensor | None,
    task: Task,
    obs_BO: torch.Tensor,
    action_BA: torch.Tensor,
) -> Step:
    """The transition that a sampled target makes.

    Raises:
        InvalidExperiment: neither task nor model tells when an episode ends, or what a step pays.
    """
    obs_size = obs_BO.shape[-1]
    next_obs_BO = obs_BO + target_BT[:, :obs_size]
    if task.known_reward:
        proxy_reward_B = task.reward(obs_BO, action_BA, next_obs_BO)
    elif target_BT.shape[-1] > obs_size:
        proxy_reward_B = target_BT[:, obs_size]
    else:
        raise _unknown("reward", task)
    if task.known_termination:
        terminated_B = task.terminated(obs_BO, action_BA, next_obs_BO)
    elif termination_logit_B is not None:
        terminated_B = termination_logit_B > 0
    else:
        raise _unknown("termination", task)
    return Step(next_obs_BO, proxy_reward_B, terminated_B)


def _unknown(what: str, task: Task) -> InvalidExperiment:
    return InvalidExperiment(
        f"neither the task nor the dynamics model knows its {what}",
        field="task",
        value=task.name,
        remedy=f"build the model with learn_{what}=True",
    )
