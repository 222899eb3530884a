"""Environments stepped by a policy that remembers, within an episode, what it planned before.

Shape legend: E environments of this runner, O observation size, A action size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from proxygap.base.protocols import State
from proxygap.collect.env_runner import StepRunner

if TYPE_CHECKING:
    from proxygap.base.protocols import LastingActor

_PREFIX = "actor/"


class PlanRunner(StepRunner):
    """A `StepRunner` whose module begins episodes (`EpisodicPolicy`); what its actor remembers is part of the state.

    The module's ``version`` counts the models that it was given. With each new one the episodes go on: they are begun
    on the new model with all that was remembered.
    """

    def make_env(self) -> None:
        """Start the environments; in each life nothing has been planned."""
        super().make_env()
        self._actor: LastingActor | None = None
        self._remembered: State | None = None
        self._version = 0

    def policy_actions(self, obs_EO: torch.Tensor) -> torch.Tensor:
        """What is planned for each environment, (E, A)."""
        actor = self._newest_actor()
        fresh = [index for index, env in enumerate(self.envs) if env.step_in_episode == 0]
        if fresh:
            actor.begin(torch.tensor(fresh))
        with torch.no_grad():
            return actor.act(obs_EO, torch.arange(len(self.envs)))

    def _newest_actor(self) -> LastingActor:
        if self._actor is None or self._version != self.module.version:
            remembered = self._memory()
            self._actor, self._version = self.module.episodes(len(self.envs)), self.module.version
            if remembered is not None:
                self._actor.load_state(remembered)
        return self._actor

    def _memory(self) -> State | None:
        return self._remembered if self._actor is None else self._actor.state()

    def part_state(self) -> State:
        """Environments in mid-episode, the position of the exploration noise, and what was planned."""
        state, memory = super().part_state(), self._memory()
        if memory is None:
            return state
        arrays = {f"{_PREFIX}{name}": array for name, array in memory.arrays.items()}
        return State({**state.arrays, **arrays}, {**state.structure, "actor": memory.structure})

    def load_part_state(self, state: State) -> None:
        """Continue from a `part_state`, bit for bit, as soon as the module has its model."""
        super().load_part_state(state)
        arrays = {k.removeprefix(_PREFIX): v for k, v in state.arrays.items() if k.startswith(_PREFIX)}
        planned = state.structure.get("actor")
        self._actor, self._remembered = None, None if planned is None else State(arrays, planned)
