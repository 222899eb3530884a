"""Keys and values of tokens already read, in memory that is allocated once per generation.

Shape legend: B rows, L prompt tokens, H heads, E width of a head, R = B * H, S columns with room for all tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRIDE = 32
"""Columns come in multiples of this."""


class Cache:
    """Keys and values of all layers, in room for all columns, and what may be attended to.

    The products run over a number of columns that is a multiple of `STRIDE` (what is not there yet is barred), because
    the library falls back to a slow loop for very small ones.
    """

    def __init__(self, layers: int, rows: int, heads: int, size: int, columns: int, like: Tensor) -> None:
        room = columns + -columns % STRIDE
        self._key = like.new_zeros(layers, rows, heads, size, room)
        self._value = like.new_zeros(layers, rows, heads, room, size)
        self._bar_R1S = like.new_full((rows * heads, 1, room), -math.inf)
        self._heads, self._scale = heads, 1 / math.sqrt(size)

    def fill(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep a prompt's keys and values, each (B, H, L, E)."""
        self._key[layer, ..., : k.shape[2]] = k.mT
        self._value[layer, :, :, : v.shape[2]] = v

    def open(self, columns: slice, real_BL: Tensor | None = None) -> None:
        """Let the columns be attended to, but for a prompt's padding."""
        if real_BL is None:
            self._bar_R1S[..., columns] = 0.0
        else:
            barred_R1L = (~real_BL).repeat_interleave(self._heads, dim=0)[:, None]
            self._bar_R1S[..., columns] = self._bar_R1S[..., columns].where(barred_R1L, 0.0)

    def write(self, layer: int, column: int, k_BHE: Tensor, v_BHE: Tensor) -> None:
        """Keep one token's keys and values."""
        self._key[layer, ..., column] = k_BHE
        self._value[layer, :, :, column] = v_BHE

    def attend(self, layer: int, column: int, q_BHE: Tensor) -> Tensor:
        """Attention of one token to all open columns up to its own, (B * H, 1, E) (Vaswani et al. 2017, Eq. 1)."""
        room = column + 1 + -(column + 1) % STRIDE
        key_RES, value_RSE = self._key[layer].flatten(0, 1), self._value[layer].flatten(0, 1)
        q_R1E, bar_R1S = q_BHE.flatten(0, 1)[:, None], self._bar_R1S[..., :room]
        score_R1S = torch.baddbmm(bar_R1S, q_R1E, key_RES[..., :room], alpha=self._scale)
        return torch.bmm(score_R1S.softmax(dim=-1), value_RSE[:, :room])

    def keep(self, rows_A: Tensor) -> None:
        """Go on with some of the rows."""
        self._key, self._value = self._key[:, rows_A], self._value[:, rows_A]
        bar_BHS = self._bar_R1S.view(-1, self._heads, self._bar_R1S.shape[-1])
        self._bar_R1S = bar_BHS[rows_A].flatten(0, 1)[:, None]
