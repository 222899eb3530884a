"""Where wall-clock time goes: named calls are wrapped from outside, and each second belongs to the innermost one."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Stopwatch:
    """Exclusive seconds per name while it is running. What no wrapped call claims belongs to ``rest``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._names = ["rest"]
        self._since = 0.0
        self._running = False

    def clear(self) -> None:
        self.seconds.clear()
        self.calls.clear()

    def start(self) -> None:
        self._running, self._since = True, time.perf_counter()

    def stop(self) -> None:
        self._charge()
        self._running = False

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Charge the time of ``owner.method``, without wrapped calls inside it, to ``name``."""
        setattr(owner, method, self._timed(getattr(owner, method), name))

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._charge()
            self._names.append(name)
            self.calls[name] += self._running  # the calls of the window only
            try:
                return function(*args, **kwargs)
            finally:
                self._charge()
                self._names.pop()

        return timed

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._names[-1]] += now - self._since
        self._since = now
