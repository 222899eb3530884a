"""Kills: of the writer, of the tracker, of the run. What was acknowledged is delivered, once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proxygap.base.errors import TrackerUnavailable
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.journal import Journal
from proxygap.record.rows import EventRow, ReadingRow, read_journal
from proxygap.record.shipper import Shipper, sync
from tests.record.runs import Server, assert_exactly_once, make_folder, reading, runs_of, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")]

WRITER = """
import sys
from pathlib import Path
from proxygap.record.journal import Journal
from tests.record.runs import reading
journal = Journal(Path(sys.argv[1]))
for iteration in range(int(sys.argv[2]), 1_000_000):
    journal.write(reading(iteration))
    print(iteration, flush=True)
"""


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path, first = tmp_path / "journal.jsonl", 1
    for rows in (3, 40, 17):
        command = [sys.executable, "-c", WRITER, str(path), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(rows)]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout.read().splitlines()]
        kept = [row.reading for row in read_journal(path) if isinstance(row, ReadingRow)]
        assert kept == [reading(n) for n in range(1, len(kept) + 1)]
        assert acknowledged[-1] <= len(kept) <= acknowledged[-1] + 1
        Journal(path).close()
        first = len(kept) + 1
    assert {row.kind for row in read_journal(path) if isinstance(row, EventRow)} <= {"journal_tail_cut"}


def test_a_server_killed_while_it_is_fed_and_started_again(tmp_path: Path, server: Server) -> None:
    folder = make_folder(tmp_path, tracking_uri=server.uri)
    for seed in (0, 1):
        write_rows(folder, seed, range(1, 4))
    started = time.monotonic()
    with pytest.raises(TrackerUnavailable, match=r"proxygap sync"):
        sync(folder)
    assert time.monotonic() - started < 20
    server.start()
    shipper = Shipper(folder, every_s=0.2)
    shipper.start()
    await_delivery(shipper)
    write_rows(folder, 0, range(4, 150))
    deadline = time.monotonic() + 60
    while shipper.status().lag >= 146 and time.monotonic() < deadline:
        time.sleep(0.02)
    server.kill()  # after the first of several batches
    write_rows(folder, 1, range(4, 30))
    assert shipper.stop(timeout=30).lag >= 26
    with pytest.raises(TrackerUnavailable):
        sync(folder)
    for seed in (0, 1):
        folder.seed(seed).set_status(RunState.FINISHED)
    server.start()
    assert sync(folder).pending == 0
    (folder.path / "tracking.json").unlink()
    assert sync(folder).delivered == 149 + 29  # all of it a second time
    server.kill()
    for seed in (0, 1):
        assert_exactly_once(server.store, folder, seed)
    assert {run.info.status for run in runs_of(server.store, folder).values()} == {"FINISHED"}


def await_delivery(shipper: Shipper) -> None:
    deadline = time.monotonic() + 60
    while (status := shipper.status()).lag or not status.time_ms:
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def test_the_shipper_survives_an_absent_tracker_and_tells_the_lag(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, seeds=(0,), tracking_uri="http://127.0.0.1:9")
    shipper = Shipper(folder, every_s=0.1)
    shipper.start()
    write_rows(folder, 0, range(1, 6))
    deadline = time.monotonic() + 30
    while not shipper.status().error and time.monotonic() < deadline:
        time.sleep(0.1)
    status = shipper.status()
    assert (status.alive, status.lag) == (True, 5)
    assert "does not take deliveries" in status.error
    final = shipper.stop(timeout=30)
    assert (final.alive, final.lag) == (False, 5)
    assert "journal keeps everything" in (folder.path / "shipper.log").read_text()


def test_the_shipper_drains_when_the_run_is_killed(folder: ExperimentFolder, uri: str) -> None:
    script = """
import sys, time
from pathlib import Path
from proxygap.record.folder import ExperimentFolder
from proxygap.record.shipper import Shipper
from tests.record.runs import write_rows
folder = ExperimentFolder(Path(sys.argv[1]))
shipper = Shipper(folder, every_s=60)
shipper.start()
print(shipper._process.pid, flush=True)
write_rows(folder, 0, range(4, 9))
print("written", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        assert run.stdout.readline() == "written\n"
        run.kill()
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(pid)
    assert_exactly_once(uri, folder, 0)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
