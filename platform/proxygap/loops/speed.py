"""How long a run has been at it, and how fast it goes."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass


@dataclass
class Stopwatch:
    """When the run was started or resumed, and the seconds spent since on measuring and on recording."""

    started: float
    probe_s: float = 0.0
    record_s: float = 0.0


class Speed:
    """Real steps per second of wall clock over the last `WINDOW_S` seconds."""

    WINDOW_S = 30.0

    def __init__(self, step: int) -> None:
        self._marks = deque([(time.perf_counter(), step)])

    def __call__(self, step: int) -> float:
        """The speed, now that ``step`` is reached; NaN before anything was done."""
        now = time.perf_counter()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > self.WINDOW_S:
            self._marks.popleft()
        started, first = self._marks[0]
        return (step - first) / (now - started) if step > first else math.nan
