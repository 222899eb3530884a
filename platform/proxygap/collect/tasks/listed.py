"""What tasks of listed answers share: every prompt's every answer is one token, described by features.

Shape legend: B answers, P prompts, K answers of each prompt, F features, R component rewards. Importing this module
loads no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields

import numpy as np
from pydantic import Field

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Answers, Enumeration, Float64, Items, ItemSpec
from proxygap.base.records import Float32, Int64
from proxygap.collect.tasks.answers import DrawnTruth, checked, frozen, no_demonstrations, token_items

LENGTH, STYLE, CONTENT = 0, 1, 2
"""Columns of the features: length, style, and the first of what the answer says."""
TABLE_LIMIT = 200_000_000
"""Features of all answers together that are still built."""


@dataclass(frozen=True, slots=True)
class Truth:
    """A listed task written down: read-only once it is built."""

    feature_PKF: Float32
    reference_log_prob_PK: Float64
    gold_PK: Float64
    component_RPK: Float64

    def __post_init__(self) -> None:
        for field in fields(self):
            frozen(getattr(self, field.name))


class ListedTask(DrawnTruth):
    """The base of bandits with prompts: a table of answers, the reference policy and the rewards written down."""

    prompts: int = Field(default=20, ge=1, le=4096)
    """Prompts; more of them average out the luck of a single table, at proportional cost."""
    answers: int = Field(default=1024, ge=2, le=65_536)
    """Answers to each prompt; more reach further from the reference."""
    features: int = Field(default=16, ge=4, le=1024)
    """Features of an answer: length and style, then what it says."""

    @property
    @abstractmethod
    def truth(self) -> Truth:
        """All tables. Raises `InvalidExperiment` where the truth follows a run that is not named yet."""

    @property
    def item_spec(self) -> ItemSpec:
        """One prompt token, one answer token, and the features; as many tokens as prompts or answers need."""
        vocabulary = max(self.prompts, self.answers)
        return ItemSpec(vocabulary=vocabulary, prompt_length=1, max_tokens=1, features=self.features)

    @property
    def end_token(self) -> int | None:
        """None: every answer is one token."""
        return None

    @property
    def name(self) -> str:
        """The kind of task and its size, e.g. ``BanditLm-20x1024``."""
        return f"{type(self).__name__}-{self.prompts}x{self.answers}"

    def check(self) -> None:
        """Refuse, with `InvalidExperiment`, tables that do not fit into memory."""
        numbers = self.prompts * self.answers * self.features
        if numbers > TABLE_LIMIT:
            raise InvalidExperiment(
                f"its tables hold {numbers:,} features, more than {TABLE_LIMIT:,}",
                field="task",
                value=self.name,
                remedy="Take fewer prompts, answers or features",
            )

    def prompt_tokens(self) -> Int64:
        """The prompts, numbered; shape (P, 1)."""
        return np.arange(self.prompts, dtype=np.int64)[:, None]

    def features_of(self, answers: Answers) -> Float32:
        """What describes each answer, shape (B, F). Raises `InvalidDataset`."""
        return self.truth.feature_PKF[self._cell(answers)]

    def gold(self, answers: Answers) -> Float64:
        """Gold in standard deviations of the reference, shape (B,). Raises `InvalidDataset`."""
        return self.truth.gold_PK[self._cell(answers)]

    def component_rewards(self, answers: Answers) -> Float64:
        """Each component's true reward of each answer, shape (R, B). Raises `InvalidDataset`."""
        prompt_B, token_B = self._cell(answers)
        return self.truth.component_RPK[:, prompt_B, token_B]

    def items(self, answers: Answers) -> Items:
        """Prompt, tokens, length, and the features of one step. Raises `InvalidDataset`."""
        feature_B1F = self.features_of(answers)[:, None]
        return {**token_items(answers, self.prompt_tokens()), "feature": feature_B1F}

    def styles(self, answers: Answers) -> dict[str, Float64]:
        """``length`` (of the described answer, in words) and ``style``."""
        feature_BF = self.features_of(answers).astype(np.float64)
        return {"length": words(feature_BF[:, LENGTH]), "style": feature_BF[:, STYLE]}

    def text(self, answers: Answers) -> list[tuple[str, str]]:
        """The answer's number, what describes it, and what it is worth in each component."""
        style, reward_RB = self.styles(answers), self.component_rewards(answers)
        looks = {name: values_B for name, values_B in style.items() if name != "length"}
        looks |= dict(zip(self.components, reward_RB, strict=True))
        rows = []
        for row, (prompt, token) in enumerate(zip(answers.prompt_B, answers.token_BT[:, 0], strict=True)):
            said = ", ".join(f"{name} {values_B[row]:+.1f}" for name, values_B in looks.items())
            rows.append((f"prompt {prompt}", f"answer {token}: {style['length'][row]:.0f} words, {said}"))
        return rows

    def demonstrations(self, rng: np.random.Generator, count: int) -> Answers:  # noqa: ARG002
        """No rows: the reference policy is known."""
        return no_demonstrations(1)

    def enumeration(self) -> Enumeration:
        """The reference and the gold of every answer, both of shape (P, K)."""
        return Enumeration(self.truth.reference_log_prob_PK.copy(), self.truth.gold_PK.copy())

    def _cell(self, answers: Answers) -> tuple[Int64, Int64]:
        checked(answers, self.item_spec, prompts=self.prompts, end_token=None, answer_tokens=self.answers)
        return answers.prompt_B, answers.token_BT[:, 0]


def words(log_length_B: Float64) -> Float64:
    """The length in words that a standardized log-length stands for: 20 on average, 33 one deviation above."""
    count: Float64 = 20.0 * np.exp(0.5 * log_length_B)
    return count


def log_softmax(logit_PK: Float64) -> Float64:
    """Normalized over each prompt's answers."""
    log_prob_PK: Float64 = logit_PK - np.log(np.exp(logit_PK).sum(axis=1, keepdims=True))
    return log_prob_PK


def described(component_RPK: Float64, worth_PK: Float64, features: int, rng: np.random.Generator) -> Float32:
    """Features from which the components can be read off linearly, shape (P, K, F).

    What an answer says is its components and standard normal noise, rotated together, so that every content feature
    tells a little of each. Length is noise; style correlates 0.5 with ``worth_PK`` and is worth nothing.
    """
    shape, rewards = worth_PK.shape, len(component_RPK)
    content = features - CONTENT
    rotation_CC = np.linalg.qr(rng.standard_normal((content, content)))[0]
    said_PKC = rng.standard_normal((*shape, content))
    said_PKC[..., :rewards] = np.moveaxis(component_RPK, 0, -1)
    look_PK2 = rng.standard_normal((*shape, CONTENT))
    look_PK2[..., STYLE] = 0.5 * (worth_PK - worth_PK.mean()) / worth_PK.std() + np.sqrt(0.75) * look_PK2[..., STYLE]
    return np.concatenate([look_PK2, said_PKC @ rotation_CC], axis=-1).astype(np.float32)
