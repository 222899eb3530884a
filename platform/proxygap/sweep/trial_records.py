"""Where the process of a trial writes, and the copy in storage by which other nodes know what it wrote.

On the driver's node a trial writes into the sweep's folder. On another one it writes below ``.nodes``, apart for each
node, so that nodes that share a disk never share a live file::

    <folder>/<sweep>/trials/00003/                     on the driver's node
    <folder>/.nodes/<node id, 12>/<sweep>/trial-0003/  on another
    <storage>/<sweep>/trial-0003/attempt-.../          the copy, which the driver fetches

A report may be heard before it is published. What a lost node had not published is measured again, to the same values;
what others build on, the end of a trial and the states of a population, is published first, however long that takes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from filelock import FileLock, Timeout

from proxygap.base.errors import StorageError
from proxygap.loops.copies import TAKE_UP_S, Copy
from proxygap.record.attempt import newest_published
from proxygap.record.folder import ExperimentFolder, storage_errors
from proxygap.record.storage import Storage
from proxygap.record.sweep_folder import SweepFolder

OWN = ("tracking.json",)
"""What is the driver's own in the folder of a trial."""
LOCK_S = 60.0
"""Longest wait for the process that had the trial before: after a kill it may live on for some seconds."""
PUBLISH_EVERY_S = 1.0
"""Least time between two publishes that nobody waits for."""
RETRY_S, PATIENCE_S = 1.0, 60.0
"""Seconds between two tries to publish what others wait for; and after how many a trial on the driver's node goes on,
where all that it wrote is at hand."""
log = logging.getLogger("proxygap")


class Unreachable(StorageError):
    """Storage does not answer: the trial stops where it is, and is taken up when it does."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where the records of a sweep are.

    Args:
        folder: the sweep's, on the driver's node.
        storage: of the sweep, below which each trial is a part; None: there is no copy.
        home: the driver's node; empty where trials run in its process.
    """

    folder: SweepFolder
    storage: Storage | None = None
    home: str = ""

    def part(self, number: int) -> Storage | None:
        """The storage of a trial."""
        return None if self.storage is None else self.storage.below(f"trial-{number:04d}")

    def place(self, number: int, node: str) -> ExperimentFolder:
        """Where the process of a trial writes on a node."""
        if self.storage is None or node == self.home:
            return self.folder.trial(number)
        root, name = self.folder.path.parent, self.folder.path.name
        return ExperimentFolder(root / ".nodes" / node[:12] / name / f"trial-{number:04d}")


class TrialRecords:
    """The records of one trial, while its process has it.

    Args:
        shelf: of the sweep.
        number: of the trial.
        node: that the process is on.
    """

    def __init__(self, shelf: Shelf, number: int, node: str) -> None:
        self.shelf, self.number, self.place = shelf, number, shelf.place(number, node)
        self.away = self.place != shelf.folder.trial(number)
        self._copy = Copy(shelf.part(number), self.place.path, OWN)
        self._published = 0.0

    def take_up(self, stop: Callable[[], bool]) -> None:
        """Claim the copy, and restore what another node wrote last.

        Args:
            stop: asked while storage does not answer; true gives the waiting up.

        Raises:
            Superseded: a newer attempt has the trial.
            Unreachable: storage has not answered.
        """
        try:
            taken = self._copy.take_up(store_s=TAKE_UP_S, holder_s=LOCK_S, stop=stop)
        except StorageError as error:
            raise Unreachable(str(error)) from error
        if not taken:
            raise Unreachable("storage did not answer until the trial was asked to stop", field=str(self.place.path))

    def publish_now_and_then(self) -> None:
        """Publish, unless that was done right before. Raises Superseded, StorageError."""
        if time.monotonic() - self._published >= PUBLISH_EVERY_S:
            self._copy.publish()
            self._published = time.monotonic()

    def publish(self, give_up: Callable[[], bool]) -> bool:
        """Publish all of it, and wait for a storage that does not answer until ``give_up``.

        Returns:
            Whether others find all they need: in storage, or, after a while, in the sweep's own folder.

        Raises:
            Superseded: a newer attempt has the trial.
        """
        until, told = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                self._copy.publish()
            except StorageError as error:
                if not told:
                    log.warning("trial %d waits to publish its records: %s", self.number, error)
                told = True
                if give_up() or (not self.away and time.monotonic() > until):
                    with contextlib.suppress(OSError):
                        unpublished(self.place).touch()
                    return not self.away
                time.sleep(RETRY_S)
            else:
                self._published = time.monotonic()
                unpublished(self.place).unlink(missing_ok=True)
                return True

    def forget(self) -> None:
        """Remove what another node than the driver's need not keep of a trial that has ended and is published."""
        if self.away and not (self.place.path / ".aside").exists():
            shutil.rmtree(self.place.path, ignore_errors=True)

    @contextlib.contextmanager
    def snapshot_of(self, donor: int, index: int) -> Iterator[ExperimentFolder]:
        """The folder with a donor's state at a comparison, for the length of a block. Raises Unreachable."""
        here, part = self.shelf.folder.trial(donor), self.shelf.part(donor)
        if part is None or (not self.away and (here.path / "exchange" / str(index)).is_dir()):
            yield here
            return
        copy = ExperimentFolder(self.place.path / ".donor")
        try:
            try:
                _download(part, f"exchange/{index}/", copy.path)
            except StorageError as error:
                raise Unreachable(str(error)) from error
            yield copy
        finally:
            shutil.rmtree(copy.path, ignore_errors=True)


def unpublished(place: ExperimentFolder) -> Path:
    """The file that says of a trial's folder on the driver's node that the copy in storage is behind."""
    return place.path / ".unpublished"


@contextlib.contextmanager
def records_of(shelf: Shelf, number: int, stop: Callable[[], bool]) -> Iterator[TrialRecords]:
    """The records of a trial, taken up, and this process the only one of its node that writes them.

    Args:
        shelf: of the sweep.
        number: of the trial.
        stop: asked while it waits for storage; true gives that up.

    Raises:
        Superseded: a newer attempt has the trial.
        Unreachable: storage does not answer.
        StorageError: the folder cannot be written, or another process has had the trial for long.
    """
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else shelf.home
    records = TrialRecords(shelf, number, node)
    with _alone(records.place.path):
        records.take_up(stop)
        yield records


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = FileLock(lock_file(path))
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=LOCK_S)
    except Timeout as error:
        remedy = "Stop the process that runs it"
        raise StorageError(
            f"another process has been running this trial for {LOCK_S:g} s", field=str(path), remedy=remedy
        ) from error
    try:
        yield
    finally:
        lock.release()


def lock_file(path: Path) -> Path:
    """What the process of a trial holds a lock on; beside the folder, since all that is in there may make way."""
    return path.with_name(f".{path.name}.lock")


def _download(part: Storage, prefix: str, local: Path) -> None:
    """Bring the files of the newest published state whose names begin so."""
    found = newest_published(part)
    for name in found.files if found else ():
        if found and name.startswith(prefix):
            part.below(found.attempt.name).download(name, local / name)
