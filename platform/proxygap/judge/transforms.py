"""Transforms: the aggregated score becomes the reward that is optimized. Settings and mathematics in one part each.

A transform is pure: what it remembers goes in and comes out as arrays, empty at first. `fix` is given the rewards of
answers of the reference policy; a transform whose ``moving`` is true changes its scale while it judges, so no baseline
may be fixed behind it (`Judge` refuses that). Statistics carry no gradient, and all variances are biased (1/n).
Shape legend: B rows, P prompts, J reference answers of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment
from proxygap.base.records import Int64

if TYPE_CHECKING:
    import torch

    from proxygap.base.language import Float64
    from proxygap.base.protocols import Arrays


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of the judged rows beside their scores.

    Confidences are in [0, 1], NaN where none was stated. Without ``update`` statistics are used as they are.
    """

    prompt_B: Int64
    confidence_B: Float64 | None = None
    update: bool = True


class LogSigmoidCentered(Settings):
    """``log sigmoid(r - r_ref(prompt))``: saturates once an answer is good (LSC; Wang et al. 2024, 2402.00742).

    ``r_ref`` is a high quantile of the reference policy's answers to the same prompt. Taken empirically here; the
    paper's Gaussian form of the 0.85 quantile is mean + 1.036 standard deviations.
    """

    kind: Literal["log_sigmoid_centered"] = "log_sigmoid_centered"
    quantile: float = Field(default=0.85, ge=0.0, le=1.0)
    """Which reference answer counts as good: lower stops caring for improvement earlier."""

    needs_reference: ClassVar[bool] = True
    needs_confidence: ClassVar[bool] = False
    moving: ClassVar[bool] = False

    def fix(self, state: Arrays, reward_B: torch.Tensor, prompt_B: Int64) -> Arrays:  # noqa: ARG002 - fixed afresh
        """The baseline of every prompt from rewards of reference answers."""
        prompt_P, groups = _by_prompt(reward_B, prompt_B)
        return {"prompt": prompt_P, "baseline": np.array([np.quantile(group, self.quantile) for group in groups])}

    def __call__(self, reward_B: torch.Tensor, rows: Rows, state: Arrays) -> tuple[torch.Tensor, Arrays]:
        """Transformed reward, shape (B,), negative; the state stays. Raises `InvalidExperiment` for a new prompt."""
        from torch.nn.functional import logsigmoid

        baseline_B = state["baseline"][_places(state, rows.prompt_B)]
        return logsigmoid(reward_B - reward_B.new_tensor(baseline_B)), state


class PreferenceAsReward(Settings):
    """Mean of ``sigmoid(r - r_j)`` over reference answers j of the prompt (PAR; Fu et al. 2025, 2502.18770).

    The probability, under Bradley-Terry, of being preferred to a reference answer: bounded, so a critic can fit it.
    Checked against the authors' code.
    """

    kind: Literal["par"] = "par"
    references: PositiveInt = 10
    """Reference answers kept per prompt: the first ones given; fewer are noisier and cheaper."""

    needs_reference: ClassVar[bool] = True
    needs_confidence: ClassVar[bool] = False
    moving: ClassVar[bool] = False

    def fix(self, state: Arrays, reward_B: torch.Tensor, prompt_B: Int64) -> Arrays:  # noqa: ARG002 - fixed afresh
        """The first reference rewards of every prompt, NaN where a prompt has fewer."""
        prompt_P, groups = _by_prompt(reward_B, prompt_B)
        reference_PJ = np.full((len(prompt_P), min(self.references, max(map(len, groups)))), np.nan)
        for row_J, group in zip(reference_PJ, groups, strict=True):
            row_J[: len(group)] = group[: len(row_J)]
        return {"prompt": prompt_P, "reference": reference_PJ}

    def __call__(self, reward_B: torch.Tensor, rows: Rows, state: Arrays) -> tuple[torch.Tensor, Arrays]:
        """Transformed reward, shape (B,), in (0, 1); the state stays. Raises `InvalidExperiment` for a new prompt."""
        reference_BJ = reward_B.new_tensor(state["reference"][_places(state, rows.prompt_B)])
        return (reward_B[:, None] - reference_BJ).sigmoid().nanmean(dim=1), state


