"""What the seeds of one experiment come to together: the numbers that runs and trials are sorted by."""

from __future__ import annotations

from collections.abc import Sequence

from proxygap.base.measurement import Measurement
from proxygap.base.seeds import generator
from proxygap.probe.statistics import stratified_bootstrap


def over_seeds(
    measured: Measurement, value_S: Sequence[float], resamples: int, confidence: float
) -> tuple[Measurement, ...]:
    """Interquartile mean over seeds (Agarwal et al. 2021) and its interval: ``NAME/iqm``, ``NAME/iqm_low``, ``_high``.

    Args:
        measured: whose name, side, unit and direction they take.
        value_S: its value in each seed.
        resamples: of the bootstrap, seeded by the measurement's key.
        confidence: of the interval.
    """
    it = stratified_bootstrap(value_S, generator(0, f"aggregate/{measured.key}"), resamples, confidence)
    ends = {"iqm": it.estimate, "iqm_low": it.low, "iqm_high": it.high}
    side, unit, direction = measured.side, measured.unit, measured.direction
    return tuple(Measurement(f"{measured.name}/{end}", value, side, unit, direction) for end, value in ends.items())
