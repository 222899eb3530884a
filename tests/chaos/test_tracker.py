"""A whole run whose tracker and driver are killed: MLflow ends up with every reading, exactly once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.chaos.commands import await_readings, first_after, kill_alone
from tests.chaos.conftest import Tell
from tests.chaos.gate import TASK, Gate
from tests.chaos.table import Row
from tests.chaos.workloads import CONTROL
from tests.loops.command import Command
from tests.record.runs import Server, assert_exactly_once, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
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


def test_tracker_and_driver_killed_in_mid_run(
    tmp_path: Path, server: Server, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, gate = Command(tmp_path), Gate(tmp_path / "gate", monkeypatch)
    record = {"folder": "runs", "flush_s": 0.3, "tracking_uri": server.uri}
    command.write(**CONTROL | {"name": "small", "task": TASK}, seeds=[0, 1], record=record)
    server.start()
    held = gate.file_of_evaluation(0, episode=0)
    process = command.start("run", str(command.file))
    await_readings(command, 1, process)
    held.touch()
    gate.await_held(held, process)
    before = await_delivery(command)
    server.kill()
    killed_s = time.time()
    kill_alone(process)
    held.unlink()
    told = command("resume", str(command.run_folder.path))
    assert "MLflow lacks" in told
    assert f"proxygap sync {command.run_folder.path.relative_to(command.folder)}" in told
    command("sync", str(command.run_folder.path), code=6)
    server.start()
    assert " 0 pending" in command("sync", str(command.run_folder.path))
    synced_s = time.time() - killed_s
    first = snapshot(server.store, command)
    assert set(first) == {"small", "small/seed-0", "small/seed-1"}
    assert (first["small"][0], first["small/seed-0"][0]) == (before["parent"], before["0"])
    assert {status for _, status, *_ in first.values()} == {"FINISHED"}
    assert {len(points) for points in first["small"][-1].values()} == {1}
    for seed in (0, 1):
        assert [row["clocks"]["real_step"] for row in command.readings(seed)] == list(range(40, 241, 40))
        assert_exactly_once(server.store, command.run_folder, seed)
    found = MlflowClient(tracking_uri=server.uri).list_artifacts(before["parent"], "report")
    assert "report/report.html" in {artifact.path for artifact in found}
    assert "0 readings delivered, 0 pending" in command("sync", str(command.run_folder.path))
    assert snapshot(server.store, command) == first
    tell(Row("driver", (first_after(command.run_folder.seed(0).journal, killed_s),), True, None))
    tell(Row("MLflow server", (synced_s,), True, None))
