"""What a run leaves in its folder, what MLflow makes of it, and a real MLflow server that can be killed."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from proxygap.base.clock import Clocks
from proxygap.base.measurement import Measurement, Reading, Side
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.rows import ReadingRow, read_journal
from proxygap.record.tracker import allowed_name

QUIET = {
    **os.environ,
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "DO_NOT_TRACK": "true",
    "OMP_NUM_THREADS": "1",
}


def reading(iteration: int, value: float | None = None, seconds: float = 1.0) -> Reading:
    """Forty measurements, the values a function of the iteration."""
    base = float(iteration) if value is None else value
    taken = [Measurement(f"m{index}", base + index, Side.OBJECTIVE, "nats") for index in range(38)]
    extra = [Measurement("return", -base, Side.OUTCOME, "reward"), Measurement("wall", seconds, Side.TIME, "s")]
    return Reading(Clocks(iteration=iteration, real_step=10 * iteration), (*taken, *extra))


def make_folder(
    root: Path, name: str = "quickstart", seeds: tuple[int, ...] = (0, 1), **record: str
) -> ExperimentFolder:
    folder = ExperimentFolder.place(root, name, "abcdef0123456789")
    resolved = {"name": name, "question": "Does it?", "seeds": list(seeds), "fit": {"members": 5}, "record": record}
    provenance = {"versions": {"ray": "2.60.0"}, "source": {"commit": "c0ffee"}}
    folder.create(experiment_hash="abcdef0123456789", yaml_text="name: x\n", resolved=resolved, provenance=provenance)
    return folder


def write_rows(folder: ExperimentFolder, seed: int, iterations: range) -> None:
    journal = Journal(folder.seed(seed).journal)
    for iteration in iterations:
        journal.write(reading(iteration))
    journal.close()


def runs_of(uri: str, folder: ExperimentFolder) -> dict[str, Run]:
    """Run name to run, straight from the tracker; a name that occurs twice fails."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(str(folder.experiment["name"]))
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def assert_exactly_once(uri: str, folder: ExperimentFolder, seed: int) -> None:
    """Every key's history in MLflow is what the journal says: as often, at the same steps and times."""
    assert_history(uri, runs_of(uri, folder)[f"{folder.experiment['name']}/seed-{seed}"], folder.seed(seed).journal)


def assert_history(uri: str, run: Run, journal: Path) -> None:
    """A run's metrics are what a journal says, exactly once, and nothing but changes of a setting besides.

    They are read from the database itself: MLflow's client needs a request for every key.
    """
    query = "select key, value, is_nan, step, timestamp from metrics where run_uuid = ? and key not like 'setting/%'"
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        rows = database.execute(query, [run.info.run_id]).fetchall()
    assert as_told(rows) == history_of(journal)


History = Counter[tuple[str, str, int, int]]


def history_of(journal: Path) -> History:
    """What a journal says of every metric: key, value, step and time, and how often."""
    expected: History = Counter()
    for row in read_journal(journal):
        if isinstance(row, ReadingRow):
            clocks = row.reading.clocks
            values = {m.key: m.value for m in row.reading.measurements}
            values |= {f"clock/{name}": float(tick) for name, tick in clocks.as_dict().items()}
            for key, value in values.items():
                expected[allowed_name(key), told(value), clocks.real_step, row.time_ms] += 1
    return expected


def as_told(rows: Iterable[tuple[str, float, bool, int, int]]) -> History:
    """Rows of MLflow's table of metrics (key, value, whether it is NaN, step, milliseconds) in the same form."""
    return Counter((key, told(math.nan if nan else value), step, ms) for key, value, nan, step, ms in rows)


def told(value: float) -> str:
    """A value as MLflow's SQL stores tell it: the infinities become the largest floats, zero loses its sign."""
    return repr(math.copysign(1.7976931348623157e308, value) if math.isinf(value) else value + 0.0)


class Server:
    """``mlflow server``, by default on SQLite with one worker."""

    def __init__(self, root: Path, store: str = "") -> None:
        self._root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{root}/server.db"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        stores = [f"--backend-store-uri={self.store}", f"--artifacts-destination={self._root}/art"]
        with (self._root / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *stores, "--workers", "1"],
                stdout=log,
                stderr=log,
                env=QUIET,
                start_new_session=True,
            )
        for _ in range(1200):  # four minutes, on a machine with much else to do
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail((self._root / "server.log").read_text()[-2000:])

    def kill(self) -> None:
        """SIGKILL of the server and its worker: they are one session of their own."""
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None
