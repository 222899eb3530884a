"""A seeded choice of rows: whole episodes as long as they fit, or single transitions.

Shape legend: B transitions, K episodes.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from proxygap.base.errors import InvalidExperiment
from proxygap.base.records import Int64, Transitions

Choose = Literal["episodes", "transitions"]


def bounded(transitions: Transitions, rows: int | None, choose: Choose, rng: np.random.Generator) -> Transitions:
    """At most ``rows`` of the transitions (None: all), in the order in which they were.

    Args:
        transitions: rows of one episode may be anywhere.
        rows: most rows.
        choose: ``episodes`` takes whole ones in a random order, leaving out each that does not fit any more;
            ``transitions`` takes exactly ``rows``.
        rng: decides.

    Raises:
        InvalidExperiment: every episode is longer than ``rows``.
    """
    if rows is None or len(transitions) <= rows:
        return transitions
    if choose == "transitions":
        return transitions[np.sort(rng.choice(len(transitions), rows, replace=False))]
    _, place_B, length_K = np.unique(transitions.episode_B, return_inverse=True, return_counts=True)
    chosen_K = _fitting(length_K, rows, rng)
    if not chosen_K.any():
        raise InvalidExperiment(
            f"no episode is that short: the shortest has {length_K.min()} steps",
            field="rows",
            value=rows,
            remedy="Raise it, or set choose: transitions",
        )
    return transitions[np.flatnonzero(chosen_K[place_B])]


def _fitting(length_K: Int64, room: int, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    chosen_K = np.zeros(len(length_K), np.bool_)
    for episode in rng.permutation(len(length_K)).tolist():
        if length_K[episode] <= room:
            chosen_K[episode] = True
            room -= int(length_K[episode])
    return chosen_K
