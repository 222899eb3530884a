"""What every reward network shares: where its weights lie in memory, and the seam between networks and training.

Shape legend: M members, R rows (items), P floats of one member's parameters, N rows of data.

All parameters of a member that learn lie in one row of one tensor (M, P), each padded to whole vector registers: an
optimizer step is one kernel, and a member's numbers do not depend on who shares the stack (see
`proxygap.fit.dynamics.network`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.language import Items
from proxygap.fit.dynamics.network import LANES

Columns = Mapping[str, torch.Tensor]
"""Checked columns of items on the device: rows first, or members then rows where each member has its own."""
Initial = dict[str, NDArray[np.float32]]
"""Parameter name to one member's starting value."""


class Layout:
    """Names and shapes of one member's parameters, and their places in a row of P floats."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self._start: dict[str, int] = {}
        self.size = 0
        for name, shape in self.shapes.items():
            self._start[name] = self.size
            self.size += math.prod(shape) + -math.prod(shape) % LANES

    def flat(self, arrays: Mapping[str, NDArray[Any]], device: torch.device) -> torch.Tensor:
        """Arrays (M, ...) by name as one tensor (M, P)."""
        members = len(next(iter(arrays.values())))
        flat_MP = torch.zeros(members, self.size)
        for name, view in self.stacked(flat_MP).items():
            view.copy_(torch.tensor(np.asarray(arrays[name], np.float32)))
        return flat_MP.to(device)

    def stacked(self, flat_MP: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views (M, ...) of each parameter."""
        return {
            name: flat_MP[:, start : start + math.prod(self.shapes[name])].view(len(flat_MP), *self.shapes[name])
            for name, start in self._start.items()
        }

    def arrays(self, flat_MP: torch.Tensor) -> dict[str, NDArray[np.float32]]:
        """Copies (M, ...) of each parameter."""
        return {name: view.cpu().numpy().copy() for name, view in self.stacked(flat_MP).items()}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A parameter as autograd sees it, and the part of the stack's gradient that is its own."""

    value: torch.Tensor
    grad: torch.Tensor


class Scorer(Protocol):
    """A network bound to the weights of some members."""

    @property
    def leaves(self) -> Sequence[Leaf]:
        """What can be differentiated; empty where it was bound without a gradient."""
        ...

    def __call__(self, columns: Columns) -> torch.Tensor:
        """Raw scores (M, R) of columns (M, R, ...)."""
        ...


class Network(Protocol):
    """The architecture of a member: pure, weights are handed in."""

    @property
    def layout(self) -> Layout:
        """The parameters."""
        ...

    @property
    def frozen(self) -> frozenset[str]:
        """Parameters that no fit changes."""
        ...

    @property
    def head(self) -> frozenset[str]:
        """Parameters of the head; the others are the trunk."""
        ...

    @property
    def normalized(self) -> int:
        """Number of input features to normalize over the training data; 0 for tokens."""
        ...

    def widest(self, rows: int) -> int:
        """Floats of one member's largest activation for so many rows."""
        ...

    def initial(self, rng: np.random.Generator) -> Initial:
        """Starting values of one member, trunk and head."""
        ...

    def columns(self, items: Items) -> dict[str, torch.Tensor]:
        """What the network reads of items, on the CPU. Raises InvalidDataset, naming column and row."""
        ...

    def bind(self, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None = None) -> Scorer:
        """A scorer on these weights; with ``grad_MP`` its `Scorer.leaves` point there, frozen parameters left out."""
        ...


def stacked_leaves(
    layout: Layout, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None, fixed: Container[str]
) -> tuple[dict[str, torch.Tensor], list[Leaf]]:
    """Views (M, ...) of each parameter by name; with a gradient, those not in ``fixed`` are leaves, listed too."""
    views = {name: view.detach() for name, view in layout.stacked(flat_MP).items()}
    if grad_MP is None:
        return views, []
    grads = layout.stacked(grad_MP)
    return views, [Leaf(view.requires_grad_(), grads[name]) for name, view in views.items() if name not in fixed]


def head_scores(state_MRD: torch.Tensor, weight_MD1: torch.Tensor, bias_M11: torch.Tensor) -> torch.Tensor:
    """Scores (M, R) of the states before the head.

    The weight gets a second column of zeros: with one column, a stack of one member is multiplied by another kernel
    than a larger stack, and its last bits would depend on who shares it.
    """
    weight_MD2 = torch.nn.functional.pad(weight_MD1, (0, 1))
    return torch.bmm(state_MRD, weight_MD2)[..., 0] + bias_M11[:, 0]


def initial_members(
    network: Network, rngs_trunk: Sequence[np.random.Generator], rngs_head: Sequence[np.random.Generator]
) -> dict[str, NDArray[np.float32]]:
    """Starting values (M, ...): each member's trunk from its trunk generator, its head from its head generator."""
    drawn = [
        {**network.initial(trunk), **{n: a for n, a in network.initial(head).items() if n in network.head}}
        for trunk, head in zip(rngs_trunk, rngs_head, strict=True)
    ]
    return {name: np.stack([member[name] for member in drawn]) for name in network.layout.shapes}
