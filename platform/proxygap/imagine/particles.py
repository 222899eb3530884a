"""What a model promises for action sequences: particles rolled through members, one bunch per candidate.

Shape legend: B problems, N candidates, P particles, H horizon, O observation size, A action size, T predicted targets,
Q models (groups of members), E members of a model, K = Q * E, S seats (problems side by side in one model),
J rows of a member per seat, R = E * J >= N * P rows of a seat, F = Q * R * S rows in all.

State lies as (Q, E, J, S): each member's rows are one block, and nothing is moved between steps. Row ``n * P + p`` is
particle p of candidate n; members take rows in turn, and the last rows only fill the block up. Noise and dealing are
drawn for the R rows of one seat and shared by all problems and models (common random numbers), so that a problem's
returns do not depend on what is evaluated beside it, and two models are compared on the same luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from proxygap.base.protocols import Prediction, StepModel, Task
from proxygap.imagine.planners.settings import Planning
from proxygap.imagine.stepping import advanced, noise_like, sampled


@dataclass(frozen=True, slots=True)
class _Seating:
    """Which problem sits where: members of the models in use, the problem of each seat, the seat of each problem.

    A seat that no problem needs repeats the model's first one.
    """

    member_ids_K: tuple[int, ...]
    problem_QS: torch.Tensor
    seat_B: torch.Tensor

    @staticmethod
    def of(groups: Sequence[Sequence[int]], group_B: torch.Tensor) -> _Seating:
        count_G = torch.bincount(group_B, minlength=len(groups))
        used_Q, seats = count_G.nonzero()[:, 0], int(count_G.max())
        order_B = group_B.argsort(stable=True)
        start_G = count_G.cumsum(0) - count_G
        place_G = torch.full((len(groups),), -1).index_copy(0, used_Q, torch.arange(len(used_Q)))
        seat_B = torch.empty_like(order_B)
        seat_B[order_B] = torch.arange(len(group_B)) - start_G[group_B[order_B]]
        seat_B += seats * place_G[group_B]
        problem_QS = order_B[start_G[used_Q]][:, None].repeat(1, seats)
        problem_QS.view(-1)[seat_B] = torch.arange(len(group_B))
        return _Seating(tuple(member for q in used_Q.tolist() for member in groups[q]), problem_QS, seat_B)


class ParticleReturns:
    """Maps sequences (B, N, H, A) to predicted returns (B, N): the mean of P imagined rollouts each.

    Propagation is that of Chua et al. 2018, section 5: a particle keeps its member (tsinf), members are dealt anew at
    each step (ts1; as in their code each member gets equally many), or all members' means are averaged (expectation:
    one particle, no noise). A particle earns nothing after its terminal step. A particle whose prediction is not finite
    makes the return of its candidate NaN.

    Args:
        model: what steps.
        task: whose laws of reward and termination are used where they are known.
        obs_BO: where each problem starts; never written to.
        planning: particles, propagation and precision.
        generator: of dealing and noise; each call draws on.
        members: who steps, of one model: an ensemble imagines with its elites.
        groups: in place of ``members``, the members of each of several models, equally many.
        group_B: which of them plans for each problem.
        discount: of each further step's reward.

    Raises:
        InvalidExperiment: when called: neither task nor model knows reward or termination.
        ValueError: not one of ``members`` and ``groups`` is given, or groups are empty or differ in size.
    """

    def __init__(
        self,
        model: StepModel,
        task: Task,
        obs_BO: torch.Tensor,
        *,
        planning: Planning,
        generator: torch.Generator,
        members: Sequence[int] | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        group_B: torch.Tensor | None = None,
        discount: float = 1.0,
    ) -> None:
        groups = as_groups(members, groups)
        if group_B is None:
            group_B = torch.zeros(len(obs_BO), dtype=torch.int64)
        self._model, self._task, self._planning = model, task, planning
        self._generator, self._discount = generator, discount
        self._mean_of_members = planning.propagation == "expectation"
        self._members, self._particles = len(groups[0]), 1 if self._mean_of_members else planning.particles
        self._seating = _Seating.of(groups, group_B.cpu())
        self._obs_QSO = obs_BO.float()[self._seating.problem_QS.to(obs_BO.device)]

    def __call__(self, sequence_BNHA: torch.Tensor) -> torch.Tensor:
        """Predicted returns (B, N)."""
        with torch.no_grad():
            return self._returns(sequence_BNHA.to(self._obs_QSO.device))

    def _returns(self, sequence_BNHA: torch.Tensor) -> torch.Tensor:
        problems, candidates, horizon, size = sequence_BNHA.shape
        action_HCA = sequence_BNHA.permute(2, 0, 1, 3).reshape(horizon, problems * candidates, size)
        row_R = self._dealt(candidates)
        pick_F = self._picks(row_R, candidates)
        obs_FO = self._obs_QSO[:, None].expand(-1, len(row_R), -1, -1).flatten(0, 2)
        total_F, alive_F = obs_FO.new_zeros(len(obs_FO)), torch.ones_like(pick_F, dtype=torch.bool)
        one_O = obs_FO.new_ones(obs_FO.shape[1])
        for depth in range(horizon):
            if depth and self._planning.propagation == "ts1":
                old_R, row_R = row_R, self._dealt(candidates)
                pick_F = self._picks(row_R, candidates)
                moved_R = _inverse(old_R)[row_R]
                obs_FO, total_F, alive_F = (self._taken(tensor, moved_R) for tensor in (obs_FO, total_F, alive_F))
            action_FA = action_HCA[depth].index_select(0, pick_F)
            target_FT, logit_F = self._stepped(obs_FO, action_FA)
            step = advanced(target_FT, logit_F, self._task, obs_FO, action_FA)
            reward_F, obs_FO = step.proxy_reward_B, step.next_obs_BO
            finite_F = (obs_FO @ one_O + reward_F).isfinite()  # one pass: a sum is finite if all of it is
            paid_F = torch.where(finite_F, reward_F, torch.nan) * self._discount**depth
            total_F = torch.where(alive_F, total_F + paid_F, total_F)
            alive_F &= finite_F & ~step.terminated_B
        return self._mean_over_particles(total_F, row_R, candidates)

    def _stepped(self, obs_FO: torch.Tensor, action_FA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Sampled targets (F, T), and termination logits (F,) where they are learned."""
        if self._mean_of_members:
            return self._mean_stepped(obs_FO, action_FA)
        models, seats = self._seating.problem_QS.shape
        prediction = self._prediction(obs_FO, action_FA)
        targets = prediction.target_mean.shape[-1]
        rows = len(obs_FO) // (models * seats)
        shape = (models, rows, seats, targets)
        view = Prediction(
            prediction.target_mean.reshape(shape),
            prediction.target_std.reshape(shape),
            None,
            None if prediction.target_shape is None else prediction.target_shape.reshape(shape),
        )
        noise = noise_like(view, torch.Size((rows, 1, targets)), self._generator)
        logit = prediction.termination_logit
        return sampled(view, noise).flatten(0, 2), None if logit is None else logit.flatten()

    def _mean_stepped(self, obs_FO: torch.Tensor, action_FA: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mean of all members' means; an episode ends where they think so on average."""
        models = len(self._seating.problem_QS)
        prediction = self._prediction(
            *(
                tensor.view(models, 1, -1, tensor.shape[1]).expand(-1, self._members, -1, -1).flatten(0, 2)
                for tensor in (obs_FO, action_FA)
            )
        )
        mean_KXT, logit_KX = prediction.target_mean, prediction.termination_logit
        mean_FT = mean_KXT.view(models, self._members, *mean_KXT.shape[1:]).mean(dim=1).flatten(0, 1)
        if logit_KX is None:
            return mean_FT, None
        share_KX = logit_KX.sigmoid()
        return mean_FT, share_KX.view(models, self._members, -1).mean(dim=1).flatten() - 0.5

    def _prediction(self, obs_FO: torch.Tensor, action_FA: torch.Tensor) -> Prediction:
        """Each member on its block of rows, leading axes (K, rows)."""
        ids_K = self._seating.member_ids_K
        obs_KXO, action_KXA = (tensor.view(len(ids_K), -1, tensor.shape[1]) for tensor in (obs_FO, action_FA))
        return self._model.step_members(ids_K, obs_KXO, action_KXA, self._planning.precision)

    def _dealt(self, candidates: int) -> torch.Tensor:
        """Which row each place of the R takes: (R,), places of one member side by side.

        Members take rows in turn, in a random order of members. For ts1 the particles of each candidate are shuffled
        first, so that every member is equally likely for each, and a candidate's particles are spread over members.
        """
        members = 1 if self._mean_of_members else self._members
        rows = candidates * self._particles
        row_R = torch.arange(rows + -rows % members)
        if self._planning.propagation == "ts1":
            order_NP = self._random(candidates, self._particles).argsort(dim=1)
            row_R[:rows] = (order_NP + self._particles * torch.arange(candidates)[:, None]).flatten()
        turn_E = self._random(members).argsort()
        return row_R.view(-1, members)[:, turn_E].t().flatten().to(self._obs_QSO.device)

    def _random(self, *size: int) -> torch.Tensor:
        return torch.rand(size, generator=self._generator, device=self._generator.device).cpu()

    def _picks(self, row_R: torch.Tensor, candidates: int) -> torch.Tensor:
        """The sequence (of B * N) that each of the F rows follows; rows that only fill up follow the last candidate."""
        candidate_R = (row_R // self._particles).clamp(max=candidates - 1)
        problem_QS = self._seating.problem_QS.to(row_R.device)
        pick_QRS = problem_QS[:, None] * candidates + candidate_R[:, None]
        return pick_QRS.flatten()

    def _taken(self, tensor_F: torch.Tensor, moved_R: torch.Tensor) -> torch.Tensor:
        """Rows of every seat in another order."""
        models, seats = self._seating.problem_QS.shape
        shape = (models, len(moved_R), seats, *tensor_F.shape[1:])
        return tensor_F.view(shape).index_select(1, moved_R).flatten(0, 2)

    def _mean_over_particles(self, total_F: torch.Tensor, row_R: torch.Tensor, candidates: int) -> torch.Tensor:
        """Mean return of each candidate, (B, N)."""
        models, seats = self._seating.problem_QS.shape
        place_R = _inverse(row_R)[: candidates * self._particles]
        total_QRS = total_F.view(models, len(row_R), seats).index_select(1, place_R)
        mean_QNS = total_QRS.view(models, candidates, self._particles, seats).mean(dim=2)
        mean_BN = mean_QNS.transpose(1, 2).flatten(0, 1)
        return mean_BN.index_select(0, self._seating.seat_B.to(total_F.device))


def as_groups(members: Sequence[int] | None, groups: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...]:
    """One model's members, or several models', as groups. Raises ValueError for both or neither, or uneven groups."""
    if (members is None) == (groups is None):
        raise ValueError("give the members of one model, or groups of members, not both")
    given = [members] if groups is None else groups
    found = tuple(tuple(int(member) for member in group) for group in given if group is not None)
    if len({len(group) for group in found}) != 1 or not found[0]:
        raise ValueError(f"models must have equally many members, at least one, not {[len(group) for group in found]}")
    return found


def _inverse(order_R: torch.Tensor) -> torch.Tensor:
    """The inverse of a permutation."""
    return torch.empty_like(order_R).index_copy_(0, order_R, torch.arange(len(order_R), device=order_R.device))
