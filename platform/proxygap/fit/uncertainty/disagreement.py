"""The ensemble's own estimate of its error: how far its members are apart. Shape legend: B rows, T targets."""

from __future__ import annotations

import torch

from proxygap.base.protocols import DynamicsModel, State
from proxygap.base.records import Bool, Transitions
from proxygap.fit.uncertainty.errors import scale_of, target_count, targets_of, views


class Disagreement:
    """Variance over members of their mean predictions, averaged over targets (Lakshminarayanan et al. 2017).

    In squared standard deviations of each target in the data of the last fit. A single member disagrees with nobody: 0.
    """

    def __init__(self) -> None:
        self._scale_T: torch.Tensor | None = None

    @property
    def ready(self) -> bool:
        """From the first fit on."""
        return self._scale_T is not None

    def observe(self, model: DynamicsModel, rows: Transitions) -> None:
        """Nothing is learned from errors."""

    def fit(self, model: DynamicsModel, data: Transitions, unseen_N: Bool) -> None:
        """Take over the units of the rows that were trained on."""
        seen = data[~unseen_N] if not unseen_N.all() else data
        self._scale_T = scale_of(targets_of(seen, target_count(model, data)))

    def __call__(self, model: DynamicsModel, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """The estimate, (B,), never negative."""
        if self._scale_T is None:
            raise ValueError("there was no fit yet")
        return views(model, obs_BO, action_BA, self._scale_T).spread_N

    def state(self) -> State:
        """The units."""
        return State({} if self._scale_T is None else {"scale": self._scale_T.numpy().copy()}, {})

    def load_state(self, state: State) -> None:
        """Take them back."""
        scale = state.arrays.get("scale")
        self._scale_T = None if scale is None else torch.tensor(scale, dtype=torch.float32)
