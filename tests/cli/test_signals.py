"""The first signal asks, the second ends, the former handlers come back: in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from proxygap.signals import STOPPING, graceful_stop

PATIENT = """
import sys, time
from proxygap.signals import graceful_stop
with graceful_stop() as stop:
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
    print("checkpoint", flush=True)
sys.exit(stop.exit_code)
"""
DEAF = """
import time
from proxygap.signals import graceful_stop
with graceful_stop() as stop:
    print("ready", flush=True)
    time.sleep(60)
"""
ROBBED = """
import signal, sys, time
from proxygap.signals import graceful_stop
with graceful_stop() as stop:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(99))
    stop.reinstall()
    print("ready", flush=True)
    while not stop():
        time.sleep(0.01)
sys.exit(stop.exit_code)
"""


def _start(script: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    child = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_leaves_time_for_a_checkpoint(number: signal.Signals, code: int) -> None:
    child = _start(PATIENT)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (code, "checkpoint\n")
    assert STOPPING in err


@pytest.mark.parametrize(
    ("first", "second", "code"), [(signal.SIGINT, signal.SIGINT, 130), (signal.SIGINT, signal.SIGTERM, 143)]
)
def test_the_second_signal_ends_at_once(first: signal.Signals, second: signal.Signals, code: int) -> None:
    child = _start(DEAF)
    child.send_signal(first)
    assert child.stderr is not None
    assert child.stderr.readline() == "\n"
    assert child.stderr.readline() == f"{STOPPING}\n"
    assert child.poll() is None, "the first one only asks"
    began = time.monotonic()
    child.send_signal(second)
    child.communicate(timeout=30)
    assert child.returncode == code
    assert time.monotonic() - began < 5


def test_a_handler_that_another_library_took_is_taken_back() -> None:
    child = _start(ROBBED)
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=30)
    assert child.returncode == 143


def test_the_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with graceful_stop() as stop:
        assert not stop()
        assert stop.exit_code == 0
        assert signal.getsignal(signal.SIGTERM) == stop._receive
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_announcement_is_made_once() -> None:
    heard: list[str] = []
    with graceful_stop(heard.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not stop() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert (stop.signal_number, heard) == (signal.SIGTERM, [STOPPING])


def test_outside_the_main_thread_python_refuses() -> None:
    problems: list[Exception] = []

    def enter() -> None:
        try:
            with graceful_stop():
                pass
        except ValueError as error:
            problems.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(problems) == 1
