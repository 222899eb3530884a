"""What a report is made of: records only, so that it can be made again at any time without a run.

Also the estimators that a report needs. They live in another stage, so they are handed in: the module
``proxygap.probe.statistics`` is a `Statistics`.

Shape legend: N pairs in order of time, S seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError

Method = Literal["pearson", "spearman", "kendall"]
METHODS: tuple[Method, ...] = ("pearson", "spearman", "kendall")
COLUMNS = ("seed", "key", "side", "name", "value", "unit", "direction", *Clocks().as_dict(), "time")
"""Columns of ``ReportInput.measurements``, one row per number; ``time`` in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class SeedRecord:
    """How one run ended; a failed one is a row like any other."""

    seed: int
    state: Literal["finished", "failed", "interrupted", "running"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened in a run: a restart, a refusal, an interruption."""

    seed: int | None
    kind: str
    real_step: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportInput:
    """One experiment as its records tell it.

    Args:
        name: the experiment's name.
        question: what it asks.
        resolved_yaml: the resolved experiment, as text.
        outcomes: names of the declared outcomes; the first is set against the objective.
        objective: name of the objective in the verdict; None takes the first measured one.
        seeds: all seeds, failed ones included.
        measurements: columns `COLUMNS`.
        provenance: versions, commit, hash, machine; shown as they are.
        events: in order of time.
        confidence: coverage of every interval.
        resamples: bootstrap resamples behind every interval.

    Raises:
        StorageError: a column is missing.
    """

    name: str
    question: str
    resolved_yaml: str
    outcomes: tuple[str, ...]
    objective: str | None
    seeds: tuple[SeedRecord, ...]
    measurements: pd.DataFrame
    provenance: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[EventRecord, ...] = ()
    confidence: float = 0.95
    resamples: int = 2000

    def __post_init__(self) -> None:
        """Refuse a table that no report can be made of."""
        if missing := [name for name in COLUMNS if name not in self.measurements.columns]:
            raise StorageError(
                f"the measurements lack the columns {missing}",
                field=self.name,
                remedy="Read them from the journals again",
            )


class IntervalLike(Protocol):
    """An estimate, its interval, and what it was made of; see ``proxygap.probe.statistics.Interval``."""

    @property
    def estimate(self) -> float:
        """The number; NaN when it cannot be made."""
        ...

    @property
    def low(self) -> float:
        """Lower end."""
        ...

    @property
    def high(self) -> float:
        """Upper end."""
        ...

    @property
    def samples(self) -> int:
        """Pairs or values used."""
        ...

    @property
    def dropped(self) -> int:
        """Pairs or values that were not finite."""
        ...

    @property
    def reason(self) -> str:
        """Why there is no estimate, or why it deserves little trust."""
        ...

    @property
    def known(self) -> bool:
        """Whether estimate and both ends are finite."""
        ...


class Statistics(Protocol):
    """The estimators of ``proxygap.probe.statistics``, which says what they do."""

    def rank_correlation(
        self,
        x: ArrayLike,
        y: ArrayLike,
        method: Method,
        rng: np.random.Generator,
        resamples: int = ...,
        confidence: float = ...,
        block_length: int | None = ...,
    ) -> IntervalLike:
        """Correlation of N pairs."""
        ...

    def pooled_correlation(
        self,
        pairs: Sequence[tuple[ArrayLike, ArrayLike]],
        method: Method,
        rng: np.random.Generator,
        resamples: int = ...,
        confidence: float = ...,
    ) -> IntervalLike:
        """Mean over seeds of the correlation within each."""
        ...

    def stratified_bootstrap(
        self, values: ArrayLike, rng: np.random.Generator, resamples: int = ..., confidence: float = ...
    ) -> IntervalLike:
        """Interquartile mean over S seeds."""
        ...

    def paired_difference(self, a: ArrayLike, b: ArrayLike, confidence: float = ...) -> IntervalLike:
        """Mean difference over S equal seeds."""
        ...

    def default_block_length(self, samples: int) -> int:
        """Block length for N points of one run."""
        ...
