"""Answers to prompts, labels over pairs, and what a reward model scores: the records of the preference side.

Shape legend: B answers (rows), P prompts of a task, L prompt tokens, T answer tokens, V vocabulary, D width, N pairs,
K enumerable answers, M members, F features, H steps of a segment.

An item is one thing that a reward model can score. Items travel as `Arrays` whose columns share their first axis:

==============  ======================================================================================
``prompt``      (B,) int64: row of the task's prompt table
``prompt_token``  (B, L) int64: the prompt's tokens, padded on the left
``token``       (B, T) int64: the answer's tokens, padded on the right
``length``      (B,) int64: tokens of the answer, the end token counted
``feature``     (B, H, F) float32: features of each step; an answer described by features has H = 1
==============  ======================================================================================

A sequence task gives the first four, a task with features adds the last, a segment of control has the last alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.records import Bool, Float32, Int64

if TYPE_CHECKING:
    import torch

Float64 = NDArray[np.float64]
Items = Mapping[str, NDArray[Any]]
"""Columns of items, see the module's table."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a language model answered: one row per answer, tokens after ``length_B`` are padding.

    ``log_prob_BT`` holds the log-probability, in nats at temperature 1, of each token under the model that drew it;
    it is 0 at padding.
    """

    prompt_B: Int64
    token_BT: Int64
    length_B: Int64
    log_prob_BT: Float32

    def __len__(self) -> int:
        """The number of answers."""
        return len(self.prompt_B)

    def __getitem__(self, rows: slice | Int64 | Bool) -> Answers:
        """Some of the rows."""
        return Answers(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def mask_BT(self) -> Bool:
        """True at real tokens."""
        mask: Bool = np.arange(self.token_BT.shape[1]) < self.length_B[:, None]
        return mask

    @staticmethod
    def concatenate(parts: Sequence[Answers]) -> Answers:
        """All rows of all parts, in order. Raises ValueError for no parts."""
        names = [field.name for field in fields(Answers)]
        return Answers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, slots=True)
class Preferences:
    """Labeled pairs of items: which of two an annotator preferred, and how strongly.

    ``tie_N`` marks pairs without a preference (then "chosen" is only the first). ``strength_N`` is the annotated
    strength, 1 where none was given. Ratings are NaN where an item was not rated on its own.
    """

    chosen: Items
    rejected: Items
    tie_N: Bool
    strength_N: Float32
    annotator_N: Int64
    chosen_rating_N: Float32
    rejected_rating_N: Float32

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.tie_N)

    def __getitem__(self, rows: slice | Int64 | Bool) -> Preferences:
        """Some of the pairs."""
        plain = {field.name: getattr(self, field.name)[rows] for field in fields(self)[2:]}
        return Preferences(take(self.chosen, rows), take(self.rejected, rows), **plain)

    @staticmethod
    def concatenate(parts: Sequence[Preferences]) -> Preferences:
        """All pairs of all parts, in order. Raises ValueError for no parts."""
        names = [field.name for field in fields(Preferences)[2:]]
        return Preferences(
            joined([part.chosen for part in parts]),
            joined([part.rejected for part in parts]),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
        )


@dataclass(frozen=True, slots=True)
class RewardFitReport:
    """What one fit of a reward ensemble did. Accuracy counts held-out pairs ranked as labeled; ties are left out."""

    version: int
    updates: int
    epochs_M: tuple[int, ...]
    held_out_accuracy_M: tuple[float, ...]
    held_out_loss_M: tuple[float, ...]
    training_rows: int
    held_out_rows: int


@dataclass(frozen=True, slots=True)
class ItemSpec:
    """Sizes of a task's items: all that a reward model must know to be built. Zero where a column is not there."""

    vocabulary: int = 0
    pad_token: int = 0
    prompt_length: int = 0
    max_tokens: int = 0
    features: int = 0


@dataclass(frozen=True, slots=True)
class Enumeration:
    """A task small enough to be written down: every prompt's every answer, with the exact truth about it.

    ``reference_log_prob_PK`` is normalized over K; ``gold_PK`` has mean 0 and standard deviation 1 under it, over
    all prompts together.
    """

    reference_log_prob_PK: Float64
    gold_PK: Float64


@dataclass(frozen=True, slots=True)
class Generation:
    """What `LanguageModel.generate` drew: tensors on the model's device, padding after ``length_B``."""

    token_BT: torch.Tensor
    length_B: torch.Tensor
    log_prob_BT: torch.Tensor


@dataclass(frozen=True, slots=True)
class Continuation:
    """A language model's view of given answers: logits that predict each answer token, and the states behind them."""

    logits_BTV: torch.Tensor
    hidden_BTD: torch.Tensor


def take(items: Items, rows: slice | Int64 | Bool) -> dict[str, NDArray[Any]]:
    """Some of the items."""
    return {name: column[rows] for name, column in items.items()}


def joined(parts: Sequence[Items]) -> dict[str, NDArray[Any]]:
    """All items of all parts, in order. Raises ValueError for no parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_of(items: Items) -> int:
    """The number of items."""
    return len(next(iter(items.values())))


def answer_mask(length_B: torch.Tensor, tokens: int) -> torch.Tensor:
    """True at real tokens, shape (B, tokens)."""
    import torch

    return torch.arange(tokens, device=length_B.device) < length_B[:, None]


def token_log_probs(logits_BTV: torch.Tensor, token_BT: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    """Log-probability of each given token, in nats, 0 beyond each answer's length; shape (B, T)."""
    log_prob_BT = logits_BTV.gather(-1, token_BT[..., None])[..., 0] - logits_BTV.logsumexp(dim=-1)
    return log_prob_BT * answer_mask(length_B, token_BT.shape[1])
