"""A whole run whose tracker and driver are killed: MLflow ends up with every reading, exactly once."""

from __future__ import annotations

import json
import subprocess
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
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
RAYS_OWN = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""They notice the death of their cluster at once and take a minute over it."""


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


def test_tracker_and_driver_killed_in_mid_run(command: Command, wire: Wire, server: Server) -> None:
    command.write(task=TASK, seeds=[0, 1], record={"folder": "runs", "flush_s": 0.3, "tracking_uri": server.uri})
    server.start()
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held(process)
    before = await_delivery(command)
    server.kill()
    kill_with_family(process)
    wire.release()
    told = command("resume", str(command.run_folder.path))
    assert "MLflow lacks" in told
    assert f"proxygap sync {command.run_folder.path.relative_to(command.folder)}" in told
    command("sync", str(command.run_folder.path), code=6)
    server.start()
    assert " 0 pending" in command("sync", str(command.run_folder.path))
    first = snapshot(server.store, command)
    assert set(first) == {"small", "small/seed-0", "small/seed-1"}
    assert (first["small"][0], first["small/seed-0"][0]) == (before["parent"], before["0"])
    assert {status for _, status, *_ in first.values()} == {"FINISHED"}
    assert {len(points) for points in first["small"][-1].values()} == {1}
    for seed in (0, 1):
        assert [row["clocks"]["real_step"] for row in command.readings(seed)] == [40, 80, 120, 160, 200, 240]
        assert_exactly_once(server.store, command.run_folder, seed)
    found = MlflowClient(tracking_uri=server.uri).list_artifacts(before["parent"], "report")
    assert "report/report.html" in {artifact.path for artifact in found}
    assert "0 readings delivered, 0 pending" in command("sync", str(command.run_folder.path))
    assert snapshot(server.store, command) == first


def kill_with_family(process: subprocess.Popen[str]) -> None:
    """SIGKILL of the driver alone; what it had started must not outlive it."""
    family = psutil.Process(process.pid).children(recursive=True)
    names = {each.pid: each.name() for each in family}
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs([each for each in family if names[each.pid] not in RAYS_OWN], timeout=60)
    assert [names[each.pid] for each in alive] == []
