"""Chosen members, ready to step rows of their own, all in one call: what planning spends its time on.

Shape legend: K members stepped (one may come twice), B rows of each, I inputs, W units of a layer, T predicted targets;
of `Seats`, B rows in all, M members of the stack, S seats of a member, X columns.

Weights are gathered and cast once per choice of members, not per call. Inputs are normalized, and outputs brought to
raw units, in float32; bfloat16 is the arithmetic between. There, products are so fast that passes over activations
count: biases are rows of the weights, multiplied by a unit that is always 1. The rows of `step_members` are not padded:
its numbers agree with those of `predict_rows` to rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from proxygap.base.protocols import Normalized
from proxygap.fit.dynamics.network import LANES, Normalizer, Weights, heads

Precision = Literal["float32", "bfloat16"]

_CHUNK_BYTES = {"float32": 3 << 19, "bfloat16": 3 << 20}
"""Size of one layer's activations that are worked on together: they stay near the processor."""
_UNIT = 1.2784645427610738
"""Where SiLU is 1, in bfloat16 too."""
_KEPT = 32
"""Choices of members that are kept ready."""


class Stepper:
    """Some members of a stack, by their places in it (one may come twice).

    Args:
        weights: of the whole stack.
        places: which members, in which order.
        inputs: shift and scale of the inputs.
        shaped: whether the networks say a shape per target.
        precision: of the products between.
    """

    def __init__(
        self, weights: Weights, places: Sequence[int], inputs: Normalizer, *, shaped: bool, precision: Precision
    ) -> None:
        self.places, self._shaped = tuple(places), shaped
        chosen = {name: weight[list(self.places)] for name, weight in weights.items()}
        self._upper, self._lower = chosen["max_log_var"], chosen["min_log_var"]
        layers = range(sum(name.startswith("weight") for name in chosen))
        pairs = [(chosen[f"weight_{layer}"], chosen[f"bias_{layer}"]) for layer in layers]
        self._unit = precision == "bfloat16"
        self._layers: list[tuple[torch.Tensor, torch.Tensor | None]] = list(pairs)
        if self._unit:
            joined = [*(_with_unit(*pair) for pair in pairs[:-1]), torch.cat(pairs[-1], dim=1)]
            self._layers = [(layer.bfloat16(), None) for layer in joined]
        scale_I, shift_I = inputs.std.reciprocal(), -inputs.mean / inputs.std
        unit = scale_I.new_ones(int(self._unit))
        self._scale_I, self._shift_I = torch.cat([scale_I, unit]), torch.cat([shift_I, 0.0 * unit])
        widest, self._dtype = max(weight.shape[2] for weight, _ in self._layers), self._layers[0][0].dtype
        self._rows = max(1, _CHUNK_BYTES[precision] // (len(self.places) * widest * self._dtype.itemsize))

    def __call__(self, obs_KBO: torch.Tensor, action_KBA: torch.Tensor) -> Normalized:
        """What member k says of its rows, leading axes (K, B), float32."""
        return self.heads(self.inputs(obs_KBO, action_KBA))

    def inputs(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """What the first layer multiplies, rows (..., I); a row that is all zero is as good as none."""
        columns = [obs, action]
        if self._unit:
            columns.append(obs.new_ones(()).expand(*obs.shape[:-1], 1))
        return torch.addcmul(self._shift_I, torch.cat(columns, dim=-1), self._scale_I).to(self._dtype)

    def heads(self, input_KBI: torch.Tensor) -> Normalized:
        """What member k says of its `inputs`, leading axes (K, B), float32."""
        chunks = max(1, -(-input_KBI.shape[1] // self._rows))
        parts = [self._outputs(chunk_KBI) for chunk_KBI in input_KBI.chunk(chunks, dim=1)]
        out = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return heads(out.float(), self._upper, self._lower, shaped=self._shaped)

    def _outputs(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self._layers[:-1]:
            hidden = torch.nn.functional.silu(_product(hidden, *layer), inplace=True)
        return _product(hidden, *self._layers[-1])


def _product(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    out = torch.bmm(hidden, weight)
    return out if bias is None else out.add_(bias)


class Steppers:
    """Choices of members that are kept ready while the weights are the same."""

    def __init__(self) -> None:
        self._of: tuple[Weights, Normalizer] | None = None
        self._kept: dict[tuple[tuple[int, ...], Precision], Stepper] = {}

    def of(
        self, weights: Weights, places: Sequence[int], inputs: Normalizer, *, shaped: bool, precision: Precision
    ) -> Stepper:
        """The stepper of these members; made anew when weights or normalizer are others than at the last call."""
        if self._of is None or self._of[0] is not weights or self._of[1] is not inputs:
            self._of, self._kept = (weights, inputs), {}
        key = (tuple(places), precision)
        if key not in self._kept:
            if len(self._kept) == _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = Stepper(weights, places, inputs, shaped=shaped, precision=precision)
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class Seats:
    """Rows that ask for a member each, put beside the others of the same member, so that all step in one call.

    A member has as many seats as the busiest one needs, in multiples of `LANES`: a bfloat16 product of a size not seen
    before is compiled first, which takes several times as long as the product itself.
    """

    places: tuple[int, ...]
    """Members with rows, ascending."""
    seat_B: torch.Tensor
    """Where each row sits, of K * S."""
    count: int
    """Seats S of a member."""

    @staticmethod
    def of(place_B: torch.Tensor, members: int) -> Seats:
        """Seats of at least one row each for members given by their places in the stack."""
        rows_M = torch.bincount(place_B, minlength=members)
        here_M, count = rows_M > 0, int(rows_M.max())
        count += -count % LANES
        first_M = count * (here_M.cumsum(0) - 1) - (rows_M.cumsum(0) - rows_M)
        ordered_B, order_B = place_B.sort(stable=True)
        seats_B = torch.arange(len(place_B), device=place_B.device) + first_M[ordered_B]
        seat_B = torch.empty_like(order_B).index_copy_(0, order_B, seats_B)
        return Seats(tuple(here_M.nonzero()[:, 0].tolist()), seat_B, count)

    def take(self, rows_BX: torch.Tensor) -> torch.Tensor:
        """Rows on their seats, (K, S, X), zeros on empty ones."""
        size = len(self.places) * self.count
        seated = rows_BX.new_zeros(size, rows_BX.shape[1]).index_copy_(0, self.seat_B, rows_BX)
        return seated.view(len(self.places), self.count, rows_BX.shape[1])

    def leave(self, seated: torch.Tensor) -> torch.Tensor:
        """What (K, S, ...) holds for each row, (B, ...)."""
        return seated.flatten(0, 1).index_select(0, self.seat_B)


def _with_unit(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A layer (K, fan_in + 1, fan_out + 1) whose last input is 1: its bias is a row, and its last output is `_UNIT`."""
    joined = torch.cat([weight, bias], dim=1)
    unit = joined.new_zeros(*joined.shape[:2], 1)
    unit[:, -1] = _UNIT
    return torch.cat([joined, unit], dim=2)
