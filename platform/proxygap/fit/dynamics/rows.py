"""Supervised rows of a fit: one step of each transition, and for open-loop losses the steps that follow it.

Shape legend: M members, B rows of a batch (padded to `LANES`), I inputs (observation, then action), O observation size,
T predicted targets, N rows of one side of the held-out split, K steps of an open-loop prediction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proxygap.base.protocols import Normalized
from proxygap.fit.dynamics.network import LANES, pad_rows, row_weights

_FAR = 1e3
"""Deviations at which an open-loop prediction is cut off, gradient and all: diverged members stay finite."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Supervised rows in normalized units; ``terminated_N`` (0 or 1) is None where termination is known.

    ``weight_NT`` weighs the targets' errors, with mean 1; None weighs all alike.
    """

    input_NI: torch.Tensor
    target_NT: torch.Tensor
    terminated_N: torch.Tensor | None = None
    weight_NT: torch.Tensor | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.input_NI)

    def take(self, index: torch.Tensor) -> Rows:
        """Rows by number; ``index`` may have any shape, and its axes come first."""
        flat, shape = index.reshape(-1), index.shape
        ended_N, weight_NT = self.terminated_N, self.weight_NT
        return Rows(
            self.input_NI.index_select(0, flat).view(*shape, -1),
            self.target_NT.index_select(0, flat).view(*shape, -1),
            None if ended_N is None else ended_N.index_select(0, flat).view(shape),
            None if weight_NT is None else weight_NT.index_select(0, flat).view(*shape, -1),
        )

    def across(self, members: int) -> Rows:
        """The same rows for every member, padded; nothing is copied per member."""
        ended_N, weight_NT = self.terminated_N, self.weight_NT
        return Rows(
            pad_rows(self.input_NI).expand(members, -1, -1),
            pad_rows(self.target_NT).expand(members, -1, -1),
            None if ended_N is None else pad_rows(ended_N).expand(members, -1),
            None if weight_NT is None else pad_rows(weight_NT).expand(members, -1, -1),
        )


@dataclass(frozen=True, slots=True)
class Motion:
    """From a predicted change (units of the targets) to the next input (units of the inputs), observations only."""

    scale_O: torch.Tensor
    shift_O: torch.Tensor

    def next_obs(self, obs: torch.Tensor, output: Normalized) -> torch.Tensor:
        """Where the mean leads from ``obs``."""
        change = output.mean[..., : len(self.scale_O)] * self.scale_O + self.shift_O
        return (obs + change).clamp(-_FAR, _FAR)

    def target_from(self, obs: torch.Tensor, rows: Rows) -> torch.Tensor:
        """The targets of ``rows`` for a model that stands at ``obs``: what would lead it where reality went."""
        size = len(self.scale_O)
        behind = (rows.input_NI[..., :size] - obs) / self.scale_O
        return torch.cat([rows.target_NT[..., :size] + behind, rows.target_NT[..., size:]], dim=-1)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows with the members in front, one entry per step, and each step's weight per row (M, B).

    Rows that only pad have weight 0; summed over the steps, weights have mean 1 over all rows, padding included.
    """

    steps: tuple[Rows, ...]
    weights: tuple[torch.Tensor, ...]
    motion: Motion | None = None


@dataclass(frozen=True, slots=True)
class Later:
    """The steps that follow each row: numbers in ``whole`` (K - 1, N), and the weights of all its steps (K, N)."""

    whole: Rows
    row_KN: torch.Tensor
    weight_KN: torch.Tensor
    motion: Motion


@dataclass(frozen=True, slots=True)
class Side:
    """The rows of one side of the held-out split."""

    rows: Rows
    later: Later | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def take(self, index_MB: torch.Tensor) -> Batch:
        """Each member's own rows, padded with weightless ones."""
        members, count = index_MB.shape
        weight_B = row_weights(count, index_MB.device)
        padded_MB = torch.nn.functional.pad(index_MB, (0, -count % LANES)) if count % LANES else index_MB
        first = self.rows.take(padded_MB)
        if self.later is None:
            return Batch((first,), (weight_B.expand(members, -1),))
        return self._with_later(first, padded_MB, weight_B)

    def across(self, members: int) -> Batch:
        """All rows, the same for every member."""
        first, weight_B = self.rows.across(members), row_weights(len(self), self.rows.input_NI.device)
        if self.later is None:
            return Batch((first,), (weight_B.expand(members, -1),))
        index_B = pad_rows(torch.arange(len(self), device=weight_B.device))
        return self._with_later(first, index_B.expand(members, -1), weight_B)

    def _with_later(self, first: Rows, index_MB: torch.Tensor, weight_B: torch.Tensor) -> Batch:
        later = self.later
        assert later is not None
        steps = (first, *(later.whole.take(row_N[index_MB]) for row_N in later.row_KN))
        return Batch(steps, tuple(weight_B * weight_N[index_MB] for weight_N in later.weight_KN), later.motion)
