"""A local folder and its copy in storage: taken up by one attempt at a time, published, fetched.

The local folder is where a run works; it is never waited for. `Mirror.publish` brings up what changed, in an order that
keeps the copy whole at every moment: journals, then data, then the manifests of checkpoints, then the list of
what is there, then statuses. Readers go the other way round: the list first, journals last. So whatever
moment a writer was killed at, and however many write to attempts of their own, what is restored is a state that one
writer published, with a journal at least as new as its newest checkpoint.

Fencing does not ask the late writer to notice anything: it writes below its own attempt, where the newer one
never looks again. On a file system that caches listings (NFS) it may notice late; `Superseded` then comes late too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from proxygap.base.errors import StorageError, Superseded
from proxygap.record.attempt import (
    CLAIM,
    LOCAL,
    PUBLISHED,
    Attempt,
    Held,
    Published,
    Sent,
    attempts_of,
    held_by,
    newest_published,
)
from proxygap.record.folder import storage_errors
from proxygap.record.local_copy import (
    STATUSES,
    Version,
    alone,
    bring,
    local_files,
    move_aside,
    order,
    refuse_if_written,
    skipped,
)
from proxygap.record.storage import Storage

_PASSES = 8


class Mirror:
    """The one writer of a part of a run, as long as no newer attempt takes it up. Safe to publish from any thread.

    Args:
        storage: of the part.
        local: its folder on this node; need not exist.
        least: smallest number that the attempt may have, e.g. `asked_attempt`.
        skip: patterns (``fnmatch``) of relative names that are not the part's: neither copied nor moved.
    """

    def __init__(self, storage: Storage, local: Path, least: int = 0, skip: tuple[str, ...] = ()) -> None:
        self._part, self._local, self._least, self._skip = storage, local, least, skip
        self._attempt: Attempt | None = None
        self._sent: dict[str, tuple[Version, Sent]] = {}
        self._listed = False
        self._leftover: set[str] = set()
        self._mutex = threading.Lock()

    @property
    def attempt(self) -> Attempt:
        """The attempt that was claimed. Raises RuntimeError before `take_up`."""
        if self._attempt is None:
            raise RuntimeError("take_up comes first")
        return self._attempt

    def take_up(self) -> Attempt:
        """Claim the part; where another attempt published something newer than the local folder holds, restore that.

        What the local folder held is then moved to ``.aside/`` in it. Claims again if called again.

        Raises:
            Superseded: a newer attempt was claimed at the same time, or by a later submission.
            StorageError: storage or the local folder cannot be read or written, or a process here still writes to it.
        """
        with storage_errors(self._local):
            self._local.mkdir(parents=True, exist_ok=True)
        with self._mutex, alone(self._local):
            refuse_if_written(self._local, self._skip)
            held = held_by(self._local)
            mine = self._claim(held)
            _bring_newest(self._part, self._local, self._skip, before=mine)
            Held(mine, writes=True).save(self._local)
            self._attempt, self._sent, self._listed, self._leftover = mine, {}, False, set()
        return mine

    def publish(self) -> None:
        """Copy what changed since the last time; once this returns, whoever takes up the part later gets all of it.

        Raises:
            Superseded: a newer attempt has taken over; nothing that it reads was touched.
            StorageError: storage cannot be written; the next call makes up for it.
        """
        with self._mutex:
            older = self._check()
            try:
                self._upload()
                if self._listed and not older:
                    return
                self._list()
                self._tidy(older)
            except StorageError:
                if self._part.local:  # the newer attempt may have deleted the folder that this one writes into
                    self._check()
                raise
            self._check()

    def _claim(self, held: Held | None) -> Attempt:
        found = attempts_of(self._part)
        if found and self._least:
            self._refuse_if_later(found[-1])
        number = max([each.number for each in (*found, *([held.attempt] if held else []))], default=0) + 1
        mine = Attempt.numbered(max(number, self._least))
        facts = {"schema": 1, "submission": self._least, "time_ms": time.time_ns() // 1_000_000}
        self._part.below(mine.name).write(CLAIM, json.dumps(facts).encode())
        self._older(mine)
        return mine

    def _refuse_if_later(self, newest: Attempt) -> None:
        """A job that recovers does not take a part from the job that was submitted after it."""
        content = self._part.below(newest.name).read(CLAIM)
        try:
            submission = int(json.loads(content or b"{}").get("submission", 0))
        except (ValueError, TypeError, AttributeError):
            submission = 0
        if submission > self._least:
            raise _superseded(self._part, newest)

    def _older(self, mine: Attempt) -> list[Attempt]:
        found = attempts_of(self._part)
        if found and found[-1] > mine:
            raise _superseded(self._part, found[-1])
        return [each for each in found if each < mine]

    def _check(self) -> list[Attempt]:
        """Earlier attempts. Raises Superseded if there is a newer one."""
        return self._older(self.attempt)

    def _upload(self) -> None:
        """Bring up what changed, and know what is to be deleted."""
        own, now = self._part.below(self.attempt.name), local_files(self._local, self._skip)
        changed = sorted((name for name in now if not self._is_sent(name, now[name])), key=order)
        self._listed = self._listed and not changed and self._sent.keys() <= now.keys()
        for name in changed:
            sent = _send(own, self._local / name, name, now[name])
            if sent is None:
                del now[name]
            else:
                self._sent[name] = now[name], sent
        gone = self._sent.keys() - now.keys()
        self._leftover |= gone
        self._sent = {name: entry for name, entry in self._sent.items() if name not in gone}

    def _is_sent(self, name: str, version: Version) -> bool:
        return name in self._sent and self._sent[name][0] == version

    def _list(self) -> None:
        """Say what is there, and only then what stands with it (see `Sent.text`)."""
        own, files = self._part.below(self.attempt.name), {name: sent for name, (_, sent) in self._sent.items()}
        own.write(PUBLISHED, Published(self.attempt, files).encoded())
        for name, sent in files.items():
            if sent.text is not None:
                own.write(name, sent.text.encode())
        self._listed = True

    def _tidy(self, older: Iterable[Attempt]) -> None:
        """Everything is published: delete what is gone, and earlier attempts."""
        own = self._part.below(self.attempt.name)
        there = {folder for name in self._sent for folder in _above(name)}
        for name in sorted(self._leftover - self._sent.keys()):
            dead = [folder for folder in _above(name) if folder not in there]
            if dead:
                own.below(*dead[-1].split("/")).delete()
            else:
                own.remove(name)
        self._leftover.clear()
        for each in older:
            with contextlib.suppress(StorageError):  # its late writer may be at it; the next publish deletes the rest
                self._part.below(each.name).delete()


def fetch(storage: Storage, local: Path, skip: tuple[str, ...] = ()) -> Attempt | None:
    """Bring the newest published state of a part down, without claiming it.

    Files that are there already are not copied again. A folder that this attempt writes itself is left alone; what
    another attempt wrote in it is moved to ``.aside/``. Files that were never published stay where they are.

    Args:
        storage: of the part.
        local: its folder on this node; need not exist.
        skip: patterns of relative names that are left alone.

    Returns:
        Whose files these are; None where nothing was published.

    Raises:
        StorageError: storage or the local folder cannot be read or written.
    """
    if newest_published(storage) is None:
        return None
    with storage_errors(local):
        local.mkdir(parents=True, exist_ok=True)
    with alone(local):
        return _bring_newest(storage, local, skip)


def _bring_newest(part: Storage, local: Path, skip: tuple[str, ...], before: Attempt | None = None) -> Attempt | None:
    """Unless the folder's own attempt is as new: its files make way, and those of the newest published one come.

    With ``before`` the folder then holds nothing else: a checkpoint that was never published stays aside.
    """
    last: Published | None = None
    for _ in range(_PASSES):
        source, held = newest_published(part, before), held_by(local)
        if held and held.writes and (source is None or held.attempt >= source.attempt):
            return held.attempt
        if source is None:
            return None
        if held is None or held.writes:
            refuse_if_written(local, skip)
            owned = [LOCAL] if held else []  # first, so that what is left has no owner
            move_aside(local, [*owned, *local_files(local, skip)], held.attempt.name if held else "unnamed")
        wanted = {name: sent for name, sent in source.files.items() if not skipped(name, skip)}
        if bring(part, replace(source, files=wanted), local, forgiving=source == last):
            if before is not None:
                move_aside(local, local_files(local, skip).keys() - wanted.keys(), "unpublished")
            return source.attempt
        last = source
    remedy = "Try again when the run is less busy"
    raise StorageError("its files kept vanishing while they were copied", field=part.shown, remedy=remedy)


def _send(own: Storage, path: Path, name: str, version: Version) -> Sent | None:
    """Copy one file, or keep its text for the list; None where it vanished meanwhile: a checkpoint that was dropped."""
    try:
        if order(name)[0] < STATUSES:
            return Sent(version.size, own.upload(path, name))
        content = path.read_bytes()
        return Sent(version.size, hashlib.sha256(content).hexdigest(), content.decode())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(str(error), field=str(path), remedy="Check that the file may be read") from error


def _above(name: str) -> list[str]:
    """Folders above a name, the nearest first."""
    return [folder.as_posix() for folder in PurePosixPath(name).parents][:-1]


def _superseded(part: Storage, newer: Attempt) -> Superseded:
    remedy = "Leave the run to it; stop it first to run here"
    return Superseded(f"{newer.name} has taken this over", field=part.shown, remedy=remedy)
