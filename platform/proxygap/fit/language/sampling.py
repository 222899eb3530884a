"""Drawing tokens from logits, one step after the other, for a batch of rows; and which prompt tokens are padding.

Shape legend: B rows, A rows still stepped, L prompt tokens, T answer tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Generation, answer_mask

ROWS_ON_CPU = 256
"""Answers drawn side by side on the CPU; more of them are slower per token there."""


def real_prompt(prompt_BL: Tensor, pad_token: int) -> Tensor | None:
    """True from each row's first token that is not padding; None where no row is padded.

    The last column always counts as real, so that a task whose prompts may hold token ``pad_token`` itself (a prompt
    of one token) is never left with nothing to look at.
    """
    padding_BL = prompt_BL == pad_token
    if not bool(padding_BL[:, 0].any()):
        return None
    real_BL = (~padding_BL).cummax(dim=1).values
    real_BL[:, -1] = True
    return None if bool(real_BL.all()) else real_BL


def in_chunks(
    generate: Callable[[Tensor], Generation], prompt_BL: Tensor, rows_on_cpu: int = ROWS_ON_CPU
) -> Generation:
    """All rows' answers, a few hundred rows at a time on the CPU, where keys and values should stay in its caches."""
    rows = rows_on_cpu if prompt_BL.device.type == "cpu" else len(prompt_BL)
    if len(prompt_BL) <= rows:
        return generate(prompt_BL)
    parts = [generate(prompt_BL[first : first + rows]) for first in range(0, len(prompt_BL), rows)]
    return Generation(
        torch.cat([part.token_BT for part in parts]),
        torch.cat([part.length_B for part in parts]),
        torch.cat([part.log_prob_BT for part in parts]),
    )


class Draws:
    """The tokens drawn so far, and the randomness for those to come.

    A token is the first whose cumulative probability exceeds a uniform number (the inverse of the distribution
    function). All uniform numbers are drawn before the first step, so a row's answer depends on its own numbers alone.
    The sum runs in float64 while a uniform number has 24 bits: a token of probability 0 is never drawn.
    """

    def __init__(
        self,
        rows: int,
        max_tokens: int,
        *,
        end_token: int | None,
        generator: torch.Generator,
        temperature: float,
        device: torch.device | None = None,
    ) -> None:
        if max_tokens < 1:
            raise InvalidExperiment("an answer needs a token", field="max_tokens", value=max_tokens, remedy="Ask for 1")
        if not 0.0 < temperature < math.inf:
            remedy = "Give a positive number; 1 samples from the model itself"
            raise InvalidExperiment("cannot sample", field="temperature", value=temperature, remedy=remedy)
        device = generator.device if device is None else device
        self._uniform_TA1 = torch.rand(max_tokens, rows, 1, generator=generator, device=generator.device).to(device)
        self._end_token, self._temperature, self._max_tokens = end_token, temperature, max_tokens
        self._row_A = torch.arange(rows, device=device)
        self._open_A1 = torch.ones(rows, 1, dtype=torch.bool, device=device)
        self._token_BT = torch.zeros(rows, max_tokens, dtype=torch.int64, device=device)
        self._log_prob_BT = torch.zeros(0)
        self._drawn = 0

    def next(self, logits_AV: Tensor) -> Tensor:
        """Draw one token for each row that is still stepped, shape (A, 1); what follows an end is blanked later."""
        log_prob_AV = logits_AV.log_softmax(dim=-1)
        tempered_AV = log_prob_AV if self._temperature == 1.0 else (logits_AV / self._temperature).log_softmax(dim=-1)
        sum_AV = tempered_AV.exp().cumsum(dim=-1, dtype=torch.float64)
        threshold_A1 = self._uniform_TA1[self._drawn] * sum_AV[:, -1:]
        token_A1 = torch.searchsorted(sum_AV, threshold_A1, right=True).clamp_(max=logits_AV.shape[-1] - 1)
        if self._drawn == 0:
            self._log_prob_BT = log_prob_AV.new_zeros(self._token_BT.shape)
        self._write(self._token_BT, token_A1)
        self._write(self._log_prob_BT, log_prob_AV.gather(1, token_A1))
        self._drawn += 1
        if self._end_token is not None:
            self._open_A1 &= token_A1 != self._end_token
        return token_A1

    def _write(self, record_BT: Tensor, drawn_A1: Tensor) -> None:
        if len(drawn_A1) == len(record_BT):
            record_BT[:, self._drawn] = drawn_A1[:, 0]
        else:
            record_BT[self._row_A, self._drawn] = drawn_A1[:, 0]

    def leave_out_ended(self) -> Tensor | None:
        """Which of the stepped rows to go on with, once half of them have ended; None to go on with all.

        The caller must then step those rows alone. Leaving out costs a copy of the cache, so it is done by halves.
        """
        if self._end_token is None or 2 * int(self._open_A1.sum()) > len(self._row_A):
            return None
        keep_A = self._open_A1[:, 0].nonzero()[:, 0]
        self._row_A, self._open_A1, self._uniform_TA1 = (
            self._row_A[keep_A],
            self._open_A1[keep_A],
            self._uniform_TA1[:, keep_A],
        )
        return keep_A

    @property
    def over(self) -> bool:
        """Whether every row has ended, or the longest answer is reached."""
        return self._drawn == self._max_tokens or (self._end_token is not None and not bool(self._open_A1.any()))

    def generation(self, pad_token: int) -> Generation:
        """All answers, (B, max_tokens). Raises NonFiniteValue where the model gave no distribution."""
        length_B = self._lengths()
        mask_BT = answer_mask(length_B, self._max_tokens)
        if not bool(self._log_prob_BT[mask_BT].isfinite().all()):
            remedy = "Lower the learning rate, or look at the weights: they hold NaN or infinity, or nearly so"
            raise NonFiniteValue("the language model gave no distribution over tokens", field="logits", remedy=remedy)
        return Generation(self._token_BT.where(mask_BT, pad_token), length_B, self._log_prob_BT.where(mask_BT, 0.0))

    def _lengths(self) -> Tensor:
        """Tokens up to the first end token, that one counted; without one, all."""
        if self._end_token is None:
            return torch.full_like(self._token_BT[:, 0], self._max_tokens)
        ended_BT = (self._token_BT == self._end_token).cumsum(dim=1) > 0
        return (self._max_tokens - ended_BT.sum(dim=1) + 1).clamp(max=self._max_tokens)
