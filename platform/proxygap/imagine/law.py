"""A task's own law of motion as a model: the best that planning can do, and what a learned model is measured against.

Shape legend: K members, B rows, O observation size, A action size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.protocols import Prediction, Task, unknown_laws


class LawModel:
    """One member, number 0, that knows the law and is certain of it: process noise is not imagined.

    Args:
        task: with known dynamics, reward and termination.

    Raises:
        InvalidExperiment: the task leaves one of them to be learned.
    """

    def __init__(self, task: Task) -> None:
        if unknown := unknown_laws(task):
            raise InvalidExperiment(
                f"the task's {unknown[0]} is not known",
                field="task",
                value=task.name,
                remedy="Plan in a fitted model, or choose a task with known laws (continuous_cartpole)",
            )
        self._task = task

    def step_members(
        self,
        member_ids: Sequence[int],  # noqa: ARG002 - every member is the law
        obs_KBO: torch.Tensor,
        action_KBA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",  # noqa: ARG002 - the law has no lower one
    ) -> Prediction:
        """The law's change of the observation, leading axes (K, B), with deviation 0."""
        obs_RO, action_RA = obs_KBO.flatten(0, 1), action_KBA.flatten(0, 1)
        change_KBO = (self._task.next_obs(obs_RO, action_RA) - obs_RO).view_as(obs_KBO)
        return Prediction(change_KBO, torch.zeros((), device=obs_KBO.device).expand_as(change_KBO), None)
