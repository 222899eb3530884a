"""What the seeds of a trial ended on, with intervals, in the trial's own journal: numbers that trials are sorted by."""

from __future__ import annotations

from collections.abc import Sequence

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.probe.over_seeds import over_seeds
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal

SIDES = frozenset({Side.OBJECTIVE, Side.OUTCOME})
"""Sides whose last values are aggregated."""


def write_trial_aggregates(
    place: ExperimentFolder, lasts: Sequence[Reading], clocks: Clocks, resamples: int, confidence: float
) -> None:
    """Interquartile mean over seeds of each last value (Agarwal et al. 2021), with its interval; replaces the former.

    Args:
        place: the trial's folder.
        lasts: last evaluation of each seed; none writes nothing.
        clocks: of the trial, summed over seeds.
        resamples: of the bootstrap.
        confidence: of the interval.

    Raises:
        StorageError: the journal cannot be written.
    """
    if not lasts:
        return
    journal = Journal(place.journal)
    try:
        journal.rewind(-1)
        journal.write(Reading(clocks, tuple(_over_seeds(lasts, resamples, confidence))))
    finally:
        journal.close()


def _over_seeds(lasts: Sequence[Reading], resamples: int, confidence: float) -> list[Measurement]:
    by_seed = [{m.key: m for m in reading.measurements if m.side in SIDES} for reading in lasts]
    found: list[Measurement] = []
    for key, first in by_seed[0].items():
        found += over_seeds(first, [each[key].value for each in by_seed if key in each], resamples, confidence)
    return found
