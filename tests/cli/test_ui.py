"""MLflow's pages: ports, browsers, and a real server that ends with the command and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from proxygap.base.errors import InvalidExperiment, TrackerUnavailable
from proxygap.ui import await_answer, experiment_page, free_port, open_browser


def test_a_free_port_is_kept_and_a_taken_one_replaced() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        assert free_port("127.0.0.1", number) not in (0, number)
    assert free_port("127.0.0.1", number) == number


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_refused(host: str) -> None:
    with pytest.raises(InvalidExperiment, match="is not an address of this machine"):
        free_port(host, 5000)


def test_no_browser_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("a text browser would take the terminal"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert open_browser("http://127.0.0.1") is False


def test_a_server_that_dies_is_told_with_its_log(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    child.wait()
    with pytest.raises(TrackerUnavailable, match=r"ended.*ui\.log"):
        await_answer("http://127.0.0.1:9", child, tmp_path / "ui.log", lambda: False)


def test_without_an_answer_the_whole_tracker_is_shown() -> None:
    assert experiment_page("http://127.0.0.1:9", "x") == "http://127.0.0.1:9/"


@pytest.mark.slow
def test_the_pages_open_on_the_experiment_and_end_with_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "small-12345678"
    folder.mkdir()
    (folder / "identity.json").write_text(json.dumps({"experiment_hash": "x", "execution": "y"}))
    (folder / "experiment.json").write_text(json.dumps({"name": "small", "record": {}}))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    script = f"from mlflow import MlflowClient; print(MlflowClient({uri!r}).create_experiment('small'))"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    number = made.stdout.split()[-1]

    command = [sys.executable, "-m", "proxygap.cli", "ui", "small", "--folder", str(tmp_path), "--no-browser"]
    child = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    page = child.stdout.readline().strip()
    assert page.startswith("http://127.0.0.1:")
    assert page.endswith(f"/#/experiments/{number}/runs?workflowType=machine_learning")
    with urllib.request.urlopen(page.partition("#")[0], timeout=10) as answer:
        assert b"<html" in answer.read()

    family = psutil.Process(child.pid).children(recursive=True)
    assert family
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 0
    deadline = time.monotonic() + 10
    while any(process.is_running() for process in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [process for process in family if process.is_running()] == []
