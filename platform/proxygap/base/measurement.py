"""A measurement: name, value, side, unit, direction, and all clocks at which it was taken."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from proxygap.base.clock import Clocks


class Side(StrEnum):
    """Which side of the mismatch a number stands on; also its prefix in every tracker."""

    OBJECTIVE = "objective"
    OUTCOME = "outcome"
    GAP = "gap"
    MODEL = "model"
    WEIGHT = "weight"
    TIME = "time"


class Direction(StrEnum):
    """Which way is better."""

    HIGHER = "higher"
    LOWER = "lower"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number. A non-finite value is allowed: it is a finding, and reports show it as a failure.

    Args:
        name: without the side, ``[a-z0-9_/]`` only, e.g. ``held_out_log_likelihood``.
        value: the number.
        side: objective, outcome, gap, model, weight or time.
        unit: e.g. ``nats``, ``reward``, ``steps``, ``s``; empty for a ratio.
        direction: which way is better.
    """

    name: str
    value: float
    side: Side
    unit: str = ""
    direction: Direction = Direction.NEITHER

    @property
    def key(self) -> str:
        """``side/name``: the metric name in journals, MLflow and reports."""
        return f"{self.side}/{self.name}"


@dataclass(frozen=True, slots=True)
class Reading:
    """All measurements taken at the same clocks: one row of a journal."""

    clocks: Clocks
    measurements: tuple[Measurement, ...]

    def value(self, key: str) -> float:
        """The value of ``side/name``; KeyError when it was not taken."""
        for measurement in self.measurements:
            if measurement.key == key:
                return measurement.value
        raise KeyError(key)