class Clip(Settings):
    """The reward cut off at both ends."""

    kind: Literal["clip"] = "clip"
    low: float = -5.0
    """Rewards below this count as this."""
    high: float = 5.0
    """Rewards above this count as this: a lower value rewards extreme scores less."""

    needs_reference: ClassVar[bool] = False
    needs_confidence: ClassVar[bool] = False
    moving: ClassVar[bool] = False

    @model_validator(mode="after")
    def _ends_in_order(self) -> Clip:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}; swap them")
        return self

    def fix(self, state: Arrays, reward_B: torch.Tensor, prompt_B: Int64) -> Arrays:  # noqa: ARG002 - the seam's
        """Nothing to fix."""
        return state

    def __call__(self, reward_B: torch.Tensor, rows: Rows, state: Arrays) -> tuple[torch.Tensor, Arrays]:  # noqa: ARG002
        """Clipped reward, shape (B,); no state."""
        return reward_B.clamp(self.low, self.high), state


class Whiten(Settings):
    """Rewards shifted and scaled by the mean and deviation of ALL rewards judged so far, this batch included.

    Moments are merged exactly (Chan, Golub and LeVeque 1979, pairwise update): the variance is that of all samples
    about their common mean. Averaging the batches' own variances, or summing squares about a mean that moves, loses
    what lies between batches; peers do both.
    """

    kind: Literal["whiten"] = "whiten"
    shift: bool = True
    """Whether the mean is taken off, too; false only rescales."""
    floor: PositiveFloat = 1e-6
    """Least standard deviation divided by; larger damps the first, nearly constant rewards."""

    needs_reference: ClassVar[bool] = False
    needs_confidence: ClassVar[bool] = False
    moving: ClassVar[bool] = True

    def fix(self, state: Arrays, reward_B: torch.Tensor, prompt_B: Int64) -> Arrays:  # noqa: ARG002 - the seam's
        """Nothing to fix: the statistics are those of judged rewards."""
        return state

    def __call__(self, reward_B: torch.Tensor, rows: Rows, state: Arrays) -> tuple[torch.Tensor, Arrays]:
        """Whitened reward, shape (B,), unchanged before anything was judged; the state is the moments (float64)."""
        moments = state.get("moments", np.zeros(3))
        if rows.update:
            moments = merged_moments(moments, _numbers(reward_B))
        count, mean, squares = moments.tolist()
        if not count:
            return reward_B, state
        deviation = max(self.floor, (squares / count) ** 0.5)
        return (reward_B - mean if self.shift else reward_B) / deviation, {"moments": moments}


