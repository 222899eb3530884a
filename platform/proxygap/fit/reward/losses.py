"""Losses over labeled pairs: settings and mathematics in one small part each; importing them loads no torch.

Shape legend: M members, B pairs. With d = score of the chosen item minus score of the rejected one, the gradients of
every loss here are bounded or linear in d, so no clipping of d is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, NonNegativeFloat, PositiveFloat

from proxygap.base.config import Settings

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PairLabels:
    """What annotators said about pairs, each (M, B): preference 1, or 0.5 for a tie; NaN for no rating."""

    preference_MB: torch.Tensor
    strength_MB: torch.Tensor
    chosen_rating_MB: torch.Tensor
    rejected_rating_MB: torch.Tensor


class PairLoss(Protocol):
    """Loss of a member's scores of both items of a pair."""

    @property
    def needs_ratings(self) -> bool:
        """Whether at least one rated item is needed to learn anything."""
        ...

    def __call__(self, chosen_MB: torch.Tensor, rejected_MB: torch.Tensor, labels: PairLabels) -> torch.Tensor:
        """Loss per member and pair, shape (M, B); its mean over pairs is what a member minimizes."""
        ...


def logistic_loss(d_MB: torch.Tensor, preference_MB: torch.Tensor) -> torch.Tensor:
    """-q log s(d) - (1 - q) log s(-d) in nats, with q the probability that "chosen" is preferred; shape (M, B).

    Written as softplus(-d) + (1 - q) d, whose gradient in d is s(d) - q. At q = 1 it is the Bradley-Terry loss, at
    q = 0.5 that of a tie.
    """
    import torch

    return torch.nn.functional.softplus(-d_MB) + (1.0 - preference_MB) * d_MB


def flipped_loss(d_MB: torch.Tensor, preference_MB: torch.Tensor, flip_share: float) -> torch.Tensor:
    """-log((1 - p) s(d) + p s(-d)) in nats: the likelihood of a label that is flipped with probability p; (M, B).

    Its mean over labels is least where s(d) is the probability before the flips, and a label that contradicts a large
    gap pulls with a vanishing force. A tie is half a label in each direction.
    """
    import torch

    if flip_share == 0.0:
        return logistic_loss(d_MB, preference_MB)
    agree, flip = math.log1p(-flip_share), math.log(flip_share)
    forward_MB, backward_MB = torch.nn.functional.logsigmoid(d_MB), torch.nn.functional.logsigmoid(-d_MB)
    chosen_MB = torch.logaddexp(agree + forward_MB, flip + backward_MB)
    rejected_MB = torch.logaddexp(agree + backward_MB, flip + forward_MB)
    return -preference_MB * chosen_MB - (1.0 - preference_MB) * rejected_MB


def centering_loss(chosen_MB: torch.Tensor, rejected_MB: torch.Tensor) -> torch.Tensor:
    """(r_chosen + r_rejected)^2 (Eisenstein et al. 2023): fixes the constant per prompt that pairs leave free."""
    return (chosen_MB + rejected_MB).square()


class BradleyTerry(Settings):
    """-log s(d) (Bradley and Terry 1952), aware of a known share of flipped labels and of ties."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    flip_share: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of labels taken to be flipped; larger believes single labels less."""
    flip_model: Literal["likelihood", "soft_label"] = "likelihood"
    """How flips enter: the exact likelihood, whose minimum is at the probability before the flips, or 1 - p as a soft
    label (label smoothing), whose minimum for a single label is the finite gap log((1 - p) / p)."""
    center: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)^2; 0 leaves a constant per prompt free: members cannot be compared then."""

    @property
    def needs_ratings(self) -> bool:
        """No."""
        return False

    def __call__(self, chosen_MB: torch.Tensor, rejected_MB: torch.Tensor, labels: PairLabels) -> torch.Tensor:
        """Loss per pair in nats, shape (M, B)."""
        d_MB = chosen_MB - rejected_MB
        if self.flip_model == "likelihood":
            loss_MB = flipped_loss(d_MB, labels.preference_MB, self.flip_share)
        else:
            loss_MB = logistic_loss(d_MB, self.flip_share + (1.0 - 2.0 * self.flip_share) * labels.preference_MB)
        return loss_MB + self.center * centering_loss(chosen_MB, rejected_MB)


class Margin(Settings):
    """-log s(d - margin): the clearer the preference, the larger the gap has to be (Touvron et al. 2023, Eq. 2)."""

    kind: Literal["margin"] = "margin"
    source: Literal["strength", "rating_gap"] = "strength"
    """Where the margin is read: the annotated strength, or chosen minus rejected rating (0 where one is missing)."""
    scale: PositiveFloat = 1.0
    """Score units of margin per unit of strength or rating; larger spreads the scores further apart."""
    center: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)^2."""

    @property
    def needs_ratings(self) -> bool:
        """Where the margin is the gap between ratings."""
        return self.source == "rating_gap"

    def __call__(self, chosen_MB: torch.Tensor, rejected_MB: torch.Tensor, labels: PairLabels) -> torch.Tensor:
        """Loss per pair in nats, shape (M, B); a tie has no margin."""
        if self.source == "strength":
            margin_MB = labels.strength_MB
        else:
            margin_MB = (labels.chosen_rating_MB - labels.rejected_rating_MB).nan_to_num(nan=0.0)
        margin_MB = self.scale * margin_MB * (labels.preference_MB != 0.5)
        loss_MB = logistic_loss(chosen_MB - rejected_MB - margin_MB, labels.preference_MB)
        return loss_MB + self.center * centering_loss(chosen_MB, rejected_MB)


