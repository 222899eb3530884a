"""The command itself under siege: its process, its tracker and the tracker's database, until it has come to its end."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from proxygap.record.rows import Row as JournalRow
from proxygap.record.rows import read_journal
from tests.chaos.long.fronts import LONG_CONTROL
from tests.chaos.long.siege import ON_RECOVERY
from tests.chaos.table import Row
from tests.loops.command import Command
from tests.record.postgres import Postgres, postgres
from tests.record.runs import Server, as_told, history_of
from tests.record.test_postgres import Store

MOST_STARTS = 60
ENDED_BY_A_SIGNAL = (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, signal.SIGTERM)
"""Return codes; the last one is Ray's own handler's, which has the signal for the seconds of ``ray.init``."""


def driver_rounds(root: Path, rng: random.Random, seconds: float, every_s: float) -> list[Row]:
    """SIGKILL or SIGTERM of the driver, kills of MLflow and of PostgreSQL; then the store must equal the journal."""
    with postgres() as database:
        tracker = Server(root, store=database.uri)
        try:
            return _rounds(root, rng, seconds, every_s, database, tracker)
        finally:
            tracker.kill()


def _rounds(
    root: Path, rng: random.Random, seconds: float, every_s: float, database: Postgres, tracker: Server
) -> list[Row]:
    clean = _command(root / "clean", f"sqlite:///{root}/clean.db")
    began = time.monotonic()
    clean("run", str(clean.file))
    clean_s, until, rows = time.monotonic() - began, time.monotonic() + seconds, list[Row]()
    tracker.start()
    while not rows or time.monotonic() < until:
        command = _command(root / f"round-{len(rows)}", tracker.uri)
        began = time.monotonic()
        taken = _to_the_end(command, rng, every_s, database, tracker)
        run_s = time.monotonic() - began
        command("sync", str(command.run_folder.path))
        journal = command.run_folder.seed(0).journal
        store = Store(database)
        told = as_told(store.metrics[store.run_of(command.run_folder, 0)])
        equal = command.readings() == clean.readings() and told == history_of(journal)
        journaled = read_journal(journal)
        rows += [
            Row(victim, tuple(_next(journaled, at_s) for at_s in at), True, equal, clean_s, run_s)
            for victim, at in sorted(taken.items())
        ]
    return rows


def _command(folder: Path, tracking_uri: str) -> Command:
    folder.mkdir(parents=True)
    command = Command(folder)
    record = {"folder": str(folder / "runs"), "flush_s": 0.5, "tracking_uri": tracking_uri}
    tree: dict[str, Any] = {**LONG_CONTROL, "name": "small", "record": record}
    command.write(**tree, compute={"threads": 1})
    return command


def _to_the_end(
    command: Command, rng: random.Random, every_s: float, database: Postgres, tracker: Server
) -> dict[str, list[float]]:
    """Start it until it ends by itself; when each victim was struck, seconds since the epoch."""
    taken: dict[str, list[float]] = {}
    for _ in range(MOST_STARTS):
        process, known = command.start("run", str(command.file)), _readings(command)
        while not _ended(process, rng.expovariate(1.0 / every_s)):
            if rng.random() > ON_RECOVERY:
                while _readings(command) <= known and not _ended(process, 0.2):
                    continue
            if process.returncode is not None:
                break
            known = _readings(command)
            victim = rng.choice(("driver, SIGKILL", "driver, SIGTERM", "MLflow server", "PostgreSQL"))
            taken.setdefault(victim, []).append(time.time())
            if victim == "MLflow server":
                tracker.kill()
                tracker.start()
            elif victim == "PostgreSQL":
                database.stop()
                database.start()
            else:
                _strike(process, signal.SIGKILL if "KILL" in victim else signal.SIGTERM)
        if process.returncode == 0:
            return taken
        assert process.returncode in ENDED_BY_A_SIGNAL, process.returncode
    raise AssertionError(f"not at its end after {MOST_STARTS} starts")


def _readings(command: Command) -> int:
    found = (command.folder / "runs").glob("small-*/seed-0/journal.jsonl")
    return sum(journal.read_bytes().count(b'"values"') for journal in found)


def _ended(process: subprocess.Popen[str], within_s: float) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=within_s)
    return process.returncode is not None


def _strike(process: subprocess.Popen[str], number: int) -> None:
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=120)
    psutil.wait_procs(family, timeout=90)


def _next(rows: list[JournalRow], at_s: float) -> float:
    """Seconds from a strike until the journal goes on."""
    return min((row.time_ms / 1000 - at_s for row in rows if row.time_ms / 1000 > at_s), default=float("nan"))
