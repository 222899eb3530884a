"""Stretches of real episodes, cut out, paired, and chosen for labeling: queries of preference learning in control.

Shape legend: B transitions, S segments, N pairs, H steps of a segment, O observation size, A action size,
F = O + A features of a step, M members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Float64, Items, take
from proxygap.base.records import Float32, Int64, Transitions

Score = Callable[[Items], torch.Tensor]
"""Items in, every member's score out, shape (M, B)."""


@dataclass(frozen=True, slots=True)
class SegmentPairs:
    """Pairs of segments: what a reward model sees of them, and what the task paid at each of their steps."""

    first: Items
    second: Items
    first_gold_NH: Float64
    second_gold_NH: Float64

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.first_gold_NH)

    def __getitem__(self, rows: Int64) -> SegmentPairs:
        """Some of the pairs."""
        return SegmentPairs(
            take(self.first, rows), take(self.second, rows), self.first_gold_NH[rows], self.second_gold_NH[rows]
        )


def in_order(transitions: Transitions) -> Transitions:
    """The rows sorted by episode and step: several environments' rows may lie interleaved."""
    return transitions[np.lexsort((transitions.step_B, transitions.episode_B))]


def segment_starts(transitions: Transitions, length: int) -> Int64:
    """Rows at which a whole segment starts: the next ``length - 1`` rows go on in the same episode, step by step."""
    if len(transitions) < length:
        return np.empty(0, np.int64)
    going_on_B = (np.diff(transitions.episode_B) == 0) & (np.diff(transitions.step_B) == 1)
    broken_B = np.concatenate([[0], np.cumsum(~going_on_B)])
    last = len(transitions) - length + 1
    return np.flatnonzero(broken_B[:last] == broken_B[length - 1 :])


def cut(transitions: Transitions, start_S: Int64, length: int) -> tuple[Items, Float64]:
    """Segments that start at these rows: their items, and the outcome reward of each step (S, H)."""
    row_SH = start_S[:, None] + np.arange(length)
    features_BF = step_features(transitions.obs_BO, transitions.action_BA)
    return {"feature": features_BF[row_SH]}, transitions.outcome_reward_B[row_SH].astype(np.float64)


def step_features(obs_BO: Float32, action_BA: Float32) -> Float32:
    """What a reward model sees of a step: observation and executed action, side by side, shape (B, F)."""
    return np.concatenate([obs_BO, action_BA], axis=1, dtype=np.float32)


def draw_pairs(transitions: Transitions, length: int, count: int, rng: np.random.Generator) -> SegmentPairs:
    """Candidate pairs of segments, all starts equally likely; the two of a pair start at different rows.

    Args:
        transitions: rows in order, see `in_order`.
        length: H.
        count: N.
        rng: what draws.

    Raises:
        InvalidExperiment: no episode, or only one stretch of one, is long enough.
    """
    start_S = segment_starts(transitions, length)
    if len(start_S) < 2:
        raise InvalidExperiment(
            f"the {len(transitions)} transitions collected hold {len(start_S)} stretches of {length} steps, and a pair "
            "takes two",
            field="loop.segment_length",
            value=length,
            remedy="Shorten the segments, or take more real steps before labels are bought",
        )
    first_N = rng.integers(0, len(start_S), size=count)
    second_N = (first_N + rng.integers(1, len(start_S), size=count)) % len(start_S)
    first, first_gold_NH = cut(transitions, start_S[first_N], length)
    second, second_gold_NH = cut(transitions, start_S[second_N], length)
    return SegmentPairs(first, second, first_gold_NH, second_gold_NH)


def preference_variance(first_MN: torch.Tensor, second_MN: torch.Tensor) -> NDArray[np.float64]:
    """Variance over members of the probability that the first is preferred (Christiano et al. 2017, section 2.2.4).

    Args:
        first_MN: members' scores of the first segments.
        second_MN: of the second.

    Returns:
        Between 0 (all agree) and 1/4 (half are certain of either), shape (N,).
    """
    probability_MN = torch.sigmoid(first_MN.double() - second_MN.double())
    return probability_MN.var(dim=0, correction=0).cpu().numpy()


def most_disputed(pairs: SegmentPairs, score: Score, count: int) -> SegmentPairs:
    """The ``count`` pairs that the members disagree most about, in the order they were drawn.

    Raises:
        NonFiniteValue: a member's score is NaN or infinite; the error names the member.
    """
    first_MN, second_MN = score(pairs.first), score(pairs.second)
    for scores_MN in (first_MN, second_MN):
        _require_finite(scores_MN)
    variance_N = preference_variance(first_MN, second_MN)
    return pairs[np.sort(np.argsort(-variance_N, kind="stable")[:count])]


def _require_finite(scores_MN: torch.Tensor) -> None:
    sound_M = torch.isfinite(scores_MN).all(dim=1)
    if not bool(sound_M.all()):
        member = int((~sound_M).nonzero()[0])
        raise NonFiniteValue(
            f"member {member} of the reward model gave a score that is not finite",
            field="proxy",
            value=member,
            remedy="Lower the reward model's learning rate, or look for extreme observations",
        )
