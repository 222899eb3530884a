"""What goes wrong in a run, and what the command makes of it: exit codes, records, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess

import psutil
import pytest

from proxygap.record.folder import SeedFolder
from proxygap.record.rows import EventRow, read_journal
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
ALL_STEPS = [40, 80, 120, 160, 200, 240]


def state_of(run: SeedFolder) -> str:
    status = run.status()
    assert status is not None
    return str(status.state)


def steps(command: Command, seed: int = 0) -> list[int]:
    return [row["clocks"]["real_step"] for row in command.readings(seed)]


def test_seeds_that_fail_are_rows_and_the_others_finish(command: Command, wire: Wire) -> None:
    command.write(**SAC, seeds=[0, 1, 2])
    wire.trap(seed=0, episode=12, what="raise")
    wire.trap(seed=1, episode=12, what="nan")
    command("run", str(command.file), code=8)
    folder = command.run_folder
    assert [state_of(run) for run in folder.seeds()] == ["failed", "failed", "finished"]
    assert steps(command, seed=2) == ALL_STEPS
    rows = re.findall(r'<tr class="failed">.*?</tr>', (folder.report / "report.html").read_text(), re.DOTALL)
    assert len(rows) == 2
    assert "the cart has left the rail" in rows[0]
    assert "the observation is not finite at episode 12, step 1" in rows[1]
    runs = runs_of(f"sqlite:///{folder.path.parent}/mlflow.db", folder)
    told = {name: run.info.status for name, run in runs.items()}
    assert told == {
        "small": "FAILED",
        "small/seed-0": "FAILED",
        "small/seed-1": "FAILED",
        "small/seed-2": "FINISHED",
    }
    assert "the cart has left the rail" in runs["small/seed-0"].data.tags["proxygap.state"]


def test_sigterm_checkpoints_and_ends_with_its_own_code(command: Command, wire: Wire) -> None:
    command.write(**SAC)
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held(process)
    process.send_signal(signal.SIGTERM)
    wire.release()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    assert "proxygap resume" in out
    run = command.run_folder.seed(0)
    assert state_of(run) == "interrupted"
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    rows = [row for row in read_journal(run.journal) if isinstance(row, EventRow)]
    assert [row.detail["real_step"] for row in rows if row.kind == "interrupted"] == [int(newest.name[5:])]


@pytest.mark.long
def test_ctrl_c_on_seeds_and_hosts_in_actors_checkpoints_them_all(command: Command, wire: Wire) -> None:
    hosts = {"dynamics": {"hosts": 1, "cpus": 0.25}}
    command.write(task=TASK, seeds=[0, 1], serve=hosts, compute={"parallel_seeds": 2, "cpus_per_seed": 0.5})
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held(process)
    ctrl_c(process)
    wire.release()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, out + err
    assert {state_of(run) for run in command.run_folder.seeds()} == {"interrupted"}
    command("run", str(command.file))
    assert steps(command, seed=0) == steps(command, seed=1) == ALL_STEPS


@pytest.mark.long
def test_second_ctrl_c_ends_the_run_at_once(command: Command, wire: Wire) -> None:
    command.write(**SAC)
    wire.hold()
    process = command.start("run", str(command.file))
    wire.await_held(process)
    family = psutil.Process(process.pid).children(recursive=True)
    ctrl_c(process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)  # the first one waits for the end of the iteration
    ctrl_c(process)
    assert process.wait(10) == 130
    process.communicate()
    _, alive = psutil.wait_procs([each for each in family if each.is_running() and "Agent" not in each.name()], 60)
    assert alive == []


def ctrl_c(process: subprocess.Popen[str]) -> None:
    """What a terminal does: SIGINT to every process of the group that the command is in, this one left out."""
    command = psutil.Process(process.pid)
    for each in [command, *command.children(recursive=True)]:
        if each.is_running() and os.getpgid(each.pid) == os.getpgid(process.pid):
            each.send_signal(signal.SIGINT)


def test_a_request_that_can_never_be_met_leaves_nothing_behind(command: Command) -> None:
    process = command.start("run", str(command.file), "serve.dynamics.hosts=1", "serve.dynamics.gpus=4")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "serve.dynamics.gpus = 4" in err
    assert not (command.folder / "runs").exists()


def test_a_folder_that_cannot_be_written_ends_with_its_own_code(command: Command) -> None:
    process = command.start("run", str(command.file), "record.folder=experiment.yaml/runs")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 9, err
    assert f"{command.file}/runs: " in err
