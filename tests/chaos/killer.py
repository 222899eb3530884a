"""Who strikes: SIGKILL of one process at a seeded moment of a run, told by the run's own progress."""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private import state

from proxygap.base.progress import Progress
from proxygap.record.rows import EventRow, Row

NOTICED = ("host_restarted", "env_runner_lost", "recovered", "resumed")
"""Events by which a journal tells that a loss was dealt with."""
LONGEST_WAIT_S = 120.0
"""For the moment of a strike."""


class NobodyThere(Exception):
    """Whom a strike was meant for does not live at this moment."""


def events(rows: list[Row], kind: str) -> list[dict[str, Any]]:
    """Details of the events of a kind."""
    return [dict(row.detail) for row in rows if isinstance(row, EventRow) and row.kind == kind]


def actors(class_name: str = "", name: str = "") -> list[dict[str, Any]]:
    """Actors of this Ray that are alive or on their way, by parts of their class's name and of their own."""
    found = [each for each in state.actors().values() if each["State"] != "DEAD"]
    return [each for each in found if class_name in each["ActorClassName"] and name in each["Name"]]


def pid_of(class_name: str = "", name: str = "") -> Callable[[], int]:
    """Finds the process of the first such actor that is alive."""

    def find() -> int:
        alive = [each for each in actors(class_name, name) if each["State"] == "ALIVE"]
        if not alive:
            raise NobodyThere(f"no {class_name} {name} to kill among {[each['Name'] for each in actors()]}")
        return int(alive[0]["Pid"])

    return find


VICTIMS: dict[str, Callable[[], int]] = {
    "dynamics host": pid_of("HostActor", "/dynamics-"),
    "reward host": pid_of("HostActor", "/reward-"),
    "reference host": pid_of("HostActor", "/reference-"),
    "env runner": pid_of("StepRunner"),
    "answer runner": pid_of("AnswerRunner"),
    "learner": pid_of("_WrappedExecutable"),
    "seed": pid_of("SeedWorker", "/seed-0"),
}


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


@dataclass(slots=True)
class Strike:
    """One kill.

    Args:
        victim: what is killed, in words.
        step: real step of the run from which on it may fall.
        delay_s: seconds after the progress that tells of that step, so that it falls into an iteration.
        blow: does it.
    """

    victim: str
    step: int
    delay_s: float
    blow: Callable[[], object]
    at_s: float = math.nan
    error: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)

    def begin(self, due: Callable[[], bool] = lambda: True) -> None:
        """Fall after the delay, once it is due."""
        self.thread = threading.Thread(target=self._fall, args=(due,), daemon=True)
        self.thread.start()

    def _fall(self, due: Callable[[], bool]) -> None:
        until = time.monotonic() + LONGEST_WAIT_S
        while not due() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(self.delay_s)
        try:
            self.at_s = time.time()
            self.blow()
        except BaseException as error:  # noqa: BLE001 - raised again by `end`, in the thread of the test
            self.error = error

    def end(self) -> None:
        """Wait until it has fallen: a run does not get away, it is at most one iteration further."""
        if self.thread is not None:
            self.thread.join()
        if self.error is not None:
            raise self.error

    def dealt_with_s(self, journal: list[Row]) -> float:
        """Seconds from the kill until the journal tells that the run has dealt with it; not a number if it never was.

        The event is journaled once the iteration that met the loss is over.
        """
        told = [row.time_ms / 1000 for row in journal if isinstance(row, EventRow) and row.kind in NOTICED]
        return min((at_s - self.at_s for at_s in told if at_s > self.at_s), default=math.nan)


def seeded(
    victim: str, seed: int, steps: range, longest_s: float = 0.05, blow: Callable[[], object] | None = None
) -> Strike:
    """A strike at a moment that the seed and the victim's name decide."""
    rng = random.Random(f"{seed}/{victim}")
    return Strike(victim, rng.choice(steps), rng.uniform(0.0, longest_s), blow or (lambda: kill(VICTIMS[victim]())))


def written(root: Path, seed: int, readings: int) -> Callable[[], bool]:
    """Whether a seed, wherever below a folder it keeps its records, has so many readings on disk."""

    def due() -> bool:
        found = root.rglob(f"seed-{seed}/journal.jsonl")
        return max((each.read_bytes().count(b'"values"') for each in found), default=0) >= readings

    return due


class Killer:
    """Told of a run's progress, it strikes in turn. Every strike must have fallen by the end of the run."""

    def __init__(self, *strikes: Strike) -> None:
        self.strikes = sorted(strikes, key=lambda strike: strike.step)

    def __call__(self, progress: Progress) -> None:
        """As `on_progress` of a run."""
        for strike in self.strikes:
            if strike.thread is not None:
                strike.end()
            elif progress.clocks.real_step >= strike.step:
                strike.begin()
                return

    def check(self) -> None:
        """All have fallen. Raises AssertionError, or what a strike ended with."""
        for strike in self.strikes:
            strike.end()
            assert math.isfinite(strike.at_s), f"the run was over before {strike.victim} could be struck"


def ray_totals() -> dict[str, float]:
    """What the cluster has of CPUs, GPUs and custom resources."""
    hidden = ("memory", "object_store_memory", "node:")
    return {name: amount for name, amount in ray.cluster_resources().items() if not name.startswith(hidden)}
