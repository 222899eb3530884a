"""The layout of a run folder, and writes that are whole or absent.

::

    <folder>/<name>-<hash8>/     ExperimentFolder
      experiment.yaml            the resolved experiment, to read and to run again
      experiment.json            the same, for programs
      provenance.json            versions, commit, seeds
      identity.json              experiment hash and the id of this execution
      journal.jsonl              aggregates over seeds (the parent run)
      tracking.json              tracker, run ids, delivered positions
      report/
      seed-<n>/                  SeedFolder: journal.jsonl, superseded.jsonl, checkpoints/, status.json

With `record.storage`, experiment and seeds also have ``attempt.json`` (which attempt holds the folder), ``.aside/``
(what an attempt found in its place, never deleted), and ``.copied.json`` or ``.mirror.lock``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from proxygap.base.errors import StorageError


class RunState(StrEnum):
    """Where a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Status:
    """State of a run and, where it did not finish, the reason in one line."""

    state: RunState
    reason: str = ""
    time_ms: int = 0


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into a `StorageError` with a remedy that fits its cause."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise StorageError(
            error.strerror or str(error),
            field=str(path),
            remedy="Free disk space and resume" if full else "Check that the path exists and may be written",
        ) from error


def fsync_folder(path: Path) -> None:
    """Make the entries of a folder durable (a rename is not, until its folder is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(folder: Path) -> None:
    """Create a folder, and a file in it that is gone again. Raises StorageError with the remedy."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: after a crash at any moment it holds the old bytes or the new ones.

    Raises:
        StorageError: the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            fsync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict, indented JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one. Raises StorageError, naming the file."""
    with storage_errors(path):
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise StorageError(f"not JSON ({error})", field=str(path), remedy="Restore the file") from error
    if not isinstance(value, dict):
        raise StorageError("not a JSON object", field=str(path), remedy="Restore the file")
    return value


@dataclass(frozen=True, slots=True)
class SeedFolder:
    """The files of one run: one experiment with one seed."""

    path: Path
    seed: int

    @property
    def journal(self) -> Path:
        """All measurements and events of the run."""
        return self.path / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    def status(self) -> Status | None:
        """The last status set, None before the first. Raises StorageError for an unknown state."""
        written = read_json(self.path / "status.json")
        if not written:
            return None
        try:
            return Status(RunState(written["state"]), str(written["reason"]), int(written["time_ms"]))
        except (KeyError, ValueError) as error:
            where = str(self.path / "status.json")
            raise StorageError("not a status", field=where, value=written, remedy="Restore the file") from error

    def set_status(self, state: RunState, reason: str = "") -> None:
        """Replace the status."""
        status = {"state": str(state), "reason": reason, "time_ms": time.time_ns() // 1_000_000}
        write_json(self.path / "status.json", status)


def describe(
    path: Path, kind: str, content_hash: str, yaml_text: str, resolved: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write what identifies a folder of a ``kind``; a second call refreshes all but the id of the execution.

    Raises:
        StorageError: the folder cannot be written, or belongs to something else.
    """
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    identity = read_json(path / "identity.json")
    if identity and identity.get(f"{kind}_hash") != content_hash:
        remedy = "Choose another record.folder"
        raise StorageError(f"the folder belongs to another {kind}", field=str(path), remedy=remedy)
    if not identity:
        write_json(path / "identity.json", {f"{kind}_hash": content_hash, "execution": uuid.uuid4().hex})
    write_atomically(path / f"{kind}.yaml", yaml_text.encode())
    write_json(path / f"{kind}.json", resolved)
    write_json(path / "provenance.json", provenance)


def identity_of(path: Path, kind: str) -> dict[str, Any]:
    """Hash of what a folder of a ``kind`` holds, and id of its execution. Raises StorageError where there is none."""
    identity = read_json(path / "identity.json")
    if not identity.keys() >= {f"{kind}_hash", "execution"}:
        raise StorageError(f"no {kind} has been run here", field=str(path), remedy="Name the folder of one")
    return identity


@dataclass(frozen=True, slots=True)
class ExperimentFolder:
    """The files of one experiment, all of its seeds included. ``path`` is the experiment's own folder."""

    path: Path

    @staticmethod
    def place(root: Path, name: str, experiment_hash: str) -> ExperimentFolder:
        """Where an experiment lives below ``root``; nothing is created."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "experiment"
        return ExperimentFolder(root.absolute() / f"{readable}-{experiment_hash[:8]}")

    def create(
        self, *, experiment_hash: str, yaml_text: str, resolved: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> None:
        """Write what identifies the experiment; a second call refreshes all but the id of the execution.

        Raises:
            StorageError: the folder cannot be written, or belongs to another experiment.
        """
        describe(self.path, "experiment", experiment_hash, yaml_text, resolved, provenance)

    @property
    def journal(self) -> Path:
        """Aggregates over seeds."""
        return self.path / "journal.jsonl"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def experiment(self) -> dict[str, Any]:
        """The resolved experiment."""
        return read_json(self.path / "experiment.json")

    @property
    def yaml_text(self) -> str:
        """The resolved experiment as YAML. Raises StorageError."""
        with storage_errors(self.path / "experiment.yaml"):
            return (self.path / "experiment.yaml").read_text()

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, commit, seeds."""
        return read_json(self.path / "provenance.json")

    @property
    def identity(self) -> dict[str, Any]:
        """Hash of the experiment and id of this execution. Raises StorageError where there is none."""
        return identity_of(self.path, "experiment")

    def run_key(self, seed: int | None) -> str:
        """Identity of a run in every tracker: SHA-256 (hex) of experiment hash and seed (None: the parent)."""
        who = "parent" if seed is None else f"seed-{seed}"
        return hashlib.sha256(f"{self.identity['experiment_hash']}/{who}".encode()).hexdigest()

    def seed(self, seed: int) -> SeedFolder:
        """The folder of one seed, created if need be."""
        run = SeedFolder(self.path / f"seed-{seed}", seed)
        with storage_errors(run.path):
            run.checkpoints.mkdir(parents=True, exist_ok=True)
        return run

    def seeds(self) -> list[SeedFolder]:
        """Folders of all seeds that have been started, by seed."""
        found = [(int(match[1]), path) for path in self.path.glob("seed-*") if (match := _SEED.fullmatch(path.name))]
        return [SeedFolder(path, seed) for seed, path in sorted(found)]


_SEED = re.compile(r"seed-(-?\d+)")


def experiment_folders(root: Path) -> list[ExperimentFolder]:
    """All experiments below ``root``, newest first."""
    found = sorted(root.glob("*/identity.json"), key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return [ExperimentFolder(path.parent.absolute()) for path in found]
