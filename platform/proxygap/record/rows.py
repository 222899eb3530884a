"""Rows of a journal: their forms on disk and in memory, and how they are read.

One JSON object per line. The first line is the header (``generation`` counts rewinds); ``declare`` rows give unit and
direction of the keys that follow; reading rows carry ``clocks`` and ``values``; event rows carry ``event`` and
``detail``. ``seq`` numbers rows uniquely for the life of a run.

A last line without a line end is a write that was never acknowledged, and is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.record.folder import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReadingRow:
    """A reading and when it was taken (milliseconds since 1970)."""

    seq: int
    time_ms: int
    reading: Reading


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened, with the clocks of the last reading before it."""

    seq: int
    time_ms: int
    clocks: Clocks
    kind: str
    detail: dict[str, Any]


Row = ReadingRow | EventRow


@dataclass(frozen=True, slots=True)
class Tail:
    """Rows of a journal from some byte on, and where they end. ``generation`` changes with every rewind."""

    generation: int
    rows: tuple[Raw, ...]
    end: int


def read_tail(path: Path, generation: int, offset: int, limit: int = 1 << 22) -> Tail:
    """Rows after ``offset``, about ``limit`` bytes of them; from the start where the journal was rewound or replaced.

    Raises:
        StorageError: unreadable, or corrupt before the last line.
    """
    with storage_errors(path), path.open("rb") as file:
        first = file.readline()
        if not first.endswith(b"\n"):
            return Tail(generation, (), 0)
        current = int(_parse(path, first, 0).get("generation", 0))
        file.seek(max(offset - 1, 0))
        at_line_end = file.read(1) == b"\n"
        end = offset if current == generation and at_line_end else len(first)
        file.seek(end)
        rows, stop = [], end + limit
        for line in file:
            if not line.endswith(b"\n") or end >= stop:
                break
            rows.append(_parse(path, line, end))
            end += len(line)
    return Tail(current, tuple(rows), end)


def read_raw(path: Path) -> tuple[list[Raw], int]:
    """All rows as they stand in the file, header included, and the byte at which the last complete line ends."""
    rows, end = [], 0
    with storage_errors(path), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                rows.append(_parse(path, line, end))
                end += len(line)
    return rows, end


def read_journal(path: Path) -> list[Row]:
    """All readings and events, in the order of the file; an absent journal is an empty one.

    Raises:
        StorageError: unreadable, written by a newer version, or corrupt before the last line (file and line named).
    """
    if not path.exists():
        return []
    declared: dict[str, list[str]] = {}
    rows: list[Row] = []
    for raw in read_raw(path)[0]:
        if "declare" in raw:
            declared.update(raw["declare"])
        elif "values" in raw:
            rows.append(ReadingRow(raw["seq"], raw["time_ms"], _reading(raw, declared)))
        elif "event" in raw:
            rows.append(EventRow(raw["seq"], raw["time_ms"], clocks_of(raw), raw["event"], raw["detail"]))
    return rows


def to_table(journals: Mapping[int, Sequence[Row]]) -> pa.Table:
    """All measurements in long form, one per row: seed, key, side, name, value, unit, direction, clocks, time (s)."""
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    types = {"seed": pa.int64()} | dict.fromkeys(("key", "side", "name"), text) | {"value": pa.float64()}
    types |= dict.fromkeys(("unit", "direction"), text) | dict.fromkeys(Clocks().as_dict(), pa.int64())
    types["time"] = pa.float64()
    columns: dict[str, list[Any]] = {name: [] for name in types}
    for seed, rows in journals.items():
        for row in rows:
            if isinstance(row, ReadingRow):
                for cell in _cells(seed, row):
                    for name, value in cell.items():
                        columns[name].append(value)
    return pa.table({name: pa.array(columns[name], type=kind) for name, kind in types.items()})


def number(value: float | str) -> float:
    """A value of a ``values`` row as a float; strict JSON spells NaN and the infinities as strings."""
    return float(value)


def _cells(seed: int, row: ReadingRow) -> Iterable[Raw]:
    shared = {"seed": seed, **row.reading.clocks.as_dict(), "time": row.time_ms / 1000}
    for m in row.reading.measurements:
        what = {"key": m.key, "side": str(m.side), "name": m.name, "value": m.value, "unit": m.unit}
        yield {**shared, **what, "direction": str(m.direction)}


def _reading(raw: Raw, declared: Mapping[str, list[str]]) -> Reading:
    measurements = []
    for key, value in raw["values"].items():
        side, _, name = key.partition("/")
        unit, direction = declared.get(key, ["", "neither"])
        measurements.append(Measurement(name, number(value), Side(side), unit, Direction(direction)))
    return Reading(clocks_of(raw), tuple(measurements))


def _parse(path: Path, line: bytes, start: int) -> Raw:
    """One line; a header of a newer schema, or anything that is no row of ours, is refused by file and line."""
    try:
        row = json.loads(line)
        if start == 0 and row["journal"] > SCHEMA:
            raise StorageError(
                "written by a newer version of ProxyGap", field=str(path), value=row["journal"], remedy="Upgrade it"
            )
        if start > 0 and "declare" not in row:
            _check(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        with path.open("rb") as file:
            line_number = file.read(start).count(b"\n") + 1
        raise StorageError(
            f"corrupt line ({type(error).__name__}: {error})",
            field=f"{path}:{line_number}",
            remedy="Restore the file from a copy, or remove this line to do without it",
        ) from error
    return dict(row)


def _check(row: Raw) -> None:
    """Raise KeyError, TypeError, ValueError or AttributeError where a reading or event row lacks its form."""
    clocks_of(row)
    int(row["seq"]) + int(row["time_ms"])
    if "values" not in row:
        row["detail"].items(), str(row["event"])
    for key, value in row.get("values", {}).items():
        Side(key.partition("/")[0]), number(value)


def header(generation: int) -> Raw:
    """The first line of a journal."""
    return {"journal": SCHEMA, "generation": generation}


def lines_of(rows: Iterable[Raw]) -> bytes:
    """Rows as bytes, one line each."""
    return b"".join(json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n" for row in rows)


def clocks_of(row: Raw) -> Clocks:
    """The clocks of a reading or event row."""
    return Clocks(**row["clocks"])


def last_clocks(rows: Sequence[Raw]) -> Clocks:
    """The clocks of the last reading."""
    return next((clocks_of(row) for row in reversed(rows) if "values" in row), Clocks())
