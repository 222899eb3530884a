"""Ctrl-C and SIGTERM: the first asks a run to stop at its next checkpoint, the second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
STOPPING: Final = "stopping after this iteration; checkpoint follows; again to exit at once"


class Stop:
    """A flag that a signal raises. Call it to ask whether the run should stop.

    Args:
        announce: told `STOPPING` once, inside the signal handler: it must not wait for a lock.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self.signal_number = 0
        """The first signal that came; 0 while none has."""

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal ended: 128 plus its number; 0 while none has come."""
        return 128 + self.signal_number if self.signal_number else 0

    def reinstall(self) -> None:
        """Take the signals (back): ``ray.init`` puts a handler of its own on SIGTERM. Main thread only."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number:
            _show_cursor()  # a live table hides it
            os._exit(128 + number)
        self.signal_number = number
        self._announce(STOPPING)


@contextlib.contextmanager
def graceful_stop(announce: Callable[[str], None] | None = None) -> Iterator[Stop]:
    """Catch SIGINT and SIGTERM for a while; afterwards the former handlers are back.

    Args:
        announce: shows one line; default: written straight to standard error, which is safe inside a handler.

    Raises:
        ValueError: outside the main thread, where Python takes no handlers.
    """
    former: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    stop = Stop(announce or _to_standard_error)
    stop.reinstall()
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _show_cursor() -> None:
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(stream):
                os.write(stream, b"\x1b[?25h")


def _to_standard_error(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
