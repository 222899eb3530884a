"""The command itself is stopped, killed in an evaluation, and robbed of its disk; run again, it ends the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from proxygap.record.folder import RunState, SeedFolder
from proxygap.record.rows import EventRow, read_journal
from tests.chaos.commands import await_readings, first_after, kill_alone
from tests.chaos.conftest import Tell
from tests.chaos.disk import small_disk
from tests.chaos.gate import TASK, Gate
from tests.chaos.table import Row
from tests.chaos.workloads import CONTROL
from tests.loops.command import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
GATED: dict[str, Any] = {**CONTROL, "name": "small", "task": TASK}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(tmp_path_factory.mktemp("gate") / "gate", patch)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, gate: Gate) -> list[dict[str, Any]]:
    """What an undisturbed run measures."""
    command = Command(tmp_path_factory.mktemp("clean"))
    command.write(**GATED)
    command("run", str(command.file))
    assert len(command.readings()) == 6
    return command.readings()


def state_of(run: SeedFolder) -> RunState:
    status = run.status()
    assert status is not None
    return status.state


def test_preempted_then_killed_in_an_evaluation(
    tmp_path: Path, gate: Gate, clean: list[dict[str, Any]], tell: Tell
) -> None:
    command = Command(tmp_path)
    command.write(**GATED)
    held = gate.file_of_evaluation(0, episode=1)
    held.touch()
    process = command.start("run", str(command.file))
    gate.await_held(held, process)
    preempted_s = time.time()
    process.send_signal(signal.SIGTERM)
    held.unlink()
    out, err = process.communicate(timeout=120)
    stopped_s = time.time() - preempted_s
    assert process.returncode == 143, out + err
    run = command.run_folder.seed(0)
    assert state_of(run) is RunState.INTERRUPTED
    kept = len(command.readings())
    assert 1 <= kept < 6

    process = command.start("run", str(command.file))
    await_readings(command, kept + 1, process)
    held.touch()
    held.with_name(f"{held.name}.held").unlink()
    gate.await_held(held, process)
    killed_s = time.time()
    kill_alone(process)
    held.unlink()
    assert len(command.readings()) < 6

    command("run", str(command.file))
    assert state_of(run) is RunState.FINISHED
    assert command.readings() == clean
    kinds = [row.kind for row in read_journal(run.journal) if isinstance(row, EventRow)]
    assert (kinds.count("interrupted"), kinds.count("resumed")) == (1, 2)
    tell(Row("driver, SIGTERM", (stopped_s,), True, True))
    tell(Row("driver, in evaluation", (first_after(run.journal, killed_s),), True, True))


def test_a_full_disk_ends_the_run_and_costs_nothing_else(
    tmp_path: Path, gate: Gate, clean: list[dict[str, Any]], tell: Tell
) -> None:
    command = Command(tmp_path)
    held = gate.file_of_evaluation(0, episode=0)
    with small_disk(tmp_path / "runs") as disk:
        command.write(**GATED, record={"folder": str(disk.folder), "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"})
        process = command.start("run", str(command.file))
        await_readings(command, 2, process)
        held.touch()
        gate.await_held(held, process)
        disk.fill(process.pid)
        filled_s = time.time()
        held.unlink()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 9, out + err
        assert "Free disk space and resume" in err
        before = command.readings()
        assert 2 <= len(before) < 6
        assert before == clean[: len(before)]
        disk.free()
        command("run", str(command.file))
        assert command.readings() == clean
        tell(Row("disk full", (first_after(command.run_folder.seed(0).journal, filled_s),), True, True))
