"""The arms model: one prompt, many answers, a gold reward drawn for each; over-optimization without any training.

Shape legend: B answers, K arms, P = 1 prompt. Importing this module loads no torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from proxygap.base.language import Answers, Enumeration, Float64, Items, ItemSpec
from proxygap.base.records import Int64
from proxygap.base.seeds import generator
from proxygap.collect.tasks.answers import (
    DrawnTruth,
    checked,
    frozen,
    no_demonstrations,
    standardized,
    token_items,
)


class Arms(DrawnTruth):
    """A bandit with a uniform reference policy and standard normal gold: the calibration standard of the report.

    With a proxy that is gold plus error (``correlated_proxies``), everything here is exact and needs no network:
    best-of-n, the KL-regularized optimum, and both their distances. Error with heavy tails makes the gold of what is
    chosen rise and then fall; Gaussian error never does, for then the best guess of gold is linear in the proxy
    (Gao et al. 2023, 2210.10760, section 4, gives the same reason for best-of-n).
    """

    kind: Literal["arms"] = "arms"
    arms: int = Field(default=8000, ge=2, le=1_000_000)
    """Answers to choose from. More arms reach further from the reference: best-of-n spends at most log(arms) nats."""

    @property
    def name(self) -> str:
        """``Arms-8000``."""
        return f"Arms-{self.arms}"

    @property
    def item_spec(self) -> ItemSpec:
        """One prompt token, one answer token, as many tokens as arms."""
        return ItemSpec(vocabulary=self.arms, prompt_length=1, max_tokens=1)

    @property
    def end_token(self) -> int | None:
        """None: every answer is one token."""
        return None

    def check(self) -> None:
        """Nothing to refuse: every setting that validates can be run."""

    def prompt_tokens(self) -> Int64:
        """The only prompt, shape (1, 1)."""
        return np.zeros((1, 1), np.int64)

    def gold(self, answers: Answers) -> Float64:
        """The arm's gold, in standard deviations of the reference, shape (B,). Raises `InvalidDataset`."""
        gold_B: Float64 = self._drawn[self._checked(answers).token_BT[:, 0]]
        return gold_B

    def items(self, answers: Answers) -> Items:
        """Prompt, tokens and length; an arm has no features. Raises `InvalidDataset`."""
        return token_items(self._checked(answers), self.prompt_tokens())

    def styles(self, answers: Answers) -> dict[str, Float64]:
        """``length``, which is 1."""
        return {"length": self._checked(answers).length_B.astype(np.float64)}

    def text(self, answers: Answers) -> list[tuple[str, str]]:
        """The arm's number."""
        return [("Choose an arm.", f"arm {arm}") for arm in self._checked(answers).token_BT[:, 0]]

    def demonstrations(self, rng: np.random.Generator, count: int) -> Answers:  # noqa: ARG002
        """No rows: the reference policy is known."""
        return no_demonstrations(1)

    def enumeration(self) -> Enumeration:
        """The uniform reference and every arm's gold, both of shape (1, K)."""
        uniform_PK = np.full((1, self.arms), -np.log(self.arms))
        return Enumeration(uniform_PK, self._drawn[None].copy())

    @property
    def _drawn(self) -> Float64:
        return _drawn_gold(self.arms, self.drawn_seed)

    def _checked(self, answers: Answers) -> Answers:
        return checked(answers, self.item_spec, prompts=1, end_token=None)


@lru_cache(maxsize=16)
def _drawn_gold(arms: int, seed: int) -> Float64:
    """Standard normal draws, standardized over the arms; shape (K,), read-only."""
    drawn_PK = generator(seed, "tasks/arms").standard_normal((1, arms))
    gold_K: Float64 = standardized(drawn_PK, np.full((1, arms), -np.log(arms)))[0]
    frozen(gold_K)
    return gold_K