class ScaledBradleyTerry(Settings):
    """-strength * log s(d) (HelpSteer2-Preference; Wang et al. 2024): a pair of strength m counts m times.

    Unlike a margin it does not force the gap itself to be large.
    """

    kind: Literal["scaled_bradley_terry"] = "scaled_bradley_terry"
    center: NonNegativeFloat = 0.01
    """Weight of (r_chosen + r_rejected)^2; it is scaled by the strength too, as repeating the pair would."""

    @property
    def needs_ratings(self) -> bool:
        """No."""
        return False

    def __call__(self, chosen_MB: torch.Tensor, rejected_MB: torch.Tensor, labels: PairLabels) -> torch.Tensor:
        """Loss per pair in nats times the strength, shape (M, B)."""
        loss_MB = logistic_loss(chosen_MB - rejected_MB, labels.preference_MB)
        return labels.strength_MB * (loss_MB + self.center * centering_loss(chosen_MB, rejected_MB))


class Regression(Settings):
    """Squared error of each item's score to its rating; unrated items are left out."""

    kind: Literal["regression"] = "regression"
    center: NonNegativeFloat = 0.0
    """Weight of (r_chosen + r_rejected)^2; above 0 it biases the scores, since ratings fix the constant already."""

    @property
    def needs_ratings(self) -> bool:
        """Yes."""
        return True

    def __call__(self, chosen_MB: torch.Tensor, rejected_MB: torch.Tensor, labels: PairLabels) -> torch.Tensor:
        """Half the summed squared errors of the pair's rated items, in squared rating units, shape (M, B)."""
        loss_MB = self.center * centering_loss(chosen_MB, rejected_MB)
        for score_MB, rating_MB in (
            (chosen_MB, labels.chosen_rating_MB),
            (rejected_MB, labels.rejected_rating_MB),
        ):
            rated_MB = ~rating_MB.isnan()
            loss_MB = loss_MB + 0.5 * rated_MB * (score_MB - rating_MB.nan_to_num(nan=0.0)).square()
        return loss_MB


class RegressionThenScaled(Settings):
    """Regression to ratings first, then scaled Bradley-Terry from there (HelpSteer2-Preference; Wang et al. 2024).

    The paper's second stage has half the learning rate and about a quarter of all updates (317 and 105 at batch 128).
    """

    kind: Literal["regression_then_scaled"] = "regression_then_scaled"
    regression_share: float = Field(default=0.75, gt=0.0, lt=1.0)
    """Share of the epochs spent on regression; each stage has at least one epoch."""
    second_rate: PositiveFloat = 0.5
    """Learning rate of the second stage relative to the first."""
    center: NonNegativeFloat = 0.0
    """Weight of (r_chosen + r_rejected)^2 in the second stage; above 0 it pulls away from the ratings' constant."""

    def stages(self, epochs: int) -> tuple[Stage, ...]:
        """Both stages, for a fit of ``epochs`` epochs in all."""
        first = min(max(1, round(self.regression_share * epochs)), max(1, epochs - 1))
        return (
            Stage(Regression(), first, 1.0),
            Stage(ScaledBradleyTerry(center=self.center), max(1, epochs - first), self.second_rate),
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """One loss, how many epochs it is minimized, and its learning rate relative to the settings'."""

    loss: PairLoss
    epochs: int
    rate: float


RewardLoss = Annotated[
    BradleyTerry | Margin | ScaledBradleyTerry | Regression | RegressionThenScaled, Field(discriminator="kind")
]
"""Any of the losses, picked by ``kind``."""


def stages_of(
    loss: BradleyTerry | Margin | ScaledBradleyTerry | Regression | RegressionThenScaled, epochs: int
) -> tuple[Stage, ...]:
    """What a fit minimizes, in order."""
    return loss.stages(epochs) if isinstance(loss, RegressionThenScaled) else (Stage(loss, epochs, 1.0),)
