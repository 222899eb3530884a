"""A real Ray head in processes of its own, with token authentication, for the tests that submit to one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests

START_S = 120.0


class Head:
    """``ray start --head --block``; everything that it writes is below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        self.token_file = folder / "token"
        self.token_file.write_text(self.token)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._sockets = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
        """Ray's own folder: its sockets need a path of at most 107 bytes, which a test's folder may exceed."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        ports = {
            "port": free_port(),
            "dashboard-port": self.port,
            "ray-client-server-port": free_port(),
            "dashboard-agent-listen-port": 0,
            "metrics-export-port": 0,
            "runtime-env-agent-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        options = {"temp-dir": self._sockets, "num-cpus": 4, "object-store-memory": 100_000_000, **ports}
        words = [f"--{name}={value}" for name, value in options.items()]
        bin_folder = Path(sys.executable).parent
        with (self.folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(bin_folder / "ray"), "start", "--head", "--block", "--labels=pool=head", *words],
                env=self._environment(bin_folder),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()

    def _environment(self, bin_folder: Path) -> dict[str, str]:
        dropped = ("RAY_", "PYTEST", "MLFLOW", "PROXYGAP")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file), "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, **own, "PATH": f"{bin_folder}:{kept['PATH']}", "OMP_NUM_THREADS": "1", "HOME": str(self.folder)}

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        headers = {"Authorization": f"Bearer {self.token}"}
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "head.log").read_text()[-3000:]
            try:
                if requests.get(f"{self.address}/api/v0/nodes", headers=headers, timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        raise TimeoutError((self.folder / "head.log").read_text()[-3000:])

    def close(self) -> None:
        """End the head and all that it started."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def cluster_file(self, name: str = "cluster", **fields: Any) -> Path:
        """A cluster file that leads here; JSON is YAML."""
        path = self.folder / f"{name}.yaml"
        own = {"name": "here", "address": self.address, "token_file": str(self.token_file)}
        path.write_text(json.dumps({**own, "folder": str(self.folder / "runs"), "stop_wait_s": 60, **fields}))
        return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
