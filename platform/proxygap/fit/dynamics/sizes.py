"""What a dynamics model of a task predicts, and from what."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from proxygap.base.protocols import Task


class TaskSizes(TypedDict):
    """What a model is built with beside its settings and its seed; JSON-able, so that hosts can be told."""

    obs_size: int
    action_size: int
    learn_reward: bool
    learn_termination: bool


def sizes_of(task: Task) -> TaskSizes:
    """Those of a model that learns whatever the task does not know of itself."""
    return {
        "obs_size": task.obs_size,
        "action_size": task.action_size,
        "learn_reward": not task.known_reward,
        "learn_termination": not task.known_termination,
    }


def target_count(task: Task) -> int:
    """Number T of real-valued targets: the change of the observation, then the reward where it is learned."""
    return task.obs_size + (not task.known_reward)
