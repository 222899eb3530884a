"""Run folders whose content proves where it comes from: every row of a journal is chained to the one before it.

A checkpoint holds the hash of the last row that it knows. So any folder tells by itself whether its journal is the
history of one writer (and of whom it took over from), and whether its checkpoints belong to that history.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.record.checkpoint import CheckpointStore

KEY = "the run"


@dataclass
class Writer:
    """What works in a folder: steps add rows, every second one also a checkpoint."""

    local: Path
    who: str

    def __post_init__(self) -> None:
        self.rows = rows_of(self.local)
        self.store = CheckpointStore(self.local / "checkpoints", keep=2)

    def step(self) -> None:
        """One more row, a status, and now and then a checkpoint."""
        number = len(self.rows) + 1
        last = self.rows[-1]["hash"] if self.rows else ""
        row = {"n": number, "who": self.who, "hash": hashlib.sha256(f"{last}/{number}/{self.who}".encode()).hexdigest()}
        with (self.local / "journal.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        if number % 2 == 0:
            state = State({"w": np.full(1000, number, np.float32)}, {"hash": row["hash"]})
            self.store.save({"policy": state}, Clocks(real_step=number), KEY)
        (self.local / "status.json").write_text(json.dumps({"rows": number}))


def rows_of(local: Path) -> list[dict]:
    """The rows of a folder's journal, known to be one chain."""
    path = local / "journal.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    last = ""
    for number, row in enumerate(rows, 1):
        assert row["n"] == number
        last = hashlib.sha256(f"{last}/{number}/{row['who']}".encode()).hexdigest()
        assert row["hash"] == last, f"row {number} does not follow the one before it"
    return rows


def check(local: Path, *, settled: bool = True) -> int:
    """Rows of a folder that holds one writer's history; every checkpoint that verifies belongs to it, the newest does.

    Where writers are still at it (not ``settled``), the journal may be newer by more than a checkpoint.

    Raises:
        AssertionError, CheckpointRefused: it does not.
    """
    rows = rows_of(local)
    for path in (local / "checkpoints").glob("step-*"):
        assert int(path.name[5:15]) <= len(rows), "a checkpoint is newer than the journal"
    found = CheckpointStore(local / "checkpoints", keep=2).load_newest(KEY)
    if found is not None:
        assert not found.refusals
        number = found.clocks.real_step
        assert found.parts["policy"].structure["hash"] == rows[number - 1]["hash"]
        assert (found.parts["policy"].arrays["w"] == number).all()
    else:
        assert len(rows) < 2 or not settled, "the checkpoints are missing"
    if (local / "status.json").exists():
        assert json.loads((local / "status.json").read_text())["rows"] <= len(rows)
    return len(rows)
