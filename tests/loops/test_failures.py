"""What goes wrong in a run, and what the command makes of it: exit codes, records, and what is left behind."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import ExperimentFolder
from tests.loops.command import Command
from tests.loops.tripwire import TASK, Wire
from tests.record.runs import runs_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),
]
SAC = {"task": TASK, "fit": None, "loop": {"kind": "sac", "real_steps": 240, "updates_per_step": 2}}


def test_seeds_that_fail_are_rows_and_the_others_finish(command: Command, wire: Wire) -> None:
    command.write(**SAC, seeds=[0, 1, 2])
    wire.trap(seed=0, episode=12, what="raise")
    wire.trap(seed=1, episode=12, what="nan")
    command("run", str(command.file), code=8)
    folder = command.run_folder
    states = {run.seed: run.status() for run in folder.seeds()}
    assert {seed: status.state for seed, status in states.items() if status} == {
        0: "failed",
        1: "failed",
        2: "finished",
    }
    assert len(command.readings(2)) == 6
    page = (folder.report / "report.html").read_text()
    for seed, cause in ((0, "the cart has left the rail"), (1, "the observation is not finite at episode 12, step 1")):
        status = states[seed]
        assert status is not None
        assert cause in status.reason
        row = page[page.index('<tr class="failed"', page.index("the observation") if seed else 0) :] if seed else page
        assert cause in row
    runs = runs_of(f"sqlite:///{folder.path.parent}/mlflow.db", folder)
    assert {name: run.info.status for name, run in runs.items()} == {
        "small": "FAILED",
        "small/seed-0": "FAILED",
        "small/seed-1": "FAILED",
        "small/seed-2": "FINISHED",
    }
    assert "left the rail" in runs["small/seed-0"].data.tags["proxygap.state"]


def test_sigterm_then_the_same_command_then_again_then_fresh(command: Command, wire: Wire) -> None:
    command.write(**SAC)
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held(process)
    process.send_signal(signal.SIGTERM)
    wire.release()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    folder = command.run_folder.seed(0)
    status = folder.status()
    assert status is not None
    assert status.state == "interrupted"
    before = [path.name for path in CheckpointStore(folder.checkpoints, keep=2).paths()] if False else steps(folder.path)
    assert before
    command("run", str(command.file))
    assert len(command.readings()) == 6
    journal = folder.journal.read_bytes()
    assert f"resumed" in journal.decode()
    command("run", str(command.file))
    assert folder.journal.read_bytes() == journal
    command("run", str(command.file), "--fresh")
    folders = sorted((command.folder / "runs").glob("small-*"))
    assert len(folders) == 2
