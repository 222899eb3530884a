"""The journal: what was acknowledged is there, whatever happened after."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxygap.base.clock import Clocks
from proxygap.base.errors import StorageError
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.record import journal as journal_module
from proxygap.record.journal import Journal
from proxygap.record.rows import EventRow, ReadingRow, read_journal, read_tail, to_table


def reading(iteration: int, value: float = 0.5, seconds: float = 1.0, real_step: int | None = None) -> Reading:
    step = 10 * iteration if real_step is None else real_step
    return Reading(
        Clocks(iteration=iteration, real_step=step, label=3),
        (
            Measurement("likelihood", value, Side.OBJECTIVE, "nats", Direction.HIGHER),
            Measurement("return", -value, Side.OUTCOME, "reward", Direction.HIGHER),
            Measurement("wall", seconds, Side.TIME, "s"),
        ),
    )


def readings(path: Path) -> list[Reading]:
    return [row.reading for row in read_journal(path) if isinstance(row, ReadingRow)]


def data_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if '"values"' in line]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "seed-0" / "journal.jsonl"
    with_journal = Journal(path)
    with_journal.write(reading(1))
    with_journal.event("host_restarted", {"host": 2, "lost": math.nan, "path": Path("x")})
    with_journal.write(reading(2, 0.1 + 0.2))
    with_journal.close()
    rows = read_journal(path)
    assert readings(path) == [reading(1), reading(2, 0.1 + 0.2)]
    (event,) = [row for row in rows if isinstance(row, EventRow)]
    assert (event.kind, event.detail, event.clocks) == (
        "host_restarted",
        {"host": 2, "lost": "NaN", "path": "x"},
        reading(1).clocks,
    )
    assert [row.seq for row in rows] == [0, 1, 2]
    assert all(a.time_ms < b.time_ms for a, b in itertools.pairwise(rows))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5))
def test_every_float_survives(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("j") / "journal.jsonl"
    taken = tuple(Measurement(f"m{i}", v, Side.MODEL) for i, v in enumerate(values))
    journal = Journal(path)
    journal.write(Reading(Clocks(), taken))
    journal.close()
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    (row,) = readings(path)
    assert [repr(m.value) for m in row.measurements] == [repr(v) for v in values]


def test_reopening_continues_numbers_and_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for iteration in (1, 2, 3):
        journal = Journal(path)
        journal.write(reading(iteration))
        journal.close()
    assert [row.seq for row in read_journal(path)] == [0, 1, 2]
    assert path.read_text().count("declare") == 1


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_torn_tail_is_cut_off_and_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    journal.write(reading(2))
    journal.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert readings(path) == [reading(1)]
    journal = Journal(path)
    journal.write(reading(3))
    journal.close()
    assert readings(path) == [reading(1), reading(3)]
    assert [row.kind for row in read_journal(path) if isinstance(row, EventRow)] == ["journal_tail_cut"]


@pytest.mark.parametrize(
    "damage", [b"garbage\n", b'{"seq": 1}\n', b"[1]\n", b'{"seq":1,"time_ms":2,"clocks":{"x":1}}\n']
)
def test_a_corrupt_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    journal.write(reading(2))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], damage, *lines[3:]]))
    with pytest.raises(StorageError, match=r"journal\.jsonl:4: corrupt line"):
        read_journal(path)
    with pytest.raises(StorageError, match=r"journal\.jsonl:4"):
        Journal(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"journal":99,"generation":0}\n')
    with pytest.raises(StorageError, match="newer version"):
        Journal(path)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(StorageError, match="another process"):
        Journal(tmp_path / "journal.jsonl")
    first.close()
    Journal(tmp_path / "journal.jsonl").close()


def test_a_key_measured_twice_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    twice = Measurement("a", 1.0, Side.MODEL)
    with pytest.raises(ValueError, match="twice"):
        journal.write(Reading(Clocks(), (twice, twice)))
    journal.close()


def test_a_full_disk_leaves_a_journal_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))

    def half(descriptor: int, content: bytes, offset: int) -> None:
        os.pwrite(descriptor, content[: len(content) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write_all", half)
        with pytest.raises(StorageError, match="Free disk space"):
            journal.write(reading(2))
    assert readings(path) == [reading(1)]
    journal.write(reading(2))
    journal.close()
    assert readings(path) == [reading(1), reading(2)]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="may be written"):
        Journal(tmp_path / "file" / "journal.jsonl")


def test_an_equal_replay_writes_the_original_rows_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for iteration in range(1, 6):
        journal.write(reading(iteration, seconds=iteration))
    original = data_lines(path)
    assert journal.rewind(2) == 3
    assert data_lines(path) == original[:2]
    journal.close()
    journal = Journal(path)  # a second crash before the next checkpoint
    journal.write(reading(3, seconds=77.0))
    assert journal.rewind(2) == 1
    for iteration in range(3, 7):
        journal.write(reading(iteration, seconds=99.0))
    journal.close()
    assert data_lines(path)[:5] == original
    assert readings(path)[5] == reading(6, seconds=99.0)
    assert len({row.seq for row in read_journal(path)}) == len(read_journal(path))
    assert data_lines(tmp_path / "superseded.jsonl") == original[2:]


def test_a_different_replay_keeps_both(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    journal.write(reading(2, math.nan))
    journal.write(reading(3, 1.0))
    original = data_lines(path)
    journal.rewind(1)
    journal.write(reading(2, math.nan))
    journal.write(reading(3, 2.0))
    journal.close()
    assert data_lines(path)[:2] == original[:2]
    times = [row.time_ms for row in read_journal(path) if isinstance(row, ReadingRow)]
    assert times[2] > json.loads(original[2])["time_ms"]
    assert data_lines(tmp_path / "superseded.jsonl") == original[1:]


def test_events_outlive_a_rewind(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    journal.write(reading(2))
    journal.event("interrupted", {})
    assert journal.rewind(1) == 1
    assert journal.rewind(1) == 0
    journal.close()
    assert [row.kind for row in read_journal(path) if isinstance(row, EventRow)] == ["interrupted", "journal_rewound"]


def test_a_tail_continues_and_starts_over_after_a_rewind(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    first = read_tail(path, 0, 0)
    journal.write(reading(2))
    second = read_tail(path, first.generation, first.end)
    assert [row["clocks"]["iteration"] for row in second.rows] == [2]
    assert read_tail(path, second.generation, second.end).rows == ()
    assert len(read_tail(path, second.generation, second.end + 10_000).rows) == 3  # declare and both readings
    journal.rewind(1)
    again = read_tail(path, second.generation, second.end)
    assert [row["clocks"]["iteration"] for row in again.rows if "values" in row] == [1]
    assert len(read_tail(path, 0, 0, limit=1).rows) == 1
    journal.close()


def test_the_table_is_long_and_complete(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(4, math.inf))
    journal.close()
    frame = to_table({7: read_journal(path), 8: []}).to_pandas()
    assert list(frame.columns[:7]) == ["seed", "key", "side", "name", "value", "unit", "direction"]
    assert list(frame.columns[7:]) == [*Clocks().as_dict(), "time"]
    row = frame.iloc[0].to_dict()
    assert (row["seed"], row["key"], row["side"], row["name"]) == (7, "objective/likelihood", "objective", "likelihood")
    assert (row["value"], row["unit"], row["direction"]) == (math.inf, "nats", "higher")
    assert (row["iteration"], row["real_step"], row["label"]) == (4, 40, 3)
    assert len(frame) == 3
    assert to_table({}).num_rows == 0


def test_a_long_torn_tail_leaves_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write(reading(1))
    journal.close()
    with path.open("ab") as file:
        file.write(b"\0" * 10_000)
    journal = Journal(path)
    journal.write(reading(2))
    journal.close()
    assert b"\0" not in path.read_bytes()
    assert readings(path) == [reading(1), reading(2)]


def test_times_are_unique_even_when_the_clock_stands_or_jumps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    for now_ms in (1_000, 1_000, 500):
        monkeypatch.setattr(journal_module.time, "time_ns", lambda now_ms=now_ms: now_ms * 1_000_000)
        journal = Journal(path)
        journal.write(reading(now_ms))
        journal.close()
    assert [row.time_ms for row in read_journal(path)] == [1_000, 1_001, 1_002]
