"""One trial in its process: the experiment of one setting, all of its seeds in lockstep, reported stretch by stretch.

A trial ends in one of six ways, told by its last report: it finished; it was ordered to stop; the sweep stops or a
budget is spent (interrupted: a resumed sweep continues it); it failed by itself; a newer attempt has taken it over; or
its process died, and then Tune takes it up again from its checkpoints, on whatever node. Only the process of the sweep
writes the ledger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from proxygap.base.clock import Clocks
from proxygap.base.config import canonical_hash
from proxygap.base.errors import ProxyGapError, RunFailed, StorageError, Superseded
from proxygap.base.measurement import Reading
from proxygap.experiment import Experiment
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.sweep.aggregates import write_trial_aggregates
from proxygap.sweep.book import settle
from proxygap.sweep.exchange import exploit, snapshot
from proxygap.sweep.load import LoadedSweep
from proxygap.sweep.lockstep import Lockstep, Stretch, evaluations_per_report
from proxygap.sweep.messages import Inbox, Order, SweepGone
from proxygap.sweep.resources import trial_premises
from proxygap.sweep.settings import PopulationBased
from proxygap.sweep.space import experiment_of, recorded_equals
from proxygap.sweep.trial_records import Shelf, TrialRecords, Unreachable, records_of
from proxygap.yaml_file import yaml_text

log = logging.getLogger("proxygap")
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What all trials of a sweep share: the sweep, its hash, where its records are, and what each one records of it."""

    loaded: LoadedSweep
    shelf: Shelf
    sweep_hash: str
    provenance: Mapping[str, Any]


def run_trial(job: Job, number: int, report: Report, inbox: Inbox) -> None:
    """Run trial ``number`` from where its records say it was left; every report is ``{"report": JSON}``."""
    try:
        with records_of(job.shelf, number, lambda: bool(inbox.stopping())) as records:
            Trial(job, records, report, inbox).run()
    except Superseded as error:
        report({"report": json.dumps({"superseded": _line(error)})})
    except (SweepGone, Unreachable) as error:
        report(interrupted(str(error)))
    except ProxyGapError as error:  # the lock, or records that cannot be taken up
        report(failed(error))