class ConfidenceCalibrated(Settings):
    """Pays stated confidence where the reward is above its moving mean, charges it below (PPO-C; Leng et al. 2024).

    ``r' = r + weight * (r - average) * (confidence - 0.5)`` with ``average <- (1 - rate) average + rate mean(r)``,
    moved before it is used (2410.09724; checked against the authors' code). The average starts at the reference
    policy's mean reward. The scores must be those of the answers with the statement of confidence removed.
    """

    kind: Literal["ppo_c"] = "ppo_c"
    weight: NonNegativeFloat = 2.0
    """How much of the reward hangs on the confidence; 0 changes nothing. The paper: 2; its code's default: 0.5."""
    rate: float = Field(default=0.1, gt=0.0, le=1.0)
    """How far the average moves to the mean of each batch; 1 follows the batch."""
    adjustment: Literal["difference", "threshold"] = "difference"
    """``threshold`` uses plus or minus the size of the reward, by its side of the average, in place of the
    difference from it."""

    needs_reference: ClassVar[bool] = True
    needs_confidence: ClassVar[bool] = True
    moving: ClassVar[bool] = True

    def fix(self, state: Arrays, reward_B: torch.Tensor, prompt_B: Int64) -> Arrays:  # noqa: ARG002 - fixed afresh
        """The average starts at the mean of the reference rewards."""
        return {"average": _numbers(reward_B).mean(keepdims=True)}

    def __call__(self, reward_B: torch.Tensor, rows: Rows, state: Arrays) -> tuple[torch.Tensor, Arrays]:
        """Adjusted reward, shape (B,), and the moved average. Raises `InvalidExperiment` off [0, 1]."""
        average = state["average"]
        if rows.update and len(reward_B):
            average = (1 - self.rate) * average + self.rate * _numbers(reward_B).mean()
        difference_B = reward_B - float(average[0])
        if self.adjustment == "threshold":
            difference_B = reward_B.abs().where(difference_B >= 0, -reward_B.abs())
        lean_B = reward_B.new_tensor(_stated(rows.confidence_B) - 0.5)
        return reward_B + self.weight * difference_B * lean_B, {"average": average}


AnyTransform = Annotated[
    LogSigmoidCentered | PreferenceAsReward | Clip | Whiten | ConfidenceCalibrated, Field(discriminator="kind")
]


def merged_moments(moments: Float64, values_B: Float64) -> Float64:
    """Count, mean and sum of squared deviations (3,) of old and new samples together (Chan et al. 1979, Eq. 2.1)."""
    count, mean, squares = moments.tolist()
    if not len(values_B):
        return moments.copy()
    new_mean = float(values_B.mean())
    new_squares = float(np.square(values_B - new_mean).sum())
    both, step = count + len(values_B), new_mean - mean
    mean += step * len(values_B) / both
    return np.array([both, mean, squares + new_squares + step * step * count * len(values_B) / both])


def _numbers(reward_B: torch.Tensor) -> Float64:
    values_B: Float64 = reward_B.detach().double().cpu().numpy()
    return values_B


def _by_prompt(reward_B: torch.Tensor, prompt_B: Int64) -> tuple[Int64, list[Float64]]:
    """The prompts, ascending, and the rewards of each in the order given."""
    order = np.argsort(prompt_B, kind="stable")
    prompt_P, first_P = np.unique(prompt_B[order], return_index=True)
    return prompt_P.astype(np.int64), np.split(_numbers(reward_B)[order], first_P[1:])


def _places(state: Arrays, prompt_B: Int64) -> Int64:
    """Where each row's prompt stands among those of the reference answers."""
    known_P = state["prompt"]
    place_B = np.searchsorted(known_P, prompt_B).clip(max=len(known_P) - 1)
    strange_B = known_P[place_B] != prompt_B
    if strange_B.any():
        raise InvalidExperiment(
            "no answer of the reference policy was judged for this prompt, so it has no baseline",
            field="prompt",
            value=int(prompt_B[strange_B][0]),
            remedy="Give Judging.reference answers to every prompt that training uses",
        )
    return place_B.astype(np.int64)


def _stated(confidence_B: Float64 | None) -> Float64:
    """Confidences, 0.5 (no adjustment) where none was stated."""
    if confidence_B is None:
        raise InvalidExperiment(
            "the rows come without confidences",
            field="judge.transforms.ppo_c",
            remedy="Use ppo_c with a task whose answers state a confidence, or take it out of the transforms",
        )
    stated_B = np.where(np.isnan(confidence_B), 0.5, confidence_B)
    off_B = (stated_B < 0) | (stated_B > 1)
    if off_B.any():
        raise InvalidExperiment(
            "a confidence is a number from 0 to 1",
            field="confidence",
            value=float(stated_B[off_B][0]),
            remedy="Divide by the scale that answers use",
        )
    return stated_B
