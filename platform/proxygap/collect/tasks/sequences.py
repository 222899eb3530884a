"""What tasks of short sequences share: words, their demonstrations, and sums over words and pairs of neighbors.

Shape legend: B answers, P prompts, T answer tokens, W words, V vocabulary (padding, words, and an end token if answers
end by themselves), U tokens an answer is searched over (padding and words). Importing this module loads no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, model_validator

from proxygap.base.language import Answers, Float64, Items, ItemSpec
from proxygap.base.records import Int64
from proxygap.collect.tasks.answers import DrawnTruth, checked, demonstration, frozen, token_items

PAD = 0
"""Padding is token 0 and words start at 1. A policy may answer with it all the same: then it is worth nothing."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What demonstrations are drawn from: cumulative probabilities of the first word and of the next; read-only."""

    first_cdf_PW: Float64
    next_cdf_WW: Float64

    def __post_init__(self) -> None:
        for field in fields(self):
            frozen(getattr(self, field.name))


class SequenceTask(DrawnTruth):
    """The base of tasks with one-word prompts and answers of a few words."""

    words: int = Field(default=24, ge=4, le=30_000)
    """Words of the vocabulary; more make the tables harder to learn from the same labels."""
    max_tokens: int = Field(default=12, ge=2, le=1024)
    """Tokens of the longest answer, its end token counted."""
    prompts: int = Field(default=8, ge=1, le=30_000)
    """One-word prompts; at most as many as words."""
    table_scale: NonNegativeFloat = 0.3
    """Standard deviation of the values of words and of pairs of neighbors."""
    skew: NonNegativeFloat = 0.7
    """How uneven the demonstrations are in their choice of words, nats; 0 uses all words of a class equally."""
    end_probability: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Chance that a demonstration ends after each word. 0: no end token, all answers have exactly ``max_tokens``."""

    @model_validator(mode="after")
    def _prompts_fit(self) -> Self:
        if self.prompts > self.words:
            raise ValueError(f"prompts = {self.prompts}: a prompt is one word, and there are {self.words} words")
        return self

    @property
    @abstractmethod
    def chain(self) -> Chain:
        """What demonstrations are drawn from."""

    @property
    def name(self) -> str:
        """The kind of task and its size, e.g. ``SequenceLm-24x12``."""
        return f"{type(self).__name__}-{self.words}x{self.max_tokens}"

    @property
    def item_spec(self) -> ItemSpec:
        """One prompt token; padding, the words and perhaps an end token in the vocabulary."""
        vocabulary = 1 + self.words + (self.end_token is not None)
        return ItemSpec(vocabulary=vocabulary, pad_token=PAD, prompt_length=1, max_tokens=self.max_tokens)

    @property
    def end_token(self) -> int | None:
        """The last token, where answers end by themselves."""
        return self.words + 1 if self.end_probability else None

    def check(self) -> None:
        """Nothing to refuse: every setting that validates can be run."""

    def prompt_tokens(self) -> Int64:
        """The first words, shape (P, 1)."""
        return np.arange(1, self.prompts + 1, dtype=np.int64)[:, None]

    def items(self, answers: Answers) -> Items:
        """Prompt, tokens and length. Raises `InvalidDataset`."""
        return token_items(self.checked(answers), self.prompt_tokens())

    def styles(self, answers: Answers) -> dict[str, Float64]:
        """``length`` in tokens and ``repetition`` (share of words like the one before)."""
        token_BT, mask_BT = self.checked(answers).token_BT, answers.mask_BT
        again_BT = (token_BT[:, 1:] == token_BT[:, :-1]) & mask_BT[:, 1:]
        return {
            "length": answers.length_B.astype(np.float64),
            "repetition": again_BT.sum(axis=1) / np.maximum(answers.length_B - 1, 1),
        }

    def text(self, answers: Answers) -> list[tuple[str, str]]:
        """Made-up words; a full stop for the end token, ``_`` for padding."""
        spelled = ["_", *self.spelled_words(), "."]
        prompt_P = self.prompt_tokens()[:, 0]
        rows = zip(answers.prompt_B, answers.token_BT, self.checked(answers).length_B, strict=True)
        return [
            (spelled[prompt_P[prompt]], " ".join(spelled[token] for token in token_T[:length]))
            for prompt, token_T, length in rows
        ]

    def spelled_words(self) -> list[str]:
        """Each word as a reader sees it."""
        return [word(number) for number in range(self.words)]

    def demonstrations(self, rng: np.random.Generator, count: int) -> Answers:
        """Answers from the task's chain of words; prompts are drawn evenly."""
        chain, steps = self.chain, self.max_tokens
        prompt_B = rng.integers(0, self.prompts, count)
        token_BT = np.empty((count, steps), np.int64)
        token_BT[:, 0] = 1 + inverse_cdf(chain.first_cdf_PW[prompt_B], rng.random(count))
        for step in range(1, steps):
            row_B = token_BT[:, step - 1] - 1
            token_BT[:, step] = 1 + inverse_cdf(chain.next_cdf_WW[row_B], rng.random(count))
        if self.end_token is None:
            return demonstration(prompt_B, token_BT, np.full(count, steps, np.int64))
        ends_BT = rng.random((count, steps)) < self.end_probability
        ends_BT[:, 0] = False  # at least one word
        stop_B = np.where(ends_BT.any(axis=1), ends_BT.argmax(axis=1), steps)
        position_T = np.arange(steps)
        token_BT[position_T == stop_B[:, None]] = self.end_token
        token_BT[position_T > stop_B[:, None]] = PAD
        return demonstration(prompt_B, token_BT, np.minimum(stop_B + 1, steps))

    def enumeration(self) -> None:
        """None: there are too many sequences to write down."""
        return

    def checked(self, answers: Answers) -> Answers:
        """The same answers, if this task can score them. Raises `InvalidDataset`."""
        return checked(answers, self.item_spec, prompts=self.prompts, end_token=self.end_token)

    def is_word(self) -> NDArray[np.bool_]:
        """Which tokens are words, shape (V,)."""
        token_V = np.arange(self.item_spec.vocabulary)
        words_V: NDArray[np.bool_] = (token_V > PAD) & (token_V <= self.words)
        return words_V


