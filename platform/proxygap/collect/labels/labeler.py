"""Simulated annotators: pairs of items and their gold rewards in, labeled preferences out.

Shape legend: N pairs, H steps of a segment (1 for answers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from proxygap.base.errors import CheckpointRefused, InvalidExperiment, NonFiniteValue
from proxygap.base.language import Items, Preferences, rows_of
from proxygap.base.protocols import State
from proxygap.base.records import Bool, Float32, Int64
from proxygap.base.seeds import generator, generator_state, restore_generator

if TYPE_CHECKING:
    from proxygap.base.language import Float64
    from proxygap.collect.labels.settings import Labels


class Labeler:
    """Annotators at work (`Stateful`): the position of the random numbers is all that they remember.

    Every pair uses up the same random numbers whatever the settings, so the same seed with another fault is the same
    annotators with that fault only; and labeling in two calls gives the labels of one.

    Args:
        settings: the annotators' faults.
        seed: the seed that biases and errors are drawn from.
    """

    def __init__(self, settings: Labels, seed: int) -> None:
        self._settings = settings
        spread = generator(seed, "labels/bias").standard_normal(settings.annotators)
        self._bias_of = settings.bias + settings.bias_spread * spread
        self._choices = generator(seed, "labels/choices")
        self._ratings = generator(seed, "labels/ratings")

    @property
    def biases(self) -> Float64:
        """Each annotator's own bias along the style statistic, one per annotator."""
        return self._bias_of.copy()

    def label(
        self,
        first: Items,
        second: Items,
        first_gold_NH: Float64,
        second_gold_NH: Float64,
        first_style_N: Float64 | None = None,
        second_style_N: Float64 | None = None,
    ) -> Preferences:
        """Have every pair labeled by one annotator.

        Args:
            first: N items.
            second: the N items that they are compared with, row by row.
            first_gold_NH: gold reward of each step of the first items, shape (N, H); H = 1 for answers.
            second_gold_NH: the same of the second.
            first_style_N: style statistic of the first items, needed where the settings are ``biased``.
            second_style_N: the same of the second.

        Returns:
            The pairs in the order given, preferred item as chosen; in a tie the first is called chosen.

        Raises:
            NonFiniteValue: for a gold reward or a style that is not a number.
            InvalidExperiment: for a missing style, or columns that do not fit.
        """
        golds = (_checked("first_gold_NH", first_gold_NH, first), _checked("second_gold_NH", second_gold_NH, second))
        styles = (
            self._style("first_style_N", first_style_N, first),
            self._style("second_style_N", second_style_N, second),
        )
        chance_N3 = self._choices.random((len(golds[0]), 3))
        error_N2 = self._ratings.standard_normal((len(golds[0]), 2))
        annotator_N = (chance_N3[:, 0] * self._settings.annotators).astype(np.int64)
        seen_N2 = np.stack(
            [
                self._discounted(gold) + self._bias_of[annotator_N] * style
                for gold, style in zip(golds, styles, strict=True)
            ],
            axis=1,
        )
        gap_N = seen_N2[:, 0] - seen_N2[:, 1]
        tie_N = np.abs(gap_N) < self._settings.tie_threshold
        swap_N = ~tie_N & ~self._first_wins(gap_N, chance_N3[:, 1], chance_N3[:, 2])
        rating_N2 = self._rated(seen_N2, error_N2)
        return Preferences(
            chosen=_mixed(first, second, swap_N),
            rejected=_mixed(second, first, swap_N),
            tie_N=tie_N,
            strength_N=self._strength(gap_N, tie_N),
            annotator_N=annotator_N,
            chosen_rating_N=np.where(swap_N, rating_N2[:, 1], rating_N2[:, 0]),
            rejected_rating_N=np.where(swap_N, rating_N2[:, 0], rating_N2[:, 1]),
        )

    def state(self) -> State:
        """A complete copy."""
        positions = {"choices": generator_state(self._choices), "ratings": generator_state(self._ratings)}
        return State({"bias": self._bias_of.copy()}, positions)

    def load_state(self, state: State) -> None:
        """Become the annotators that ``state`` was taken from. Raises `CheckpointRefused` for fewer or more of them."""
        if len(state.arrays["bias"]) != self._settings.annotators:
            raise CheckpointRefused(
                f"the state of {len(state.arrays['bias'])} annotators",
                field="labels.annotators",
                value=self._settings.annotators,
                remedy="Resume with the experiment that wrote the checkpoint",
            )
        self._bias_of = state.arrays["bias"].copy()
        restore_generator(self._choices, state.structure["choices"])
        restore_generator(self._ratings, state.structure["ratings"])

    def _discounted(self, gold_NH: Float64) -> Float64:
        """What the steps are worth to an annotator: ``sum_h myopic^(H-1-h) gold_h`` (B-Pref; Lee et al. 2021)."""
        weight_H = self._settings.myopic ** np.arange(gold_NH.shape[1] - 1, -1, -1.0)
        worth_N: Float64 = gold_NH @ weight_H
        return worth_N

    def _first_wins(self, gap_N: Float64, chance_N: Float64, mistake_N: Float64) -> Bool:
        """Bradley-Terry at the temperature; the better one at 0, a fair coin where there is none; then flips."""
        if self._settings.temperature:
            odds_N = np.exp(-np.logaddexp(0.0, -gap_N / self._settings.temperature))  # sigmoid, without overflow
        else:
            odds_N = np.heaviside(gap_N, 0.5)
        wins_N: Bool = (chance_N < odds_N) ^ (mistake_N < self._settings.flip)
        return wins_N

    def _strength(self, gap_N: Float64, tie_N: Bool) -> Float32:
        levels = self._settings.strength_levels
        if not levels:
            return np.ones(len(gap_N), np.float32)
        level_N = np.clip(1 + np.floor(np.abs(gap_N) / self._settings.strength_step), 1, levels)
        return np.where(tie_N, 1.0, level_N).astype(np.float32)

    def _rated(self, seen_N2: Float64, error_N2: Float64) -> Float32:
        if not self._settings.ratings:
            return np.full(seen_N2.shape, np.nan, np.float32)
        return (seen_N2 + self._settings.rating_noise * error_N2).astype(np.float32)

    def _style(self, field: str, style_N: Float64 | None, items: Items) -> Float64:
        if style_N is not None:
            return _checked(field, style_N[:, None], items)[:, 0]
        if self._settings.biased:
            raise InvalidExperiment(
                "biased annotators need a style statistic of every item",
                field=field,
                remedy="Name a style that the task has, or set labels.bias and labels.bias_spread to 0",
            )
        return np.zeros(rows_of(items))


def _checked(field: str, number_NH: Float64, items: Items) -> Float64:
    if number_NH.ndim != 2 or len(number_NH) != rows_of(items):
        raise InvalidExperiment(
            f"one row for each of {rows_of(items)} items is expected",
            field=field,
            value=number_NH.shape,
            remedy="Give gold rewards as (pairs, steps), with one step for answers",
        )
    bad_N = ~np.isfinite(number_NH).all(axis=1)
    if bad_N.any():
        row = int(np.flatnonzero(bad_N)[0])
        raise NonFiniteValue(
            f"item {row} has no finite value, so it cannot be compared",
            field=field,
            value=number_NH[row].tolist(),
            remedy="Look at the task's gold reward of that item",
        )
    return number_NH.astype(np.float64)


def _mixed(items: Items, others: Items, swap_N: Bool) -> dict[str, Int64 | Float32]:
    """The items, but the others where ``swap_N``."""
    return {
        name: np.where(swap_N.reshape(-1, *[1] * (column.ndim - 1)), others[name], column)
        for name, column in items.items()
    }
