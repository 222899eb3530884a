"""The local side of a mirror: which files count, in which order they travel, and how others take their place."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Container, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from proxygap.base.errors import StorageError
from proxygap.base.files import check_name
from proxygap.record.attempt import LOCAL, Held, Published, Sent, held_by
from proxygap.record.folder import read_json, storage_errors, write_atomically, write_json
from proxygap.record.storage import Storage

JOURNALS, DATA, MANIFESTS, STATUSES = 1, 2, 3, 4
"""Order in which files travel to storage; `superseded.jsonl` goes before the journal that rows are taken from."""

ASIDE = ".aside"
_LOCK, _COPIED = ".mirror.lock", ".copied.json"
_LOCK_S = 600.0


class Version(NamedTuple):
    """What changes when a file is written: equal versions have equal content."""

    size: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(path: Path) -> Version:
        """Of a local file. Raises OSError."""
        facts = path.stat()
        return Version(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def order(name: str) -> tuple[int, str]:
    """Sorts names by the order in which they travel to storage."""
    last = name.rpartition("/")[2]
    if last.endswith(".jsonl"):
        return (0 if last == "superseded.jsonl" else JOURNALS), name
    return {"manifest.json": MANIFESTS, "status.json": STATUSES}.get(last, DATA), name


def local_files(local: Path, skip: tuple[str, ...]) -> dict[str, Version]:
    """Files of a folder that are its content: neither hidden, nor drafts, nor links, nor skipped.

    Raises:
        StorageError: the folder cannot be read.
    """
    with storage_errors(local):
        return dict(_walk(local, "", skip))


def _walk(folder: Path, prefix: str, skip: tuple[str, ...]) -> Iterator[tuple[str, Version]]:
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if path.name.startswith(".") or path.suffix == ".tmp" or name == LOCAL or skipped(name, skip):
            continue
        with contextlib.suppress(FileNotFoundError):  # a checkpoint that is dropped while this looks
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                yield from _walk(path, f"{name}/", skip)
            elif stat.S_ISREG(mode):
                yield name, Version.of(path)


def skipped(name: str, skip: tuple[str, ...]) -> bool:
    """Whether a name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in skip)


@contextlib.contextmanager
def alone(local: Path) -> Iterator[None]:
    """No other process changes the folder's files from storage meanwhile. Raises StorageError after ten minutes."""
    lock = FileLock(local / _LOCK, timeout=_LOCK_S)
    try:
        with storage_errors(local):
            lock.acquire()
    except Timeout as error:
        raise StorageError(
            "another process is copying it", field=str(local), remedy="Wait for it, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _acquired(path: Path, timeout_s: float, problem: str) -> BaseFileLock:
    lock = FileLock(path, timeout=timeout_s)
    with storage_errors(path):
        try:
            lock.acquire()
        except Timeout as error:
            remedy = "Wait for it, or stop it"
            raise StorageError(problem, field=str(path.parent), remedy=remedy) from error
    return lock


def refuse_if_written(local: Path, skip: tuple[str, ...]) -> None:
    """Refuse a folder with a journal that a process of this node still writes. Raises StorageError."""
    for path in sorted(local.rglob(".*.lock")):
        folder = path.parent.relative_to(local)
        above = [part.as_posix() for part in (folder, *folder.parents)]
        if path.name == _LOCK or ASIDE in folder.parts or any(skipped(name, skip) for name in above):
            continue
        _acquired(path, 0.0, "another process is writing this run").release()


def move_aside(local: Path, names: Iterable[str], whose: str) -> None:
    """Move files of a folder to ``.aside/<whose>-<time>/`` in it, in this order; no folders are left empty.

    Raises:
        StorageError: the folder cannot be written.
    """
    target = local / ASIDE / f"{whose}-{time.time_ns()}"
    with storage_errors(local):
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).replace(target / name)
            _remove_empty(local, name)


def _remove_empty(local: Path, name: str) -> None:
    """Remove the folders above a file that is gone, as far as nothing else is in them."""
    with contextlib.suppress(OSError):
        for folder in list((local / name).relative_to(local).parents)[:-1]:
            (local / folder).rmdir()


