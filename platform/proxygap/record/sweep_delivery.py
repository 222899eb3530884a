"""From a sweep's folder to MLflow: the sweep's run, below it a run per trial, below that one per seed.

One process delivers for all trials, so that any number of them never meet in one database. A trial whose files and
whose row in the ledger are as they were costs a few calls of ``stat``; its files are not opened. Positions are kept in
each trial's own ``tracking.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxygap.base.errors import StorageError
from proxygap.record.delivery import Attempts, DeliveryReport, mark, pending
from proxygap.record.folder import ExperimentFolder, storage_errors
from proxygap.record.folder_delivery import FolderDelivery, undelivered
from proxygap.record.known_runs import Destination, KnownRuns
from proxygap.record.page import ExperimentPage, report_link
from proxygap.record.sources import PARENT, RunSource, setting_metrics, setting_tag, sweep_source, trial_sources
from proxygap.record.sweep_folder import ENDED, LedgerReader, SweepFolder, TrialRecord
from proxygap.record.view import View

SWEEP_FILES = ("sweep.yaml", "sweep.json", "provenance.json", "ledger.jsonl")
TRIAL_FILES = ("experiment.yaml", "experiment.json")
_SEED_FILES = ("journal.jsonl", "status.json")

Mark = tuple[object, ...]


class SweepDelivery:
    """Brings the tracker up to date with one sweep. Only one may run at a time per folder (see the shipper).

    Args:
        folder: the sweep's; its ``record`` settings say where to.

    Raises:
        InvalidExperiment: the tracking URI is not supported.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self._folder, self._to = folder, Destination.of(folder)
        self._attempt = Attempts(self._to.uri, self._forget)
        self._ledger = LedgerReader(folder.ledger)
        self._view: View | None = None
        self._forget()

    @property
    def uri(self) -> str:
        """The tracker."""
        return self._to.uri

    def deliver(self) -> DeliveryReport:
        """Deliver what sweep and trials have gained, and the trials' states; trouble is reported, not raised.

        The sweep's own run is running until `deliver_artifacts`. A trial that has ended is given its files.

        Raises:
            StorageError: the ledger, or a trial's journal, is corrupt; other trials are delivered before.
        """
        changed: list[int] = []
        broken: list[StorageError] = []

        def work() -> None:
            source = self._bind()
            self._own.journals([source])
            if source.standing is not None and source.standing.status == "RUNNING":
                self._own.standings([source])
            for trial in self._ledger.trials.values():
                try:
                    changed.extend([trial.number] if self._deliver_trial(trial) else [])
                except StorageError as error:
                    broken.append(error)
            self._runs.settle()
            if self._view is None and any(trial.state in ENDED for trial in self._ledger.trials.values()):
                self._view = View.of(self._folder)
            self._page.tell(self._view, None)

        problem = self._attempt(self._folder.path, work)
        if broken:
            raise broken[0]
        return self._report(problem, None if problem else changed)

    def deliver_artifacts(self) -> DeliveryReport:
        """Log sweep, ledger, provenance and report on the sweep's run, and tell its state."""

        def work() -> None:
            source, path = self._bind(), self._folder.path
            self._own.artifacts([*(path / name for name in SWEEP_FILES), *sorted(self._folder.report.rglob("*"))])
            self._own.standings([source])
            self._page.tell(self._view, report_link(self._folder, self._own.run_id))

        return self._report(self._attempt(self._folder.path, work))

    def _report(self, problem: str, numbers: Sequence[int] | None = None) -> DeliveryReport:
        waiting = pending_of_sweep(self._folder, numbers)
        return DeliveryReport(self._attempt.tally.count, waiting, problem, self._attempt.superseded)

    def _forget(self) -> None:
        self._bound: FolderDelivery | None = None
        self._places: dict[int, FolderDelivery] = {}
        self._marks: dict[int, Mark] = {}

    @property
    def _own(self) -> FolderDelivery:
        assert self._bound is not None, "bound before use"
        return self._bound

    def _bind(self) -> RunSource:
        if self._bound is None:
            client, experiment_id = self._to.open()
            self._runs = KnownRuns(client, experiment_id, str(self._folder.identity["execution"]))
            self._bound = FolderDelivery(self._folder.path, self._to, self._runs, self._attempt.tally)
            self._page = ExperimentPage(client, experiment_id)
        self._ledger.refresh()
        source = sweep_source(self._folder, self._ledger.trials)
        self._own.bind([source])
        self._own.fence()
        return source

    def _deliver_trial(self, trial: TrialRecord) -> bool:
        """Deliver a trial where anything changed; whether anything had."""
        place = self._folder.trial(trial.number)
        now = _mark_of(place.path, trial)
        if now == self._marks.get(trial.number) or (len(now) == 1 and trial.state not in ENDED):
            return False
        with storage_errors(place.path):
            place.path.mkdir(parents=True, exist_ok=True)
        if trial.number not in self._places:
            self._places[trial.number] = FolderDelivery(place.path, self._to, self._runs, self._attempt.tally)
        bound, sources = self._places[trial.number], trial_sources(self._folder, trial)
        bound.bind(sources, above=self._own.run_id)
        bound.journals(sources)
        bound.changes(setting_metrics(trial), setting_tag(trial), len(trial.changes))
        bound.standings(sources)
        if trial.state in ENDED:
            self._files(bound, place)
            del self._places[trial.number]
        self._marks[trial.number] = now
        return True

    def _files(self, bound: FolderDelivery, place: ExperimentFolder) -> None:
        readings = self._attempt.tally.count
        bound.artifacts([*(place.path / name for name in TRIAL_FILES), *sorted(place.report.rglob("*"))])
        self._attempt.tally.count = readings


def pending_of_sweep(folder: SweepFolder, numbers: Sequence[int] | None = None) -> int:
    """Readings of a sweep and of its trials (None: all of them) that no tracker has acknowledged."""
    places = [place for _, place in folder.trials()] if numbers is None else map(folder.trial, numbers)
    return undelivered(folder.path, {PARENT: folder.journal}) + sum(pending(place) for place in places)


def _mark_of(path: Path, trial: TrialRecord) -> Mark:
    """Changes whenever there is something to deliver: the ledger's part first, then each file's. No file is opened."""
    told = (trial.state, trial.reason, len(trial.changes))
    return (told, *_file_marks(path))


def _file_marks(path: Path) -> Iterator[Mark]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("seed-"):
            yield (entry.name, *(mark(Path(entry.path, name)) for name in _SEED_FILES))
        elif entry.name in ("journal.jsonl", "identity.json", "report"):
            yield (entry.name, *mark(Path(entry.path)))