class Trial:
    """One trial, while its process has it."""

    def __init__(self, job: Job, records: TrialRecords, report: Report, inbox: Inbox) -> None:
        self.job, self.records, self._report, self._inbox = job, records, report, inbox
        self.number, self.place = records.number, records.place
        self.assignment = inbox.assignment()
        self.setting = dict(self.assignment.setting)
        self.sweep = job.loaded.sweep
        self._spent_before: dict[str, int] | None = None
        self._kept = False
        self.why = ""

    def run(self) -> None:
        """Report stretch after stretch, until the trial ends in one way or another."""
        self.lockstep: Lockstep | None = None
        hosts = contextlib.ExitStack()
        if self.assignment.stop:
            settle(self.place, RunState.INTERRUPTED, self.assignment.stop)
            self._kept = self.records.publish(self._must_stop)
            return self._leave()
        try:
            self._check_recorded()
            self._begin()
            hosts.enter_context(trial_premises(self.experiment, self.sweep, self.job.shelf.folder.path.name))
            self._climb()
        except Superseded:
            raise
        except (SweepGone, Unreachable) as error:
            self.why = str(error)
            self._interrupt()
        except Exception as error:
            log.exception("trial %d failed", self.number)
            message = failed(error)
            self._end(RunState.INTERRUPTED, f"the trial failed: {_line(error)}")
            self._report(message)
            self._leave()
        finally:  # also where Tune ends the thread
            if self.lockstep is not None:
                self.lockstep.close()
            hosts.close()

    def _begin(self) -> None:
        """Build the experiment of the setting, record it, and open its seeds."""
        experiment = experiment_of(self.job.loaded, self.setting, self.number)
        describe(self.job, self.place, self.number, experiment)
        recorded_equals(self.place.experiment, self.setting)
        per_report = evaluations_per_report(experiment, self.sweep.report_every)
        keys = {seed: run_key(self.job.sweep_hash, self.number, seed) for seed in experiment.seeds}
        publish = self.records.publish_now_and_then
        self.lockstep = Lockstep(experiment, self.place, keys, per_report, self._must_stop, publish)
        self.experiment = experiment

    def _climb(self) -> None:
        assert self.lockstep is not None
        index, change = 0, self.assignment.change
        while True:
            index += 1
            stretch = None if self._must_stop() else self.lockstep.advance(index)
            if stretch is None:
                return self._interrupt()
            compares, order = self._compares(stretch), None
            if index > self.assignment.reported:
                self._check(stretch)
                if compares:
                    self.lockstep.checkpoint()
                    snapshot(self.place, index)
                    if not self.records.publish(self._must_stop):
                        return self._interrupt()
                if stretch.last and not self._end(RunState.FINISHED):
                    return self._interrupt()
                self._report({"report": json.dumps(asdict(stretch))})
                order = self._inbox.order(index)
            if order is not None and order.stop:
                self._end(RunState.INTERRUPTED, order.stop)
                return self._leave()
            if stretch.last:
                return self._leave()
            if compares and index >= self.assignment.reported:
                if change.get("index") == index:
                    order = Order(index, donor=change["donor"], setting=self.setting)
                elif not (index == self.assignment.reported and self.assignment.compared):
                    order = order or self._inbox.await_order(index, self._must_stop)
                    if order is None:
                        return self._interrupt()
                self._follow(order)

    def _compares(self, stretch: Stretch) -> bool:
        scheduler = self.sweep.scheduler
        if not isinstance(scheduler, PopulationBased) or stretch.last:
            return False
        return stretch.real_step % scheduler.every == 0

    def _follow(self, order: Order | None) -> None:
        """Continue from the donor's state under the new setting, where that was ordered."""
        if order is None or order.donor is None:
            return
        assert self.lockstep is not None
        self.lockstep.close()
        with self.records.snapshot_of(order.donor, order.index) as donor:
            for seed in self.experiment.seeds:
                keys = run_key(self.job.sweep_hash, order.donor, seed), run_key(self.job.sweep_hash, self.number, seed)
                keep = self.experiment.record.keep_checkpoints
                exploit(self.place.seed(seed), donor, order.index, keys, keep, donor_number=order.donor)
        self.setting = dict(order.setting)
        self._begin()

    def _must_stop(self) -> bool:
        """Whether no further iteration may begin, and why."""
        if stopping := self._inbox.stopping():
            self.why = stopping
        elif self.assignment.deadline is not None and time.time() >= self.assignment.deadline:
            self.why = f"sweep.budget.wall_s = {self.sweep.budget.wall_s} was spent"
        elif self.assignment.allowance and self.lockstep is not None:
            self.why = self._overspent(self.lockstep.spent()) or self.why
        return bool(self.why)

    def _overspent(self, spent: Mapping[str, int]) -> str:
        before = self._spent_before = self._spent_before or dict(spent)
        for clock, allowed in self.assignment.allowance.items():
            if spent[clock] - before[clock] >= allowed:
                return f"sweep.budget.{clock} = {getattr(self.sweep.budget, clock)} was spent"
        return ""

    def _check(self, stretch: Stretch) -> None:
        """Refuse a report that lacks what the sweep chooses by.

        A gap may be unknown until there are evaluations enough, but not at the end.

        Raises:
            RunFailed: naming the metric, the moment and the seeds.
        """
        assert self.lockstep is not None
        for goal in self.sweep.goals:
            early = goal.metric.startswith("gap/") and not stretch.last
            if goal.metric not in stretch.values and not early:
                raise RunFailed(_lacking(goal.metric, stretch.real_step, self.lockstep.readings(stretch.index)))

    def _interrupt(self) -> None:
        if self.lockstep is not None:
            self.lockstep.checkpoint()
        self._end(RunState.INTERRUPTED, self.why)
        self._report(interrupted(self.why))

    def _leave(self) -> None:
        """The trial has ended for good."""
        if self._kept:
            self.records.forget()

    def _check_recorded(self) -> None:
        """Refuse the records of another setting: of a sweep whose ledger in storage was behind when it was lost.

        Raises:
            StorageError: naming the first field that differs.
        """
        recorded = self.place.experiment
        if recorded and not isinstance(self.sweep.scheduler, PopulationBased):  # a population changes its settings
            recorded_equals(recorded, self.setting)

    def _end(self, state: RunState, reason: str = "") -> bool:
        """Close the seeds, say how they ended, aggregate what they measured, and publish it.

        Returns:
            Whether others find it; False: asked to stop while storage did not answer.

        Raises:
            Superseded: a newer attempt has the trial.
        """
        if self.lockstep is not None:
            self.lockstep.close(state, reason)
            with contextlib.suppress(StorageError):  # of a trial that failed because the disk is full
                lasts, probe = self.lockstep.lasts(), self.experiment.probe
                clocks = Clocks(**self.lockstep.spent())
                write_trial_aggregates(self.place, lasts, clocks, probe.resamples, probe.confidence)
        self._kept = self.records.publish(self._must_stop)
        return self._kept


def describe(job: Job, place: ExperimentFolder, number: int, experiment: Experiment) -> None:
    """Record a trial's experiment; it may change as a population is trained, and its identity does not."""
    resolved, identity = experiment.model_dump(mode="json"), trial_hash(job.sweep_hash, number)
    provenance = {**job.provenance, "experiment_hash": identity, "seeds": list(experiment.seeds)}
    place.create(experiment_hash=identity, yaml_text=yaml_text(resolved), resolved=resolved, provenance=provenance)


def trial_hash(sweep_hash: str, number: int) -> str:
    """Identity of a trial: that of its sweep and its number."""
    return canonical_hash({"sweep": sweep_hash, "trial": number})


def run_key(sweep_hash: str, number: int, seed: int) -> str:
    """Identity of the checkpoints of one seed of a trial, whatever its setting is by now."""
    return canonical_hash({"sweep": sweep_hash, "trial": number, "seed": seed})


def interrupted(why: str) -> dict[str, str]:
    """The report of a trial that a resumed sweep continues."""
    return {"report": json.dumps({"interrupted": why})}


def failed(error: BaseException) -> dict[str, str]:
    """The report of a trial that failed."""
    return {"report": json.dumps({"failed": _line(error)})}


def _line(error: BaseException) -> str:
    text = error.problem if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:1000]


def _lacking(metric: str, real_step: int, readings: Mapping[int, Reading]) -> str:
    values = {seed: {m.key: m.value for m in reading.measurements}.get(metric) for seed, reading in readings.items()}
    absent = [str(seed) for seed, value in values.items() if value is None]
    if absent:
        return f"{metric} was not measured at {real_step} real steps (seeds {', '.join(absent)})"
    wrong = [f"{value} in seed {seed}" for seed, value in values.items() if value and not math.isfinite(value)]
    return f"{metric} is no number at {real_step} real steps: {', '.join(wrong)}"


def leave_tunes_folder(folder: str) -> None:
    """Tune moves each trial into a folder of its own; relative paths of an experiment start elsewhere."""
    if os.path.isdir(folder):  # noqa: PTH112
        os.chdir(folder)