def bring(part: Storage, source: Published, local: Path, *, forgiving: bool) -> bool:
    """Make the files of a copied folder those of ``source``: what is there already stays, what is gone is deleted.

    Args:
        part: the storage of the part.
        source: what to bring.
        local: the folder, which has no owner or holds a copy; in the end it says whose.
        forgiving: go on without files that are missing in storage, as long as they are no journals.

    Returns:
        Whether all files were there; if not, look for a newer ``source``.

    Raises:
        StorageError: storage or the folder cannot be read or written, or a journal is missing for good.
    """
    label = Held(source.attempt, writes=False)
    if held_by(local) is None:
        label.save(local)  # if this is cut off, it is known to be no more than a copy
    known, there = _Known.load(local), part.below(source.attempt.name)
    try:
        for name in sorted(source.files, key=_homeward):
            sent = source.files[name]
            if known.has(name, sent) or _copied(there, local, name, sent, known):
                continue
            if not forgiving:
                return False
            _refuse_journal(there, name)
        known.drop_others(source.files)
    finally:
        known.save()
    label.save(local)  # after the journals, or what is delivered from there would be taken for another attempt's
    return True


def _homeward(name: str) -> tuple[int, int, str]:
    """Manifests after the data they speak for, then journals, so that they are as new as any of it, then statuses."""
    rank, name = order(name)
    if rank == STATUSES:
        return 2, 0, name
    return (1, -rank, name) if rank <= JOURNALS else (0, rank, name)


def _copied(there: Storage, local: Path, name: str, sent: Sent, known: _Known) -> bool:
    """Copy one file; False where storage does not have it."""
    path = local / name
    with storage_errors(path):
        if not path.parent.resolve().is_relative_to(local.resolve()):
            raise StorageError("a link leads out of the folder", field=str(path.parent), remedy="Remove the link")
        path.parent.mkdir(parents=True, exist_ok=True)
    if sent.text is not None:
        write_atomically(path, sent.text.encode())
        known.add(name, sent.sha256)
        return True
    digest = there.download(name, path)
    if digest is None:
        return False
    known.add(name, digest)
    return True


def _refuse_journal(there: Storage, name: str) -> None:
    if order(name)[0] <= JOURNALS:
        remedy = "Restore it, or remove this attempt, so that an earlier one is taken up"
        raise StorageError("a journal is missing", field=f"{there.shown}/{name}", remedy=remedy)


class _Known:
    """What was copied into a folder before: hashes, and the versions that the copies had."""

    def __init__(self, local: Path, files: dict[str, tuple[Version, str]]) -> None:
        self._local, self._files = local, files

    @staticmethod
    def load(local: Path) -> _Known:
        """Of a folder; a list that cannot be read is an empty one."""
        try:
            files = read_json(local / _COPIED).get("files", {})
            return _Known(local, {name: (Version(*version), str(sha256)) for name, (version, sha256) in files.items()})
        except (StorageError, ValueError, TypeError, AttributeError):
            return _Known(local, {})

    def save(self) -> None:
        """Keep it for the next time. Raises StorageError."""
        write_json(self._local / _COPIED, {"files": {name: list(entry) for name, entry in self._files.items()}})

    def has(self, name: str, sent: Sent) -> bool:
        """Whether the copy of a file is there as it was made, and what was published is the same."""
        version, sha256 = self._files.get(name, (None, ""))
        return sha256 == sent.sha256 and version == self._version(name)

    def add(self, name: str, sha256: str) -> None:
        """A file was copied."""
        version = self._version(name)
        if version:
            self._files[name] = version, sha256

    def drop_others(self, names: Container[str]) -> None:
        """Delete untouched copies of files that are not published any more, and folders that this leaves empty."""
        for name in [name for name in self._files if name not in names]:
            path = self._local / check_name(name, str(self._local))
            if self._version(name) == self._files.pop(name)[0]:
                with storage_errors(path):
                    path.unlink(missing_ok=True)
            _remove_empty(self._local, name)

    def _version(self, name: str) -> Version | None:
        with contextlib.suppress(OSError):
            return Version.of(self._local / name)
        return None
