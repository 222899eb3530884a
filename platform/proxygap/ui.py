"""MLflow's own pages on an experiment: a server as a child of this process where there is none yet."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path

from proxygap.base.errors import InvalidExperiment, TrackerUnavailable
from proxygap.record.view import VIEW_TAG, view_address

START_S = 180.0
"""Longest wait for the server's first answer; it may have to migrate its database."""
GRACE_S = 10.0
"""How long the server may take to end before it is killed."""
_WAIT_S = 0.2
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else eight more processes, which nothing here makes use of
}


def free_port(host: str, wanted: int) -> int:
    """``wanted`` where it is free on ``host``, else one that is. Raises InvalidExperiment for an unknown host."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except socket.gaierror as error:
                raise InvalidExperiment(
                    f"is not an address of this machine ({error.strerror})", field="--host", value=host
                ) from error
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InvalidExperiment("is not an address of this machine", field="--host", value=host, remedy="Use 127.0.0.1")


@contextlib.contextmanager
def server(uri: str, root: Path, host: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server for the store ``uri``, ended together with all of its workers when the block is left.

    Args:
        uri: a database that MLflow can open.
        root: folder of runs; artifacts of new experiments go below it.
        host: address to listen on.
        port: port to listen on.
        log: file that takes the server's own messages.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(root.absolute() / "mlartifacts")]
    environment = {**_QUIET, **os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    with log.open("ab") as messages:
        child = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            start_new_session=True,
            env=environment,
        )
    try:
        yield child
    finally:
        _end(child)


def await_answer(base: str, child: subprocess.Popen[bytes], log: Path, stop: Callable[[], bool]) -> None:
    """Wait until the server answers, or ``stop`` says so. Raises TrackerUnavailable when it ends or stays silent."""
    until = time.monotonic() + START_S
    while not stop():
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{base}/health", timeout=2):  # noqa: S310
            return
        if child.poll() is not None or time.monotonic() > until:
            problem = "the MLflow server ended" if child.poll() is not None else "the MLflow server does not answer"
            raise TrackerUnavailable(problem, field=base, remedy=f"Its messages are in {log}")
        time.sleep(_WAIT_S)


def experiment_page(base: str, name: str, view: str = "") -> str:
    """The address of an experiment's page, with the view of that id where the tracker has it.

    Without the view it is the plain list of runs; where the tracker does not know the experiment, its first page.
    """
    query = urllib.parse.urlencode({"experiment_name": name})
    try:
        with urllib.request.urlopen(  # noqa: S310
            f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=10
        ) as answer:
            experiment = json.load(answer)["experiment"]
            number = experiment["experiment_id"]
            if any(tag["key"] == f"{VIEW_TAG}{view}" for tag in experiment.get("tags", ())):
                return view_address(f"{base}/", number, view)
            return f"{base}/#/experiments/{number}/runs?workflowType=machine_learning"  # not MLflow's page for agents
    except (OSError, ValueError, KeyError):
        return f"{base}/"


def open_browser(url: str) -> bool:
    """Open a graphical browser, where there is one; a text browser would take the terminal away."""
    graphical = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not graphical or not sys.stdout.isatty():
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


def _end(child: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # workers that outlived their server
