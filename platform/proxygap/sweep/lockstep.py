"""All seeds of a trial in one process, evaluation by evaluation, so that a report is of one moment of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxygap.base.clock import Clocks
from proxygap.base.errors import RunFailed, Superseded
from proxygap.base.measurement import Reading, Side
from proxygap.experiment import SELF_PACED, Experiment
from proxygap.loops.recovery import RayLost
from proxygap.loops.seed_run import SeedRun, is_evaluation
from proxygap.probe.statistics import iqm
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder
from proxygap.record.rows import ReadingRow, read_journal

REPORTED = frozenset({Side.OBJECTIVE, Side.OUTCOME, Side.GAP, Side.MODEL, Side.TIME})
"""Sides whose measurements are reported; weights are found in the journals of the seeds."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a trial stands at a report: interquartile means over its seeds, clocks summed over them."""

    index: int
    real_step: int
    values: Mapping[str, float]
    clocks: Mapping[str, int]
    last: bool


@dataclass
class _Seed:
    place: SeedFolder
    run: SeedRun | None
    evaluations: Iterator[Reading]
    readings: list[Reading] = field(default_factory=list)
    ended: bool = False

    @property
    def clocks(self) -> Clocks:
        """The clocks now, or those of the last evaluation where the seed had finished before."""
        if self.run is not None:
            return self.run.clocks
        return self.readings[-1].clocks if self.readings else Clocks()


class Lockstep:
    """The seeds of one trial. Each goes forward to the next report before any goes beyond it.

    Args:
        experiment: what every seed runs.
        place: the trial's folder.
        keys: identity of the checkpoints, by seed.
        per_report: evaluations between two reports.
        stop: asked after every iteration; true stops every seed with a checkpoint.
        publish: called whenever a seed has recorded something that is to be kept elsewhere too.
    """

    def __init__(
        self,
        experiment: Experiment,
        place: ExperimentFolder,
        keys: Mapping[int, str],
        per_report: int,
        stop: Callable[[], bool],
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._publish = publish
        self._per_report, self._budget = per_report, experiment.loop.real_steps
        self._stopping = False
        self._stop = stop
        self._seeds = [self._open(experiment, place.seed(seed), keys[seed]) for seed in experiment.seeds]

    def _open(self, experiment: Experiment, place: SeedFolder, key: str) -> _Seed:
        status = place.status()
        if status is not None and status.state is RunState.FINISHED:
            return _Seed(place, None, iter(recorded_evaluations(place)))
        run = SeedRun(experiment, place.seed, place, lambda _: None, self._stop_asked, key=key, publish=self._publish)
        return _Seed(place, run, run.evaluations())

    def _stop_asked(self) -> bool:
        self._stopping = self._stopping or self._stop()
        return self._stopping

    def spent(self) -> dict[str, int]:
        """Clocks now, summed over seeds."""
        return summed([each.clocks for each in self._seeds])

    def advance(self, index: int) -> Stretch | None:
        """Bring all seeds to report ``index`` (from 1 on), or to their end; None: asked to stop on the way.

        Raises:
            RunFailed: a seed failed, named with the reason; the others are checkpointed.
            Superseded: a newer attempt has the trial.
        """
        for each in self._seeds:
            try:
                self._bring(each, index * self._per_report)
            except (Superseded, RayLost):
                raise
            except Exception as error:
                raise RunFailed(f"seed {each.place.seed} failed: {type(error).__name__}: {error}") from error
            if self._stopping:
                return None
        return self._stretch(index)

    def _bring(self, each: _Seed, evaluations: int) -> None:
        while len(each.readings) < evaluations and not each.ended:
            reading = next(each.evaluations, None)
            if reading is None:
                each.ended = True
                return
            each.readings.append(reading)
        if each.readings[-1].clocks.real_step >= self._budget:  # what a finished run leaves is written now
            each.ended = next(each.evaluations, None) is None

    def _stretch(self, index: int) -> Stretch:
        lengths = {min(len(each.readings), index * self._per_report) for each in self._seeds}
        if len(lengths) > 1 or 0 in lengths:
            raise RunFailed(f"the seeds were measured at different moments: {sorted(lengths)} evaluations")
        at = lengths.pop() - 1
        readings = {each.place.seed: each.readings[at] for each in self._seeds}
        now = next(iter(readings.values())).clocks.real_step
        clocks = summed([reading.clocks for reading in readings.values()])
        return Stretch(index, now, aggregated(readings) | named(clocks), clocks, last=now >= self._budget)

    def readings(self, index: int) -> dict[int, Reading]:
        """Each seed's evaluation at report ``index``."""
        return {each.place.seed: each.readings[: index * self._per_report][-1] for each in self._seeds}

    def lasts(self) -> list[Reading]:
        """Each seed's newest evaluation, of those that have one."""
        return [each.readings[-1] for each in self._seeds if each.readings]

    def checkpoint(self) -> None:
        """A checkpoint of every seed at this very moment."""
        for each in self._seeds:
            if each.run is not None and each.readings and not each.ended:
                each.run.checkpoint()

    def close(self, state: RunState | None = None, reason: str = "") -> None:
        """End all seeds that have not ended, and say in their status how; None leaves the status to others."""
        for each in self._seeds:
            if isinstance(each.evaluations, Generator):
                each.evaluations.close()
            status = each.place.status()
            open_ended = status is not None and status.state in (RunState.RUNNING, RunState.INTERRUPTED)
            if state is not None and open_ended:
                each.place.set_status(state, reason)


def recorded_evaluations(place: SeedFolder) -> list[Reading]:
    """The evaluations that a seed's journal keeps."""
    rows = read_journal(place.journal)
    return [row.reading for row in rows if isinstance(row, ReadingRow) and is_evaluation(row.reading)]


def aggregated(readings: Mapping[int, Reading]) -> dict[str, float]:
    """Interquartile mean over seeds of each measurement; those that are not a number in every seed are left out."""
    by_seed = [{m.key: m.value for m in reading.measurements if m.side in REPORTED} for reading in readings.values()]
    columns = {key: [values.get(key, math.nan) for values in by_seed] for key in by_seed[0]}
    return {key: iqm(column) for key, column in columns.items() if all(map(math.isfinite, column))}


def summed(clocks: Sequence[Clocks]) -> dict[str, int]:
    """Clocks added up."""
    each_S = [each.as_dict() for each in clocks]
    return {name: sum(each[name] for each in each_S) for name in Clocks().as_dict()}


def named(clocks: Mapping[str, int]) -> dict[str, float]:
    """Clocks as values that a goal may name."""
    return {f"clock/{name}": float(reading) for name, reading in clocks.items()}


def evaluations_per_report(experiment: Experiment, report_every: int | None) -> int:
    """Evaluations of a seed between two reports."""
    if experiment.loop.kind in SELF_PACED or report_every is None:
        return 1
    return max(1, report_every // experiment.probe_every)
