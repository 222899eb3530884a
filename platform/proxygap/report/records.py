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
from numpy.typing import ArrayLike, NDArray

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError

Float = NDArray[np.float64]
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
class Distance:
    """Proxy and gold along sqrt(KL) from the reference policy, and what the estimators say of the curve.

    Args:
        curves: per seed that gave one, each as long as it got.
        knee: whether gold turns down, and where; see ``proxygap.probe.knee.Knee``.
        law: the law of over-optimization fitted to all seeds, where it can be.
        aligned: curves of one length, read at the same stage of optimization in every seed; the knee is of these.
    """

    curves: Mapping[int, CurveLike]
    knee: KneeLike
    law: LawLike | None
    aligned: Sequence[CurveLike]


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
        distance: proxy and gold along the distance from a reference policy, where there is one.
        samples: answers kept for a reader, per seed, the worst disagreements first.
        exchangeable: whether evaluations are of models side by side, not of moments one after the other: then no
            neighbors are kept together in a resample, and a seed is summed up by its mean, not by its last evaluation.

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
    distance: Distance | None = None
    samples: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    exchangeable: bool = False

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


class CurveLike(Protocol):
    """One seed's way from the reference, see ``proxygap.probe.overoptimization.Curve``."""

    @property
    def d_T(self) -> Float:
        """sqrt(KL), nats to the one half."""
        ...

    @property
    def gold_T(self) -> Float:
        """Mean gold reward, 0 at the reference, in its standard deviations."""
        ...

    @property
    def proxy_T(self) -> Float:
        """Mean proxy reward."""
        ...


class KneeLike(Protocol):
    """Where gold turns down, see ``proxygap.probe.knee.Knee``."""

    @property
    def found(self) -> bool:
        """Whether it does, with confidence."""
        ...

    @property
    def reason(self) -> str:
        """Why no knee is reported."""
        ...

    @property
    def rising(self) -> bool:
        """Whether that is because gold is highest at the end."""
        ...

    @property
    def d(self) -> IntervalLike:
        """Distance of the peak."""
        ...

    @property
    def kl(self) -> IntervalLike:
        """KL of the peak, nats."""
        ...

    @property
    def gold(self) -> IntervalLike:
        """Gold at the peak."""
        ...

    @property
    def drop(self) -> IntervalLike:
        """Gold lost from the peak to the end, paired per seed; each seed's peak is placed by the others."""
        ...

    @property
    def proxy_rise(self) -> IntervalLike:
        """Proxy gained from the peak to the end, paired per seed; its samples are the seeds used."""
        ...


class LawLike(Protocol):
    """A fitted law, see ``proxygap.probe.overoptimization.LawFit``."""

    @property
    def law(self) -> str:
        """Which form: ``best_of_n`` or ``rl``."""
        ...

    @property
    def alpha(self) -> IntervalLike:
        """First coefficient."""
        ...

    @property
    def beta(self) -> IntervalLike:
        """Second coefficient."""
        ...

    @property
    def peak_d(self) -> IntervalLike:
        """Distance where the law's gold is highest; infinity where it never turns down."""
        ...

    @property
    def r_squared(self) -> float:
        """Share of the variance explained by one curve for all seeds."""
        ...

    @property
    def r_squared_own(self) -> float:
        """Median over seeds of the share explained by a curve of the seed's own."""
        ...

    @property
    def largest_d(self) -> float:
        """The farthest point that was fitted."""
        ...

    def gold(self, d: Float) -> Float:
        """The fitted curve."""
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
        *,
        exchangeable: bool = ...,
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
