"""Small experiments run by the real command in a process of their own, so that they can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from proxygap.record.folder import ExperimentFolder
from proxygap.record.rows import ReadingRow, read_journal

SMALL: dict[str, Any] = {
    "name": "small",
    "question": "Does it run?",
    "task": {"kind": "gymnasium", "id": "InvertedPendulum-v5"},
    "outcomes": ["return"],
    "collect": {"random_steps": 60},
    "fit": {"members": 3, "hidden": [16, 16], "max_epochs": 5},
    "imagine": {"rollouts_per_step": 10, "horizon": {"start": 1, "end": 3, "from_step": 50, "to_step": 150}},
    "optimize": {"hidden": [16, 16], "batch_size": 32},
    "loop": {"kind": "mbpo", "real_steps": 240, "updates_per_step": 2, "refit_every": 40},
    "probe": {"every": 40, "episodes": 2, "resamples": 100, "imagined_horizon": 10},
    "record": {"flush_s": 1.0},
}


class Command:
    """Runs ``proxygap`` with its own run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "experiment.yaml"

    def write(self, **sections: Any) -> None:
        """Write the experiment file; JSON is YAML."""
        record = {**SMALL["record"], "folder": str(self.folder / "runs")}
        self.file.write_text(json.dumps({**SMALL, "record": record, **sections}))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [sys.executable, "-c", "from proxygap.cli import main; main()", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, text=True, cwd=self.folder, **pipes)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"exit code {process.returncode}\n{out[-3000:]}\n{err[-6000:]}"
        return out

    @property
    def run_folder(self) -> ExperimentFolder:
        """The only experiment's folder."""
        (found,) = (self.folder / "runs").glob("small-*")
        return ExperimentFolder(found)

    def readings(self, seed: int = 0) -> list[dict[str, Any]]:
        """Clocks and values of every reading, times left out; NaN as text, so that rows compare."""
        rows = [row for row in read_journal(self.run_folder.seed(seed).journal) if isinstance(row, ReadingRow)]
        return [
            {
                "clocks": row.reading.clocks.as_dict(),
                **{m.key: repr(m.value) for m in row.reading.measurements if not m.key.startswith("time/")},
            }
            for row in rows
        ]

    def kill_after(self, process: subprocess.Popen[str], readings: int, number: int = signal.SIGKILL) -> None:
        """Send a signal once so many readings are on disk."""
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            journals = list((self.folder / "runs").glob("small-*/seed-0/journal.jsonl"))
            if journals and journals[0].read_text().count('"values"') >= readings:
                break
            time.sleep(0.02)
        process.send_signal(number)
