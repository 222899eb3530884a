"""The journal: every measurement of a run on disk, synced, before anything else hears of it.

The form of the file is told in `proxygap.record.rows`. ``time_ms`` strictly increases over new rows, so that
(key, real_step, time_ms) names one measurement in every tracker. A torn last line is cut off on opening.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError
from proxygap.base.measurement import Reading
from proxygap.record.folder import storage_errors, write_atomically
from proxygap.record.rows import Raw, clocks_of, header, last_clocks, lines_of, read_raw


class Journal:
    """The one writer of a run's journal; a `Recorder`.

    Args:
        path: the journal's file; created if absent, continued if present.

    Raises:
        StorageError: not writable, corrupt before its last line, or open in another process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._superseded_path = path.with_name("superseded.jsonl")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
        self._descriptor = -1
        self._acquire()
        try:
            self._open()
        except BaseException:  # whatever it was, the lock is given back; it is raised again
            self.close()
            raise

    def _acquire(self) -> None:
        with storage_errors(self._path):
            try:
                self._lock.acquire()
            except Timeout as error:
                raise StorageError(
                    "another process is writing this run", field=str(self._path), remedy="Wait for it, or stop it"
                ) from error

    def _open(self) -> None:
        superseded = self._superseded()
        rows, end = read_raw(self._path) if self._path.exists() else ([], 0)
        if not rows:
            rows, end = [header(generation=0)], self._replace([header(generation=0)])
        self._generation = int(rows[0].get("generation", 0))
        numbered = [row for row in (*rows, *superseded) if "seq" in row]
        self._next_seq = max((row["seq"] for row in numbered), default=-1) + 1
        self._last_ms = max((row["time_ms"] for row in numbered), default=0)
        self._clocks = last_clocks(rows)
        self._declared = _declarations(rows)
        present = {row["seq"] for row in rows if "seq" in row}
        self._replayable = _by_clocks(row for row in superseded if row["seq"] not in present)
        self._attach(end)

    def _attach(self, end: int) -> None:
        """Write from ``end`` on; bytes after it were never acknowledged and are cut off."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        with storage_errors(self._path):
            self._descriptor = os.open(self._path, os.O_RDWR)
            torn = os.fstat(self._descriptor).st_size - end
            os.ftruncate(self._descriptor, end)
        self._end, self._overhang = end, False
        if torn > 0:
            self.event("journal_tail_cut", {"bytes": torn})

    def write(self, reading: Reading) -> None:
        """Persist a reading: once this returns, it survives a kill and a power cut.

        A reading that replays a superseded row (equal clocks, equal values on all sides but time) is written as that
        row, its time included, so that trackers which have the row already see no second one.

        Raises:
            StorageError: the disk is full or not writable; the journal stays readable and may be written again.
            ValueError: two measurements share a key.
        """
        values = {measurement.key: _number(measurement.value) for measurement in reading.measurements}
        if len(values) != len(reading.measurements):
            raise ValueError(f"a key is measured twice in one reading: {sorted(values)}")
        declared = {m.key: [m.unit, str(m.direction)] for m in reading.measurements}
        news = {key: what for key, what in declared.items() if self._declared.get(key) != what}
        old = self._superseded_twin(reading.clocks, values)
        row = old or {**self._stamp(), "clocks": reading.clocks.as_dict(), "values": values}
        self._append(([{"declare": news}] if news else []) + [row])
        if old:
            self._replayable[reading.clocks].remove(old)
        self._declared.update(news)
        self._clocks = reading.clocks

    def event(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Persist something that happened. Raises StorageError as `write` does."""
        row = {**self._stamp(), "clocks": self._clocks.as_dict(), "event": kind, "detail": _plain(dict(detail))}
        self._append([row])

    def rewind(self, iteration: int) -> int:
        """Move readings taken after ``iteration`` to ``superseded.jsonl``; events stay, for they happened.

        Returns:
            The number of readings moved.

        Raises:
            StorageError: as `write` does; the journal is then as it was.
        """
        rows, _ = read_raw(self._path)
        late = [row for row in rows if "values" in row and row["clocks"]["iteration"] > iteration]
        if not late:
            return 0
        old = self._superseded()
        known = {row["seq"] for row in old}
        superseded = old + [row for row in late if row["seq"] not in known]
        write_atomically(self._superseded_path, lines_of([header(generation=0), *superseded]))
        moved = {row["seq"] for row in late}
        self._generation += 1
        kept = [header(self._generation), *(row for row in rows[1:] if row.get("seq") not in moved)]
        end = self._replace(kept)
        present = {row["seq"] for row in kept if "seq" in row}
        self._replayable = _by_clocks(row for row in superseded if row["seq"] not in present)
        self._clocks = last_clocks(kept)
        self._attach(end)
        self.event("journal_rewound", {"to_iteration": iteration, "readings": len(late)})
        return len(late)

    def close(self) -> None:
        """Let another process write; nothing is buffered."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def _stamp(self) -> Raw:
        return {"seq": self._next_seq, "time_ms": max(time.time_ns() // 1_000_000, self._last_ms + 1)}

    def _superseded(self) -> list[Raw]:
        rows = read_raw(self._superseded_path)[0] if self._superseded_path.exists() else []
        return [row for row in rows if "seq" in row]

    def _superseded_twin(self, clocks: Clocks, values: Mapping[str, float | str]) -> Raw | None:
        wanted = _outside_time(values)
        return next((row for row in self._replayable.get(clocks, []) if _outside_time(row["values"]) == wanted), None)

    def _append(self, rows: list[Raw]) -> None:
        content = lines_of(rows)
        with storage_errors(self._path):
            if self._overhang:
                os.ftruncate(self._descriptor, self._end)
            self._overhang = True  # until the whole of it is known to be on disk
            try:
                _write_all(self._descriptor, content, self._end)
                os.fsync(self._descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, self._end)
                raise
        self._end, self._overhang = self._end + len(content), False
        self._next_seq = max(self._next_seq, rows[-1]["seq"] + 1)
        self._last_ms = max(self._last_ms, rows[-1]["time_ms"])

    def _replace(self, rows: list[Raw]) -> int:
        content = lines_of(rows)
        write_atomically(self._path, content)
        return len(content)


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        content, offset = content[count:], offset + count


def _declarations(rows: Iterable[Raw]) -> dict[str, list[str]]:
    return {key: what for row in rows for key, what in row.get("declare", {}).items()}


def _by_clocks(rows: Iterable[Raw]) -> dict[Clocks, list[Raw]]:
    found: dict[Clocks, list[Raw]] = {}
    for row in rows:
        found.setdefault(clocks_of(row), []).append(row)
    return found


def _outside_time(values: Mapping[str, float | str]) -> dict[str, float | str]:
    return {key: value for key, value in values.items() if not key.startswith("time/")}


def _number(value: float) -> float | str:
    value = float(value)
    return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")


def _plain(value: Any) -> Any:
    """Anything as strict JSON: what JSON does not know is written as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
