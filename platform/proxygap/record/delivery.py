"""From the journals of an experiment to MLflow: explicit runs, exact replays, nothing twice.

The fluent API with its ambient run is never used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proxygap.base.errors import Superseded, TrackerUnavailable
from proxygap.record.folder import ExperimentFolder, read_json, write_json
from proxygap.record.folder_delivery import FolderDelivery, Tally, undelivered
from proxygap.record.known_runs import Destination, KnownRuns
from proxygap.record.page import ExperimentPage, report_link
from proxygap.record.sources import PARENT, RunSource, experiment_sources
from proxygap.record.tracker import first_line, redacted, tracker_errors
from proxygap.record.view import View


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """Readings that the tracker acknowledged, readings that still wait, and why (empty: nothing went wrong).

    ``superseded`` is what a newer attempt's claim says: then nothing is delivered from this folder any more.
    """

    delivered: int
    pending: int
    error: str = ""
    superseded: Superseded | None = None


class Attempts:
    """Deliveries of one folder, one after the other, each of which may fail.

    Args:
        uri: the tracker.
        forget: called where what is known of the tracker may be wrong: after trouble, and after another process has
            delivered the same folder.
    """

    def __init__(self, uri: str, forget: Callable[[], None]) -> None:
        self._uri, self._forget = uri, forget
        self._left: tuple[int, ...] = ()
        self.tally = Tally()
        self.superseded: Superseded | None = None

    def __call__(self, path: Path, work: Callable[[], None]) -> str:
        """Try; why the tracker did not take everything (empty: it did). Kept in the folder's ``tracking.json``."""
        tracking = path / "tracking.json"
        if mark(tracking) != self._left:
            self._forget()
        self.tally.count = 0
        problem = self._problem(work)
        last = {"uri": redacted(self._uri), "error": problem, "time_ms": time.time_ns() // 1_000_000}
        write_json(tracking, {**read_json(tracking), "last": last})
        self._left = mark(tracking)
        return problem

    def _problem(self, work: Callable[[], None]) -> str:
        errors: tuple[type[Exception], ...] = (TrackerUnavailable, *tracker_errors())
        problem = ""
        for _ in range(2):
            try:
                work()
            except Superseded as error:
                self.superseded = error
                return str(error)
            except errors as error:
                self._forget()
                problem = error.problem if isinstance(error, TrackerUnavailable) else first_line(error)
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    return problem  # else the tracker has lost our runs: once more from the start
            else:
                return ""
        return problem


class Delivery:
    """Brings the tracker up to date with one experiment. Only one may run at a time per folder (see the shipper).

    Args:
        folder: the experiment's; its ``record`` settings say where to.

    Raises:
        InvalidExperiment: the tracking URI is not supported.
    """

    def __init__(self, folder: ExperimentFolder) -> None:
        self._folder, self._to = folder, Destination.of(folder)
        self._attempt = Attempts(self._to.uri, self._forget)
        self._bound: FolderDelivery | None = None
        self._view: View | None = None

    @property
    def uri(self) -> str:
        """The tracker."""
        return self._to.uri

    def deliver(self) -> DeliveryReport:
        """Deliver every reading that is not delivered yet, then the runs' states; trouble is reported, not raised.

        Raises:
            StorageError: a journal is corrupt or the folder cannot be written.
        """

        def work() -> None:
            sources = experiment_sources(self._folder)
            bound = self._bind(sources)
            bound.journals(sources)
            bound.standings(sources)
            self._view = self._view or View.of(self._folder, over=False)
            self._page.tell(self._view, None)

        return self._report(work)

    def deliver_artifacts(self) -> DeliveryReport:
        """Log experiment, provenance and report on the parent run, those that changed since the last time."""

        def work() -> None:
            files = [self._folder.path / name for name in ("experiment.yaml", "experiment.json", "provenance.json")]
            bound = self._bind(experiment_sources(self._folder))
            bound.artifacts([*files, *sorted(self._folder.report.rglob("*"))])
            self._view = self._view or View.of(self._folder)
            self._page.tell(self._view, report_link(self._folder, bound.run_id))

        return self._report(work)

    def _report(self, work: Callable[[], None]) -> DeliveryReport:
        problem = self._attempt(self._folder.path, work)
        return DeliveryReport(self._attempt.tally.count, pending(self._folder), problem, self._attempt.superseded)

    def _forget(self) -> None:
        self._bound = None

    def _bind(self, sources: list[RunSource]) -> FolderDelivery:
        if self._bound is None:
            client, experiment_id = self._to.open()
            self._runs = KnownRuns(client, experiment_id, str(self._folder.identity["execution"]))
            self._bound = FolderDelivery(self._folder.path, self._to, self._runs, self._attempt.tally)
            self._page = ExperimentPage(client, experiment_id)
        self._bound.bind(sources[:1])
        self._bound.fence()
        self._bound.bind(sources[1:])
        self._runs.settle()
        return self._bound


def pending(folder: ExperimentFolder) -> int:
    """Readings in the journals that no tracker has acknowledged."""
    return undelivered(folder.path, {PARENT: folder.journal} | {str(run.seed): run.journal for run in folder.seeds()})


def mark(path: Path) -> tuple[int, ...]:
    """Changes whenever a file is written; empty while it is absent."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
