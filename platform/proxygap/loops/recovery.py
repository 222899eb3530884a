"""What is lost with a process or a node, and what is not: a run is built anew and goes on from its newest checkpoint.

A loss of the infrastructure (a host, a Learner, environment runners, an actor, a node) is repaired. An error of the
experiment itself (a value that is not finite, a full disk, a newer attempt) would come again, and ends the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from proxygap.base.errors import HostFailed, InfeasibleResources, ProxyGapError, RunFailed
from proxygap.loops.loop import Loop

RELEASE_S = 60.0
"""Longest wait for a broken loop to give back what it holds; one of its actors may hang."""
ROOM_S = 120.0
"""Longest wait for the room that a lost node leaves missing, before that is a loss of its own."""
_PROBE_S, _FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 2.0, 60.0
log = logging.getLogger("proxygap")


class Lost(Exception):
    """A process or a node that a run needs is gone; says which, in one line."""


class RayLost(HostFailed):
    """The Ray that this very process belongs to is gone: nothing can be started any more."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What happened to a run before it was taken up again.

    Args:
        error: in one line.
        attempt: how many times the run has been taken up with this one.
        real_step: where it was.
        time_s: when it was noticed, seconds since the epoch.
    """

    error: str
    attempt: int
    real_step: int
    time_s: float

    def recovered(self, real_step: int) -> dict[str, Any]:
        """The journal's event, now that the run goes on from ``real_step``."""
        return {
            "error": self.error,
            "attempt": self.attempt,
            "lost_steps": max(self.real_step - real_step, 0),
            "down_s": round(max(time.time() - self.time_s, 0.0), 3),
        }


class Losses:
    """Counts the losses of a run. Those in a row, with no new checkpoint between them, end it.

    Args:
        most: in a row, that a run is taken up again after.
        before: counted by others, in all.
    """

    def __init__(self, most: int, before: int = 0) -> None:
        self._most, self._in_a_row, self._all, self._checkpoint = most, 0, before, -1

    def count(self, error: str, real_step: int, checkpoint: int) -> Loss:
        """One more, noticed now, with the newest checkpoint at that many real steps (-1: none).

        Raises:
            RunFailed: that is one too many.
            RayLost: there is nothing left that could take the run up.
        """
        noticed = time.time()
        self._in_a_row = 1 if checkpoint > self._checkpoint else self._in_a_row + 1
        self._all, self._checkpoint = self._all + 1, max(checkpoint, self._checkpoint)
        if ray_is_lost():
            raise RayLost(
                f"Ray is gone on the node of this process ({error})",
                remedy="Run it again: it continues from its newest checkpoint",
            )
        if self._in_a_row > self._most:
            raise RunFailed(
                f"something it needs was lost {self._in_a_row} times without a new checkpoint, the last time: {error}",
                field="compute.max_failures",
                value=self._most,
                remedy="See the logs in Ray's session folder, then run it again",
            )
        return Loss(error, self._all, real_step, noticed)

    @property
    def pause_s(self) -> float:
        """Wait before the next time: none after the first loss in a row, then longer and longer."""
        doublings = self._in_a_row - 2
        return min(_FIRST_PAUSE_S * 2**doublings, _LONGEST_PAUSE_S) if doublings >= 0 else 0.0


def cause_of(error: BaseException) -> BaseException:
    """What was raised in the first place: Ray wraps the errors of actors."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def in_a_line(error: BaseException) -> str:
    """Its class and what it says, for statuses and events."""
    cause = cause_of(error)
    told = [line.strip() for line in str(cause).splitlines() if line.strip()]
    why = [line for line in told if " because " in line] or told or [""]
    return f"{type(cause).__name__}: {why[0]}"[:400]


def is_loss(error: BaseException, loop: Loop | None = None, *, rebuilding: bool = False) -> bool:
    """Whether an error says that a process or a node was lost.

    Args:
        error: of the loop, or of building it.
        loop: the broken one. RLlib answers calls to a dead Learner with whatever comes of an empty list.
        rebuilding: after a loss, what it left too little room for, or has not yet given back, is a consequence of it.
    """
    cause = cause_of(error)
    if isinstance(cause, RunFailed):
        return cause.field == "collect.env_runners"
    if isinstance(cause, HostFailed):
        return not isinstance(cause, RayLost)
    if rebuilding and isinstance(cause, InfeasibleResources | TimeoutError):
        return True
    if isinstance(cause, ProxyGapError):
        return False
    if any(isinstance(each, RayError) and not isinstance(each, RayTaskError) for each in _chain(cause)):
        return True
    return loop is not None and _learner_is_lost(loop)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: Ray Train raises others over the loss of an actor."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _learner_is_lost(loop: Loop) -> bool:
    group: Any = getattr(loop, "learner_group", None)
    if group is None or not group.is_remote:
        return False
    try:
        answers = list(group.foreach_learner(lambda _: None, timeout_seconds=_PROBE_S))
    except RayError:
        return True
    return bool(sum(answer.ok for answer in answers) < group.config.num_learners)


def release(loop: Loop) -> None:
    """Have a broken loop give back its actors and reservations, for at most `RELEASE_S`; trouble is only logged."""

    def stop() -> None:
        try:
            loop.stop()
        except Exception:
            log.warning("a broken loop did not stop in order", exc_info=True)

    stopping = threading.Thread(target=stop, name="release", daemon=True)
    stopping.start()
    stopping.join(RELEASE_S)
    if stopping.is_alive():
        log.warning("a broken loop did not stop within %g s", RELEASE_S)


def ray_is_lost() -> bool:
    """Whether this process is connected to a Ray whose node here is dead, or that nobody answers for."""
    if not ray.is_initialized():
        return False
    alive: list[bool] = []

    def ask() -> None:
        here = ray.get_runtime_context().get_node_id()
        alive.append(any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()))

    asking = threading.Thread(target=ask, name="ray-is-lost", daemon=True)
    asking.start()
    asking.join(_PROBE_S)
    return alive != [True]
