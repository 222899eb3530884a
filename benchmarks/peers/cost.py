"""What one call took. Only the standard library, so that a peer's environment can import it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """CPU seconds of the process that did the work, and seconds on the wall."""

    cpu_s: float
    wall_s: float


def cost_of(call: Callable[[], object]) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def peak_mib() -> float:
    """The most memory that this process has had in RAM since it began, MiB.

    ``ru_maxrss`` is the same number, but a child inherits its parent's.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
