"""The records of a run on this node, and their copy in storage, where the experiment keeps one.

A store that does not answer costs time and never a run: what could not be copied is copied at one of the next calls,
and those are as far apart as failing takes long.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from proxygap.base.errors import StorageError
from proxygap.record.attempt import asked_attempt, newest_published
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder
from proxygap.record.mirror import Mirror, fetch
from proxygap.record.storage import Storage

EXPERIMENT, SEEDS = "experiment", ("seed-*", ".nodes/*")
"""The part of storage for an experiment's own files, and what lies in its folder beside them."""
FETCH_S = 3.0
"""Seconds between two looks at what seeds on other nodes have published."""
SETTLE_S = 60.0
"""Longest wait, at the end of a run, for a store that does not answer."""
TAKE_UP_S = 1800.0
"""Longest wait, before a seed begins, for a store that does not answer: who had it last is not known without it."""
CHECKPOINTS = ("checkpoints/*",)
_PAUSE_S, _SHARE = 1.0, 10.0
log = logging.getLogger("proxygap")


class Copy:
    """One part of a run: its folder on this node, and its copy; without storage all of this does nothing.

    Args:
        part: its storage, or None.
        local: its folder.
        skip: patterns of names in the folder that are not the part's.
    """

    def __init__(self, part: Storage | None, local: Path, skip: tuple[str, ...] = ()) -> None:
        self._mirror = None if part is None else Mirror(part, local, asked_attempt(), skip)
        self._taken, self._not_before = False, 0.0
        self._problem = StorageError("it was not taken up", field=str(local), remedy="Run it again")

    def take_up(self, *, store_s: float = 0.0, holder_s: float = 0.0, stop: Callable[[], bool] = lambda: False) -> bool:
        """Claim the part, and bring the folder to where whoever had it before has left it.

        Args:
            store_s: longest wait for a store that does not answer.
            holder_s: longest wait for a process here that still holds the folder.
            stop: asked meanwhile; true gives the waiting up.

        Returns:
            Whether it has the part; false after a stop.

        Raises:
            StorageError: after that time.
            Superseded: another process claims it as well.
        """
        if self._mirror is not None and not self._taken:
            self._taken = _persist(self._mirror.take_up, store_s, holder_s, stop)
        return self._mirror is None or self._taken

    def publish(self) -> None:
        """Copy what is new. Raises StorageError or, for good, Superseded."""
        if self._mirror is None:
            return
        started = time.monotonic()
        if started < self._not_before or not self._taken:
            raise self._problem
        try:
            self._mirror.publish()
        except StorageError as error:
            self._problem, now = error, time.monotonic()
            self._not_before = now + _SHARE * (now - started)
            raise

    def settle(self) -> bool:
        """Copy all that is left; whether that was possible within `SETTLE_S`. Raises Superseded."""
        if self._mirror is None or not self._taken:
            return self._mirror is None
        try:
            _persist(self._mirror.publish, SETTLE_S)
        except StorageError as error:
            log.warning("the copy in storage is not complete: %s", error)
            return False
        return True


