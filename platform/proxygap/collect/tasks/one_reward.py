"""What a task answers about rewards paid apart when it pays one: the empties of both families, in one place.

Shape legend: B answers, R component rewards (0 here). Importing this module loads neither Gymnasium nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from proxygap.base.config import Settings
from proxygap.base.language import Answers, Float64

if TYPE_CHECKING:
    import torch


class OneReward(Settings):
    """The base of every task: one reward, unless the task says otherwise."""

    @property
    def components(self) -> tuple[str, ...]:
        """Empty: nothing is paid apart."""
        return ()

    def reference_point(self) -> Float64 | None:
        """None: one reward has no front."""
        return None

    def front(self) -> Float64 | None:
        """None: one reward has no front."""
        return None


class ControlTask(OneReward):
    """The base of the tasks of control."""

    family: ClassVar[Literal["control"]] = "control"

    @property
    def discrete(self) -> bool:
        """False: actions are real numbers."""
        return False

    def utility(self) -> Float64:
        """No weights, shape (0,)."""
        return np.zeros(0)

    @property
    def known_dynamics(self) -> bool:
        """False: its law of motion is not written down here."""
        return False

    def next_obs(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - the seam's
        """Raises TypeError: the law of motion is unknown."""
        raise TypeError(f"the law of motion of {type(self).__name__} is not known here: learn it")


class LanguageTask(OneReward):
    """The base of the tasks of language."""

    family: ClassVar[Literal["language"]] = "language"

    def component_rewards(self, answers: Answers) -> Float64:
        """No rewards beside gold, shape (0, B)."""
        return np.zeros((0, len(answers)))
