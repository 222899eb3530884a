"""Commands whose processes are killed: waiting for a moment, the kill, and who outlived it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from proxygap.record.rows import Row, read_journal
from tests.loops.command import Command

SLOW_TO_GO = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own agents notice the death of their cluster at once and take a minute over it."""


def await_readings(command: Command, count: int, process: subprocess.Popen[str]) -> None:
    """Until seed 0 of a command has so many readings on disk."""
    until, written = time.monotonic() + 120, 0
    while written < count:
        found = (command.folder / "runs").glob("small-*/seed-0/journal.jsonl")
        written = sum(journal.read_bytes().count(b'"values"') for journal in found)
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"the run did not come to {count} readings:\n" + "\n".join(process.communicate())[-3000:])
        time.sleep(0.01)


def first_after(journal: Path, at_s: float) -> float:
    """Seconds from a moment until the first row that a journal got after it."""
    rows: list[Row] = read_journal(journal)
    return min(row.time_ms / 1000 - at_s for row in rows if row.time_ms / 1000 > at_s)


def kill_alone(process: subprocess.Popen[str]) -> None:
    """SIGKILL of a command alone; what it had started must not outlive it."""
    family = psutil.Process(process.pid).children(recursive=True)
    names = {each.pid: each.name() for each in family}
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs([each for each in family if names[each.pid] not in SLOW_TO_GO], timeout=60)
    assert [names[each.pid] for each in alive] == []
