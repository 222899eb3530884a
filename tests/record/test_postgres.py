"""Eight writers, one MLflow server on PostgreSQL, and both of them struck down mid-run: nothing is lost or doubled."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxygap.record.folder import ExperimentFolder
from proxygap.record.rows import read_journal
from proxygap.record.tracker import params
from tests.record.postgres import Postgres, postgres
from tests.record.runs import QUIET, Server, as_told, history_of, make_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WRITERS, SEEDS = 8, (0, 1)

WRITER = """
import sys
import time
from pathlib import Path
from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.journal import Journal
from proxygap.record.shipper import Shipper
folder = ExperimentFolder(Path(sys.argv[1]))
runs = [folder.seed(seed) for seed in (0, 1)]
for run in runs:
    run.set_status(RunState.RUNNING)
journals = [Journal(run.journal) for run in runs]
shipper = Shipper(folder, every_s=0.25)
shipper.start()
iteration = 0
for line in sys.stdin:
    for iteration in range(iteration + 1, iteration + 1 + int(line)):
        for number, journal in enumerate(journals):
            taken = [Measurement(f"m{index}", iteration + number / 7, Side.OBJECTIVE) for index in range(15)]
            taken.append(Measurement("return", -float(iteration), Side.OUTCOME))
            journal.write(Reading(Clocks(iteration=iteration, real_step=10 * iteration), tuple(taken)))
        time.sleep(0.1)
for run, journal in zip(runs, journals, strict=True):
    journal.close()
    run.set_status(RunState.FINISHED)
print(shipper.stop(timeout=120), flush=True)
"""


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.fixture
def tracker(tmp_path: Path, database: Postgres) -> Iterator[Server]:
    made = Server(tmp_path, store=database.uri)
    yield made
    made.kill()


def test_the_store_equals_the_journals_after_both_servers_were_killed(
    tmp_path: Path, database: Postgres, tracker: Server
) -> None:
    tracker.start()
    record = {"tracking_uri": tracker.uri, "tracking_experiment": "shared"}  # so that all want to make it at once
    folders = [make_folder(tmp_path, f"load-{number}", SEEDS, **record) for number in range(WRITERS)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(writer(folder)) for folder in folders]
        write(writers, 3)
        await_all(folders, lambda last, delivered: not last["error"] and delivered == 6)
        write(writers, 20)
        await_all(folders, lambda _, delivered: delivered > 6)
        tracker.kill()
        await_all(folders, lambda last, _: bool(last["error"]))
        write(writers, 20)
        tracker.start()
        await_all(folders, lambda last, delivered: not last["error"] and delivered > 46)
        write(writers, 20)
        database.stop()
        await_all(folders, lambda last, _: bool(last["error"]))
        database.start()
        write(writers, 3)
        ends = end(writers)
    assert all("lag=0, error=''" in told for told in ends), ends
    store = Store(database)
    assert len(store.runs) == WRITERS * (1 + len(SEEDS))
    for folder in folders:
        assert_delivered(store, folder)


@contextlib.contextmanager
def writer(folder: ExperimentFolder) -> Iterator[subprocess.Popen[str]]:
    """A run that writes and ships until its standard input closes."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder.path)], env=QUIET, text=True, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write(writers: list[subprocess.Popen[str]], readings: int) -> None:
    """Have every writer write so many readings of each seed, a tenth of a second apart; returns at once."""
    for each in writers:
        assert each.stdin is not None
        each.stdin.write(f"{readings}\n")
        each.stdin.flush()


def end(writers: list[subprocess.Popen[str]]) -> list[str]:
    """Let all of them ship what is left, and end; their shippers' last words."""
    for each in writers:
        assert each.stdin is not None
        each.stdin.close()
    return [each.stdout.read() for each in writers if each.stdout is not None]


def await_all(folders: list[ExperimentFolder], condition: Callable[[dict[str, Any], int], bool]) -> None:
    """Wait until it holds of every folder's last attempt to deliver, and of the readings acknowledged so far."""
    until = time.monotonic() + 240
    while not all(condition(*told) for told in (attempt(folder) for folder in folders)):
        assert time.monotonic() < until, [attempt(folder) for folder in folders]
        time.sleep(0.1)


def attempt(folder: ExperimentFolder) -> tuple[dict[str, Any], int]:
    try:
        tracking = json.loads((folder.path / "tracking.json").read_text())
    except FileNotFoundError:
        tracking = {}
    delivered = sum(position["delivered"] for position in tracking.get("runs", {}).values())
    return tracking.get("last", {"error": ""}), delivered


class Store:
    """MLflow's tables, read as they are: active runs by key, and what each has."""

    def __init__(self, database: Postgres) -> None:
        with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:

            def rows(query: str) -> list[Any]:
                cursor.execute(query)
                return cursor.fetchall()

            active = dict(rows("select run_uuid, status from runs where lifecycle_stage = 'active'"))
            self.tags: dict[str, dict[str, str]] = defaultdict(dict)
            for run, key, value in rows("select run_uuid, key, value from tags"):
                self.tags[run][key] = value
            self.params: dict[str, dict[str, str]] = defaultdict(dict)
            for run, key, value in rows("select run_uuid, key, value from params"):
                self.params[run][key] = value
            self.metrics: dict[str, list[Any]] = defaultdict(list)
            for run, *metric in rows("select run_uuid, key, value, is_nan, step, timestamp from metrics"):
                self.metrics[run].append(metric)
        self.status = active
        identities = {run: (self.tags[run]["proxygap.execution"], self.tags[run]["proxygap.run_key"]) for run in active}
        assert len(set(identities.values())) == len(active), "a run has a twin"
        self.runs = {identity: run for run, identity in identities.items()}

    def run_of(self, folder: ExperimentFolder, seed: int | None) -> str:
        """Id of the one run of a seed (None: of the experiment)."""
        return self.runs[folder.identity["execution"], folder.run_key(seed)]


def assert_delivered(store: Store, folder: ExperimentFolder) -> None:
    parent = store.run_of(folder, None)
    for seed in (None, *SEEDS):
        run = store.run_of(folder, seed)
        assert store.params[run] == params(folder.experiment)
        assert (store.status[run], store.tags[run]["proxygap.state"]) == ("FINISHED", "finished")
        assert store.tags[run].get("mlflow.parentRunId") == (None if seed is None else parent)
    for seed in SEEDS:
        journal = folder.seed(seed).journal
        assert len(read_journal(journal)) == 66
        assert as_told(store.metrics[store.run_of(folder, seed)]) == history_of(journal)
