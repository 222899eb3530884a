"""Settings of simulated annotators; importing them loads neither torch nor pyarrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings

if TYPE_CHECKING:
    from proxygap.collect.labels.labeler import Labeler


class Labels(Settings):
    """Annotators that compare items by their gold reward, with faults to choose (B-Pref; Lee et al. 2021, 2111.03026).

    What annotator a sees in an item is ``sum_h myopic^(H-1-h) * gold_h + bias_a * style``; the gap of a pair is the
    difference of what is seen in its two items, in units of the gold reward that the labeler is given.
    """

    file: str | None = None
    """Path or URI of a parquet file with labeled pairs of token answers, used instead of simulated annotators: one that
    a run has kept, or one with the field's columns ``prompt``, ``chosen``, ``rejected``."""
    repeats: Literal["refuse", "keep"] = "refuse"
    """Whether a file may label one pair twice by the same annotator, in the same or in opposite ways."""
    pairs: PositiveInt = 1000
    """Pairs labeled before training starts, of each component where the task pays several; more make a better reward
    model."""
    temperature: NonNegativeFloat = 1.0
    """Bradley-Terry: the first is preferred with probability sigmoid(gap / temperature). 0 always prefers the better;
    larger errs more often where the gap is small."""
    flip: float = Field(default=0.0, ge=0.0, le=0.4)
    """Probability that a preference is written down the wrong way round, whatever the gap; ties are not flipped."""
    tie_threshold: NonNegativeFloat = 0.0
    """Pairs with a gap smaller than this are called a tie; 0 never calls one."""
    myopic: float = Field(default=1.0, gt=0.0, le=1.0)
    """Weight of each step relative to the next one; below 1 the annotators remember the end of a segment best."""
    annotators: PositiveInt = 1
    """How many annotators share the pairs, each pair going to one of them at random."""
    bias: float = 0.0
    """What all annotators add per unit of a style statistic (say, length): an error that all reward models learn."""
    bias_spread: NonNegativeFloat = 0.0
    """Standard deviation of the annotators' own biases around ``bias``."""
    strength_levels: int = Field(default=0, ge=0, le=100)
    """How many strengths annotators tell apart, 1 the weakest; 0 gives every pair strength 1."""
    strength_step: PositiveFloat = 1.0
    """Gap between two strengths: strength is 1 + floor(gap / step), at most ``strength_levels``."""
    ratings: bool = False
    """Whether both items of a pair are also rated on their own, by what the annotator sees in them."""
    rating_noise: NonNegativeFloat = 0.0
    """Standard deviation of the error of each rating, in units of the gold reward."""

    @model_validator(mode="after")
    def _noise_needs_ratings(self) -> Labels:
        if self.rating_noise and not self.ratings:
            raise ValueError(f"rating_noise = {self.rating_noise:g} has no ratings to act on; set ratings to true")
        return self

    @property
    def biased(self) -> bool:
        """Whether the annotators look at a style statistic, which `Labeler.label` then needs."""
        return self.bias != 0.0 or self.bias_spread > 0.0

    def labeler(self, seed: int) -> Labeler:
        """Annotators whose biases and errors are drawn from this seed."""
        from proxygap.collect.labels.labeler import Labeler

        return Labeler(self, seed)
