"""How a sweep ends before all trials are over: a signal, a spent budget, too many failures, a full disk.

Trials are asked to stop at a checkpoint, and are given some seconds to get there; none where a newer attempt has taken
over the sweep, since nothing that they would still write counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from proxygap.base.errors import ProxyGapError, Superseded
from proxygap.sweep.messages import Messages


class Ending:
    """Whether, why and since when the sweep is ending.

    Args:
        messages: through which trials are asked to stop.
        asked: asked again and again; true ends the sweep.
        grace_s: longest wait for trials to stop by themselves.
        deadline: seconds since 1970 at which the budget of wall clock is spent; None: no such budget.
    """

    def __init__(
        self, messages: Messages, asked: Callable[[], bool], grace_s: float, deadline: float | None = None
    ) -> None:
        self._messages, self._asked, self._grace_s = messages, asked, grace_s
        self.deadline = deadline
        self.why, self.interrupted = "", False
        self.problem: ProxyGapError | None = None
        self._since = 0.0

    @property
    def begun(self) -> bool:
        """Whether no further trial is started."""
        if not self.why and self._asked():
            self.interrupted = True
            self.begin("the sweep was interrupted")
        if not self.why and self.deadline is not None and time.time() >= self.deadline:
            self.begin("sweep.budget.wall_s was spent")
        return bool(self.why)

    @property
    def over(self) -> bool:
        """Whether the trials have been waited for long enough."""
        waited = time.monotonic() - self._since > self._grace_s
        return self.begun and (waited or isinstance(self.problem, Superseded))

    def begin(self, why: str) -> None:
        """Ask all trials to stop at their next iteration; the first reason counts."""
        if self.why:
            return
        self.why, self._since = why, time.monotonic()
        with contextlib.suppress(ProxyGapError):  # no mailbox: trials have heard that, or Tune ends them
            self._messages.stop(why)

    def fail(self, error: ProxyGapError) -> None:
        """End because the sweep itself cannot go on; the error is raised once the trials have stopped."""
        self.problem = self.problem or error
        self.begin(str(error))
