"""A peer in an environment of its own, driven from a benchmark: one command at a time, so that both take turns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from peers.cost import Cost

HERE = Path(__file__).parent
MBRL = HERE.parent.parent / ".venv" / "mbrl" / "bin" / "python"


class Peer:
    """mbrl-lib behind a pipe. Ends the benchmark with the command that installs it where it is not there."""

    def __init__(self) -> None:
        if not MBRL.exists():
            sys.exit("mbrl-lib is not installed: make .venv/mbrl/installed")
        self._folder = tempfile.TemporaryDirectory(prefix="peer-")
        self._process = subprocess.Popen(
            [MBRL, HERE / "mbrl_worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def arrays(self, name: str, **columns: np.ndarray) -> str:
        """A file that the peer reads arrays from."""
        path = Path(self._folder.name) / f"{name}.npz"
        np.savez(path, **columns)
        return str(path)

    def build(self, name: str, kind: str, **given: Any) -> None:
        self._ask(do="build", name=name, kind=kind, **{"with": given})

    def run(self, name: str, threads: int = 1) -> Cost:
        return Cost(**self._ask(do="run", name=name, threads=threads))

    def answer(self, name: str) -> Mapping[str, np.ndarray]:
        """The arrays that a subject gives."""
        path = Path(self._folder.name) / f"{name}-answer.npz"
        self._ask(do="answer", name=name, file=str(path))
        return dict(np.load(path))

    def peak_mib(self) -> float:
        """The most memory so far beyond what the imports took."""
        return float(self._ask(do="peak")["mib"])

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the peer failed at {command['do']} of {command.get('name', 'itself')}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def peer_peak_mib(kind: str, files: Mapping[str, Mapping[str, np.ndarray]], **given: Any) -> float:
    """The memory that one call takes in a fresh process beyond its imports; ``files`` are arrays to hand over."""
    with Peer() as peer:
        paths = {name: peer.arrays(name, **columns) for name, columns in files.items()}
        peer.build("subject", kind, **paths, **given)
        peer.run("subject")
        return peer.peak_mib()