def _persist(
    work: Callable[[], object],
    store_s: float,
    holder_s: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Try until it works, and say that it did; or until it has failed for so long, or is to stop."""
    began = time.monotonic()
    while True:
        try:
            work()
        except StorageError as error:
            patience_s = holder_s if is_held(error) else store_s
            if time.monotonic() - began >= patience_s:
                raise
            log.warning("tried again for up to %g s: %s", patience_s, error)
        else:
            return True
        if stop():
            return False
        time.sleep(_PAUSE_S)


def is_held(error: StorageError) -> bool:
    """Whether a process of this node holds the folder: one that is about to end, or one that should be stopped."""
    return "another process" in error.problem


def part_of(storage: Storage | None, folder: Path, name: str) -> Storage | None:
    """The storage of one part of an experiment: `EXPERIMENT`, or a seed by its folder's name."""
    return None if storage is None else storage.below(folder.name, name)


def fresh_place(first: Path, storage: Storage | None) -> Path:
    """``first``, or the first of ``-2``, ``-3``, ... that exists neither here nor in storage."""
    others = (first.with_name(f"{first.name}-{number}") for number in range(2, 10_000))
    return next(path for path in (first, *others) if not path.exists() and not is_stored(storage, path))


def is_stored(storage: Storage | None, folder: Path) -> bool:
    """Whether storage knows a folder of this name. Raises StorageError."""
    return storage is not None and bool(storage.below(folder.name).folders())


def finished(place: SeedFolder) -> bool:
    """Whether a seed has nothing left to do, by what this node knows."""
    status = place.status()
    return status is not None and status.state is RunState.FINISHED


def meet(storage: Storage | None, folder: ExperimentFolder, seeds: tuple[int, ...]) -> bool:
    """Bring seeds that were finished elsewhere to this folder, and to storage those that only this folder knows of.

    Returns:
        Whether storage now has all that was finished.

    Raises:
        StorageError: storage cannot be read.
        Superseded: another process is running the same experiment.
    """
    complete = True
    for place in map(folder.seed, seeds) if storage is not None else ():
        part = part_of(storage, folder.path, place.path.name)
        assert part is not None
        here, there = finished(place), _finished_in(part)
        if there and not here:
            fetch(part, place.path, CHECKPOINTS)
        elif here and not there:
            copy = Copy(part, place.path)
            copy.take_up()
            complete = copy.settle() and complete
    return complete


def _finished_in(part: Storage) -> bool:
    published = newest_published(part)
    status = None if published is None else published.files.get("status.json")
    return status is not None and f'"{RunState.FINISHED}"' in (status.text or "")


def away(place: SeedFolder, node: str) -> SeedFolder:
    """Where a seed's records are on a node that is not the driver's; nodes may share a disk, but no folder."""
    experiment = place.path.parent
    path = experiment.parent / ".nodes" / node[:12] / experiment.name / place.path.name
    return SeedFolder(path, place.seed)


def clear(place: SeedFolder) -> None:
    """Remove a seed's records from a node that is not the driver's, once storage has them all."""
    if not (place.path / ".aside").exists():
        shutil.rmtree(place.path, ignore_errors=True)
        with contextlib.suppress(OSError):  # others have records there
            place.path.parent.rmdir()
            place.path.parent.parent.rmdir()


class Fetching:
    """Keeps this node's copy of seeds that run elsewhere up to date, in a thread of its own, for reports and tracker.

    Args:
        storage: of all experiments; without it there is nothing to fetch.
    """

    def __init__(self, storage: Storage | None) -> None:
        self._storage, self._places = storage, dict[int, SeedFolder]()
        self._mutex, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="fetching", daemon=True)

    def __enter__(self) -> Fetching:
        """Start."""
        if self._storage is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, after the file of this moment."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, place: SeedFolder) -> None:
        """Follow a seed that runs elsewhere."""
        self._places[place.seed] = place

    def drop(self, place: SeedFolder) -> bool:
        """Follow it no longer; once this returns, nothing is written to its folder. Whether it was followed."""
        found = self._places.pop(place.seed, None)
        with self._mutex:
            return found is not None

    def last(self, place: SeedFolder) -> bool:
        """All that it has published in the end; whether storage answered within `SETTLE_S`."""
        try:
            _persist(lambda: self._fetch(place), SETTLE_S)
        except StorageError as error:
            log.warning("the records of seed %d could not be fetched: %s", place.seed, error)
            return False
        return True

    def _fetch(self, place: SeedFolder) -> None:
        part = part_of(self._storage, place.path.parent, place.path.name)
        assert part is not None
        fetch(part, place.path, CHECKPOINTS)

    def _go_on(self) -> None:
        while not self._over.wait(FETCH_S):
            for seed, place in list(self._places.items()):
                with self._mutex:
                    if seed in self._places and not self._over.is_set():
                        self._try(place)

    def _try(self, place: SeedFolder) -> None:
        try:
            self._fetch(place)
        except StorageError as error:
            log.info("not fetched now: %s", error)
