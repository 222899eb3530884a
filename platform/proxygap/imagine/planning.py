"""A policy that plans: at each step it searches for the actions that its model promises most for.

Shape legend: B problems (episodes side by side), H horizon, O observation size, A action size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from proxygap.base.protocols import Plan, PlanMemory, State, StepModel, Task
from proxygap.base.seeds import torch_generator
from proxygap.imagine.particles import ParticleReturns, as_groups
from proxygap.imagine.planners.settings import Planning

__all__ = ["PlanningActor", "PlanningPolicy"]


class PlanningPolicy:
    """Model predictive control (PETS; Chua et al. 2018, algorithm 1), for one model or many at once.

    Several models are ``groups``: of ``count`` episodes (or rows) side by side, problem b belongs to model
    ``b // (count / models)``. All plan with the same noise. Noise depends on the seed and on the number of the step
    alone, so that a policy acts alike whenever it is asked.

    Args:
        model: what is planned in.
        task: whose laws of reward and termination are used where they are known.
        planning: planner, particles, propagation.
        members: who steps, of one model: an ensemble imagines with its elites.
        groups: in place of ``members``, the members of each of several models, equally many.
        seed: of the noise of all plans.
        discount: of imagined rewards.

    Raises:
        ValueError: not one of ``members`` and ``groups`` is given; when acting, models that do not divide the problems.
    """

    def __init__(
        self,
        model: StepModel,
        task: Task,
        planning: Planning,
        *,
        members: Sequence[int] | None = None,
        groups: Sequence[Sequence[int]] | None = None,
        seed: int,
        discount: float = 1.0,
    ) -> None:
        self._model, self._task, self.planning = model, task, planning
        self._groups = as_groups(members, groups)
        self._seed, self._discount = seed, discount

    def episodes(self, count: int) -> PlanningActor:
        """Begin ``count`` episodes, without plans."""
        self.group_of(count)
        return PlanningActor(self, count, self._task.action_size)

    def act(self, obs_BO: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """First actions (B, A) of plans made from scratch, with the noise of ``generator`` or of step 0."""
        return self._from_scratch(obs_BO, generator).action_BA.to(obs_BO.device)

    def value(self, obs_BO: torch.Tensor) -> torch.Tensor:
        """What plans made from scratch promise, (B,): the imagined return of the horizon, not more."""
        return self._from_scratch(obs_BO, None).return_B.to(obs_BO.device)

    def group_of(self, count: int) -> torch.Tensor:
        """The model of each of ``count`` problems, (count,)."""
        if count % len(self._groups):
            raise ValueError(f"{len(self._groups)} models cannot share {count} problems evenly")
        return torch.arange(count) // max(1, count // len(self._groups))

    def noise(self, number: int) -> torch.Generator:
        """The generator of the step with this number, counted from 0."""
        return torch_generator(self._seed, f"plan/{number}")

    def plan(
        self, memory: PlanMemory, obs_BO: torch.Tensor, group_B: torch.Tensor, generator: torch.Generator
    ) -> tuple[Plan, PlanMemory]:
        """Plan for the problems at these observations; the memory is that for the same observations again."""
        with torch.no_grad():
            returns = ParticleReturns(
                self._model,
                self._task,
                obs_BO,
                planning=self.planning,
                groups=self._groups,
                group_B=group_B,
                generator=generator,
                discount=self._discount,
            )
            return self.planning.planner.plan(memory, returns, generator)

    def _from_scratch(self, obs_BO: torch.Tensor, generator: torch.Generator | None) -> Plan:
        memory = self.planning.planner.init(len(obs_BO), self._task.action_size)
        noise = self.noise(0) if generator is None else generator
        return self.plan(memory, obs_BO, self.group_of(len(obs_BO)), noise)[0]


class PlanningActor:
    """Episodes that a planner plays side by side. Each remembers its plan: `Stateful`, and begun again by `begin`.

    Args:
        policy: makes the plans.
        count: episodes.
        action_size: A.
    """

    def __init__(self, policy: PlanningPolicy, count: int, action_size: int) -> None:
        planning = policy.planning
        self._policy, self._planner, self._replan_every = policy, planning.planner, planning.replan_every
        self._action_size, self._group_B = action_size, policy.group_of(count)
        self._memory = self._planner.init(count, action_size)
        self._sequence_BHA = torch.zeros(count, self._planner.horizon, action_size)
        self._promise_B = torch.full((count,), torch.nan)
        self._age_B = torch.full((count,), self._replan_every)
        self._steps = 0

    @property
    def promise_B(self) -> torch.Tensor:
        """What each episode's latest plan promised when it was made, (B,); NaN before the first."""
        return self._promise_B.clone()

    def act(self, obs_BO: torch.Tensor, live_B: torch.Tensor) -> torch.Tensor:
        """Actions (rows, A) of the episodes numbered ``live_B``, one row of ``obs_BO`` each; plans where one is due."""
        live_B = live_B.cpu()
        due = self._age_B[live_B] >= self._replan_every
        if bool(due.any()):
            self._replan(live_B[due], obs_BO[due.to(obs_BO.device)])
        action_BA = self._sequence_BHA[live_B, self._age_B[live_B]]
        self._age_B[live_B] += 1
        self._steps += 1
        return action_BA.to(obs_BO.device)

    def begin(self, episodes_B: torch.Tensor) -> None:
        """Let these episodes (numbers) begin anew: nothing of their plans is kept."""
        fresh = self._planner.init(len(episodes_B), self._action_size)
        self._memory = self._memory.put(episodes_B, fresh)
        self._age_B[episodes_B] = self._replan_every
        self._promise_B[episodes_B] = torch.nan

    def _replan(self, episodes_B: torch.Tensor, obs_BO: torch.Tensor) -> None:
        memory, group_B = self._memory.take(episodes_B), self._group_B[episodes_B]
        plan, memory = self._policy.plan(memory, obs_BO, group_B, self._policy.noise(self._steps))
        self._memory = self._memory.put(episodes_B, self._planner.later(memory, self._replan_every))
        self._sequence_BHA[episodes_B], self._promise_B[episodes_B] = plan.sequence_BHA, plan.return_B
        self._age_B[episodes_B] = 0

    def state(self) -> State:
        """Plans, their ages and promises, the planner's memory, and the number of steps so far."""
        tensors = {f"memory/{name}": tensor for name, tensor in self._memory.tensors.items()}
        tensors |= {"sequence": self._sequence_BHA, "promise": self._promise_B, "age": self._age_B}
        return State({name: tensor.numpy().copy() for name, tensor in tensors.items()}, {"steps": self._steps})

    def load_state(self, state: State) -> None:
        """Become the actor that ``state`` was taken from."""
        tensors = {name: _tensor(array) for name, array in state.arrays.items()}
        self._sequence_BHA, self._promise_B, self._age_B = (
            tensors.pop(name) for name in ("sequence", "promise", "age")
        )
        self._memory = PlanMemory({name.removeprefix("memory/"): tensor for name, tensor in tensors.items()})
        self._steps = int(state.structure["steps"])


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A copy in torch's own memory."""
    return torch.tensor(array)
