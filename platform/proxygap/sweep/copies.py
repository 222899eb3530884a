"""The sweep's own folder and its copy in storage: published by the driver, and the trials' folders fetched for it.

The ledger is published about once a second, and always before a trial begins: whoever continues the sweep elsewhere
then knows of every setting that was ever tried. Trials on other nodes publish their own records, which are fetched
every few seconds for the tracker, and for good once they have ended. Without storage all of this does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from proxygap.base.errors import StorageError, Superseded
from proxygap.loops.copies import EXPERIMENT, SETTLE_S, Copy
from proxygap.record.attempt import Attempt
from proxygap.record.folder import RunState
from proxygap.record.mirror import fetch
from proxygap.record.sweep_folder import ENDED, TrialRecord, TrialState
from proxygap.sweep.book import Book
from proxygap.sweep.trial_records import OWN, Shelf, unpublished

TRIALS = ("trials/*",)
NOT_FETCHED = (*OWN, "seed-*/checkpoints/*", "exchange/*")
"""What the driver needs of no trial: whoever takes it up restores it."""
PUBLISH_EVERY_S, FETCH_EVERY_S, LOOK_S = 1.0, 3.0, 0.25
HOLDER_S = 60.0
"""Longest wait for the deliverer of a process that was killed, which ends when it has told the tracker all."""
log = logging.getLogger("proxygap")


class SweepCopies:
    """Keeps the copies of a sweep, in a thread of its own while trials run.

    Args:
        shelf: where the records are.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._folder = shelf, shelf.folder
        part = None if shelf.storage is None else shelf.storage.below(EXPERIMENT)
        self._copy = Copy(part, self._folder.path, TRIALS)
        self._wanted: dict[int, None] = {}  # in the order of the next try
        self._missing: set[int] = set()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._superseded: Superseded | None = None

    @property
    def _kept(self) -> bool:
        return self._shelf.storage is not None

    def take_up(self) -> None:
        """Claim the sweep, and bring its folder to where whoever had it before has left it.

        Raises:
            Superseded: another process claims it as well, or a later submission has.
            StorageError: storage cannot be read or written, or a process of this node runs the sweep.
        """
        if self._kept:
            _refuse_if_run(self._folder.journal)
            self._copy.take_up(holder_s=HOLDER_S)

    def start(self, book: Book, running: Callable[[], set[int]]) -> None:
        """Begin, with trials that have ended and are not whole here; ``running`` gives those with a process."""
        if self._kept:
            ended = [trial for trial in book.trials.values() if trial.state in ENDED]
            self._wanted.update({trial.number: None for trial in ended if not self._whole(trial)})
            self._thread = threading.Thread(target=self._go_on, args=(running,), name="copies", daemon=True)
            self._thread.start()

    def commit(self) -> None:
        """Publish the ledger before something follows from it. Raises Superseded."""
        if self._kept:
            with contextlib.suppress(StorageError):  # told by the thread; it is made up for as soon as possible
                self._copy.publish()

    def ended(self, number: int) -> None:
        """A trial has no process any more: what it wrote last is to be fetched."""
        if self._kept:
            self._wanted[number] = None

    def check(self) -> None:
        """Raise Superseded where another process has taken the sweep over."""
        if self._superseded is not None:
            raise self._superseded

    def gather(self) -> bool:
        """Stop following trials, and bring all of them home.

        Returns:
            Whether all that trials have written is both here and in storage.

        Raises:
            Superseded: another process has taken the sweep over.
        """
        self.stop()
        self.check()
        until = time.monotonic() + SETTLE_S
        while self._wanted and not self._fetch_wanted() and time.monotonic() < until:
            time.sleep(LOOK_S)
        return self._make_up() and not (self._wanted or self._missing)

    def settle(self) -> bool:
        """Publish all that the sweep itself has written; whether storage answered. Raises Superseded."""
        return self._copy.settle()

    def stop(self) -> None:
        """Follow trials no longer, after the file of this moment."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _go_on(self, running: Callable[[], set[int]]) -> None:
        published = fetched = 0.0
        behind = False
        version = self._version()
        while not self._over.wait(LOOK_S):
            now, newest = time.monotonic(), self._version()
            try:
                if (newest != version or behind) and now - published >= PUBLISH_EVERY_S:
                    published, behind = now, True
                    self._copy.publish()
                    version, behind = newest, False
                self._fetch_wanted()
                if now - fetched >= FETCH_EVERY_S:
                    fetched = now
                    for number in sorted(running() - self._wanted.keys()):
                        self._fetch(number)
            except Superseded as error:
                self._superseded = error
                return
            except StorageError as error:
                log.info("not copied now: %s", error)

    def _version(self) -> tuple[int, ...]:
        """Changes whenever the sweep has written of itself."""
        found = []
        for path in (self._folder.ledger, self._folder.journal):
            with contextlib.suppress(OSError):
                found += [path.stat().st_size, path.stat().st_mtime_ns]
        return tuple(found)

    def _fetch_wanted(self) -> bool:
        """Fetch trials that have ended; False: one could not be, and the others come first the next time."""
        for number in list(self._wanted):
            del self._wanted[number]
            try:
                found = self._fetch(number)
            except StorageError as error:
                self._wanted[number] = None
                log.info("trial %d is not fetched now: %s", number, error)
                return False
            if found is None and number not in self._missing and not self._folder.trial(number).seeds():
                self._missing.add(number)
                uri = self._shelf.storage.shown if self._shelf.storage else ""
                log.warning("trial %d left no records in %s: do all nodes reach the same storage?", number, uri)
        return True

    def _fetch(self, number: int) -> Attempt | None:
        part = self._shelf.part(number)
        assert part is not None, "asked before"
        return fetch(part, self._folder.trial(number).path, NOT_FETCHED)

    def _make_up(self) -> bool:
        """Publish trials of this node that could not do so themselves."""
        complete = True
        for number, place in self._folder.trials() if self._kept else ():
            if unpublished(place).exists():
                copy = Copy(self._shelf.part(number), place.path, OWN)
                copy.take_up(store_s=SETTLE_S)
                if copy.settle():
                    unpublished(place).unlink(missing_ok=True)
                else:
                    complete = False
        return complete

    def _whole(self, trial: TrialRecord) -> bool:
        """Whether the folder here tells the trial's end as the ledger does."""
        found = [run.status() for run in self._folder.trial(trial.number).seeds()]
        if trial.state is TrialState.FINISHED:
            return bool(found) and all(status and status.state is RunState.FINISHED for status in found)
        return bool(found) and all(status and status.reason == trial.reason for status in found)


def _refuse_if_run(journal: Path) -> None:
    """Refuse a sweep that a process of this node runs: claiming it would end that one. Raises StorageError."""
    path = journal.with_name(f".{journal.name}.lock")
    if not path.exists():
        return
    try:
        with FileLock(path, timeout=0):
            return
    except Timeout as error:
        raise StorageError(
            "another process is running this sweep", field=str(journal.parent), remedy="Wait for it, or stop it"
        ) from error
