"""Exact resume: N steps, kill -9, resume, N steps equal 2N steps, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxygap.experiment import load_experiment
from proxygap.record.checkpoint import CheckpointStore
from tests.loops.command import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SAC = {"loop": {"kind": "sac", "real_steps": 240, "updates_per_step": 2}, "fit": None}


def newest_parts(command: Command) -> dict[str, Any]:
    key = load_experiment(command.file).run_key(0)
    found = CheckpointStore(command.run_folder.seed(0).checkpoints, keep=2).load_newest(key)
    assert found is not None
    return found.parts


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for part, state in one.items():
        assert state.structure == other[part].structure, part
        assert state.arrays.keys() == other[part].arrays.keys(), part
        for name, array in state.arrays.items():
            assert array.dtype == other[part].arrays[name].dtype
            assert np.array_equal(array, other[part].arrays[name], equal_nan=array.dtype.kind == "f"), f"{part}/{name}"


@pytest.mark.parametrize("sections", [pytest.param({}, id="mbpo"), pytest.param(SAC, id="sac", marks=pytest.mark.long)])
def test_killed_and_resumed_equals_never_killed(tmp_path: Path, sections: dict[str, Any]) -> None:
    whole, broken = Command(tmp_path / "whole"), Command(tmp_path / "broken")
    for command in (whole, broken):
        command.folder.mkdir()
        command.write(**sections)
    whole("run", str(whole.file))
    process = broken.start("run", str(broken.file))
    broken.kill_after(process, readings=3)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    broken("resume", str(broken.run_folder.path))
    assert broken.readings() == whole.readings()
    assert len(whole.readings()) == 6
    assert_equal_states(newest_parts(broken), newest_parts(whole))


@pytest.mark.long
def test_broken_checkpoint_is_refused_by_name_and_the_previous_one_is_used(command: Command) -> None:
    command.write(loop={**SAC["loop"]}, fit=None)
    process = command.start("run", str(command.file))
    command.kill_after(process, readings=4)
    process.communicate(timeout=60)
    newest = sorted((command.run_folder.seed(0).checkpoints).glob("step-*"))[-1]
    victim = newest / "learner.safetensors"
    victim.write_bytes(victim.read_bytes()[:-7])
    command("resume", str(command.run_folder.path))
    events = [json.loads(line) for line in command.run_folder.seed(0).journal.read_text().splitlines()]
    refused = [row["detail"] for row in events if row.get("event") == "checkpoint_refused"]
    assert [row["checkpoint"] for row in refused] == [newest.name]
    assert [row["clocks"]["real_step"] for row in command.readings()] == [40, 80, 120, 160, 200, 240]


def test_interrupt_checkpoints_and_the_same_command_continues(command: Command) -> None:
    process = command.start("run", str(command.file))
    command.kill_after(process, readings=2, number=signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert command.run_folder.seed(0).status().state == "interrupted"
    command("run", str(command.file))
    assert command.run_folder.seed(0).status().state == "finished"
    assert [row["clocks"]["real_step"] for row in command.readings()] == [40, 80, 120, 160, 200, 240]


@pytest.mark.long
def test_altered_experiment_is_not_resumed(command: Command) -> None:
    command.write(loop={**SAC["loop"], "real_steps": 40}, fit=None)
    command("run", str(command.file))
    recorded = command.run_folder.path / "experiment.json"
    tree = json.loads(recorded.read_text())
    tree["optimize"]["discount"] = 0.5
    recorded.write_text(json.dumps(tree))
    command("resume", str(command.run_folder.path), code=3)


@pytest.mark.long
def test_run_folder_can_be_moved(command: Command) -> None:
    process = command.start("run", str(command.file))
    command.kill_after(process, readings=2)
    process.communicate(timeout=60)
    moved = command.folder / "elsewhere" / command.run_folder.path.name
    moved.parent.mkdir()
    shutil.move(command.run_folder.path, moved)
    command("resume", str(moved))
    assert json.loads((moved / "seed-0" / "status.json").read_text())["state"] == "finished"
