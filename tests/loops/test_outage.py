"""Whole runs whose tracker or driver is killed: MLflow ends up with every reading, exactly once."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.loops.command import Command
from tests.loops.tripwire import TASK, Wire
from tests.record.runs import Server, assert_exactly_once, runs_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
BRIEF = {"record": {"folder": "runs", "flush_s": 0.3}, "task": TASK, "seeds": [0, 1]}


@pytest.fixture
def server(tmp_path: Path) -> Any:
    made = Server(tmp_path)
    yield made
    made.kill()


def await_delivery(command: Command) -> dict[str, str]:
    """Until the tracker has acknowledged a reading of seed 0 and all that is on disk; the run ids by then."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for file in command.folder.glob("runs/small-*/tracking.json"):
            runs = json.loads(file.read_text()).get("runs", {})
            if runs.get("0", {}).get("delivered", 0) >= 1:
                return {name: position["run_id"] for name, position in runs.items()}
        time.sleep(0.1)
    raise AssertionError("nothing was delivered")


def snapshot(store: str, command: Command) -> dict[str, Any]:
    """All that MLflow has of the experiment."""
    client, told = MlflowClient(tracking_uri=store), {}
    for name, run in runs_of(store, command.run_folder).items():
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        points = {key: sorted((m.step, m.timestamp, repr(m.value)) for m in h) for key, h in histories.items()}
        told[name] = (run.info.run_id, run.info.status, run.info.end_time, run.data.tags, run.data.params, points)
    return told


def test_tracker_killed_in_mid_run_costs_a_warning_and_a_sync(command: Command, wire: Wire, server: Server) -> None:
    command.write(**{**BRIEF, "record": {**BRIEF["record"], "tracking_uri": server.uri}})
    server.start()
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held()
    before = await_delivery(command)
    server.kill()
    wire.release()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "MLflow lacks" in out
    assert "proxygap sync" in out
    command("sync", str(command.run_folder.path), code=6)
    server.start()
    assert " 0 pending" in command("sync", str(command.run_folder.path))
    first = snapshot(server.store, command)
    assert {name: ids[0] for name, ids in first.items()} | {"small": before["parent"], "small/seed-0": before["0"]} == {
        name: ids[0] for name, ids in first.items()
    }
    for seed in (0, 1):
        assert_exactly_once(server.store, command.run_folder, seed)
    assert {status for _, status, *_ in first.values()} == {"FINISHED"}
    report = MlflowClient(tracking_uri=server.uri).list_artifacts(before["parent"], "report")
    assert "report/report.html" in {artifact.path for artifact in report}
    command("sync", str(command.run_folder.path))
    assert snapshot(server.store, command) == first


def test_driver_killed_and_resumed_keeps_its_mlflow_runs(command: Command, wire: Wire) -> None:
    command.write(**BRIEF)
    store = f"sqlite:///{command.folder}/runs/mlflow.db"
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held()
    before = await_delivery(command)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [each.name() for each in alive] == [], "the run left processes behind"
    wire.release()
    command("resume", str(command.run_folder.path))
    after = snapshot(store, command)
    assert set(after) == {"small", "small/seed-0", "small/seed-1"}
    assert (after["small"][0], after["small/seed-0"][0]) == (before["parent"], before["0"])
    assert {status for _, status, *_ in after.values()} == {"FINISHED"}
    for seed in (0, 1):
        assert_exactly_once(store, command.run_folder, seed)