def table_sum(answers: Answers, word_PV: Float64, pair_VV: Float64) -> Float64:
    """Sum of the values of an answer's words and of its neighbors, (B,); both are 0 at padding."""
    token_BT = np.where(answers.mask_BT, answers.token_BT, PAD)
    word_B = word_PV[answers.prompt_B[:, None], token_BT].sum(axis=1)
    pair_B = pair_VV[token_BT[:, :-1], token_BT[:, 1:]].sum(axis=1)
    total_B: Float64 = word_B + pair_B
    return total_B


def best_answers(word_PU: Float64, pair_UU: Float64, steps: int) -> Int64:
    """The answer of ``steps`` tokens to each prompt with the greatest sum of words and neighbors, (P, T); exact.

    Dynamic programming from the last token to the first (Viterbi 1967). Shorter answers are among them, for padding is
    worth nothing.
    """
    best_PU, choice = word_PU, []
    for _ in range(steps - 1):
        total_PUU = pair_UU + best_PU[:, None]
        choice.append(total_PUU.argmax(axis=2))
        best_PU = word_PU + total_PUU.max(axis=2)
    rows_P, token_P = np.arange(len(word_PU)), best_PU.argmax(axis=1)
    answer = [token_P]
    for next_PU in reversed(choice):
        token_P = next_PU[rows_P, token_P]
        answer.append(token_P)
    return np.stack(answer, axis=1).astype(np.int64)


def inverse_cdf(cdf_BW: Float64, uniform_B: Float64) -> NDArray[np.int64]:
    """One draw per row: the first column whose cumulative probability exceeds the uniform number."""
    column_B: NDArray[np.int64] = (cdf_BW[:, :-1] <= uniform_B[:, None]).sum(axis=1)  # the last column takes the rest
    return column_B


def word(number: int) -> str:
    """A made-up word for a number, each different: one or more syllables of a consonant and a vowel."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    rest, letters = divmod(number, len(consonants) * len(vowels))
    syllable = consonants[letters % len(consonants)] + vowels[letters // len(consonants)]
    return (word(rest - 1) if rest else "") + syllable
