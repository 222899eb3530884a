"""The mailbox: an actor beside the sweep's own process that holds what trials are told, for whatever node they are on.

It takes no CPU and lives as long as the process that started it. Where that process dies the mailbox dies with it, and
every trial that still runs hears so within moments and stops at a checkpoint. Where only the mailbox dies, Ray starts
it again: it answers nobody until the sweep has filled it, and what trials had asked meanwhile is answered then.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxygap.base.errors import HostFailed
from proxygap.sweep.messages import Assignment, Letter, Messages, Order, SweepGone

DEADLINE_S = 60.0
"""Longest wait for the mailbox, its start and its restart included."""
TEND_S = 1.0
"""Seconds between two looks at whether the mailbox has been started again."""
POLL_S = 0.05
"""Seconds between two questions whether a trial still waits for an order."""
GONE = "the process of the sweep has ended"


class MailboxActor:
    """The actor. It runs on one thread, so between two awaits nothing comes in between."""

    def __init__(self) -> None:
        self._letters: dict[int, Letter] = {}
        self._why, self._filled = "", False
        self._changed = asyncio.Condition()

    async def fill(self, letters: Mapping[int, Letter], why: str) -> None:
        """Hold this, and answer from now on."""
        self._letters, self._why, self._filled = dict(letters), why, True
        await self._tell()

    async def filled(self) -> bool:
        """Whether it answers; not right after a start."""
        return self._filled

    async def put(self, number: int, letter: Letter | None) -> None:
        """The letter of a trial; None takes it out."""
        if letter is None:
            self._letters.pop(number, None)
        else:
            self._letters[number] = letter
        await self._tell()

    async def stop(self, why: str) -> None:
        """Every trial is to stop."""
        self._why = why
        await self._tell()

    async def letter(self, number: int) -> Letter | None:
        """What a trial has been told."""
        await self._until(lambda: True)
        return self._letters.get(number)

    async def answer(self, number: int, index: int) -> Order | None:
        """The answer to report ``index`` once it is there; None: all stop instead."""

        def found() -> Order | None:
            letter = self._letters.get(number)
            return letter.answer(index) if letter else None

        await self._until(lambda: bool(self._why or found()))
        return found()

    async def stopped(self) -> str:
        """Why all stop, once they do."""
        await self._until(lambda: bool(self._why))
        return self._why

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, true: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._filled and true())


class Mailbox:
    """The sweep's side: starts the actor on this node, brings it every message, and ends it.

    Args:
        messages: what it is filled from, and from then on told.
        sweep: name of the sweep, which the actor's begins with.

    Methods raise HostFailed where the actor does not answer within `DEADLINE_S`.
    """

    def __init__(self, messages: Messages, sweep: str) -> None:
        self._messages, self.name = messages, f"{sweep}/mailbox-{uuid.uuid4().hex[:6]}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {
            "name": self.name,
            "num_cpus": 0,
            "max_restarts": -1,
            "max_task_retries": -1,
            "max_concurrency": 10_000,  # each trial waits here for the end, and for orders
            "scheduling_strategy": here,
        }
        self._actor = ray.remote(MailboxActor).options(**options).remote()
        self._fill()  # it starts while others do; what is put waits for it
        self._asked, self._asked_at = self._actor.filled.remote(), time.monotonic()
        messages.carried_by(self)

    def put(self, number: int, letter: Letter | None) -> None:
        """Bring a letter; it is there when this returns."""
        self._get(self._actor.put.remote(number, letter))

    def stop(self, why: str) -> None:
        """Bring the request to stop."""
        self._get(self._actor.stop.remote(why))

    def tend(self) -> None:
        """Fill it again where it was started again. Call it many times a second; it waits for nothing."""
        ready, _ = ray.wait([self._asked], timeout=0)
        if ready:
            if not self._get(self._asked):
                self._fill()
            if time.monotonic() - self._asked_at >= TEND_S:
                self._asked, self._asked_at = self._actor.filled.remote(), time.monotonic()

    def close(self) -> None:
        """End the actor; trials that still run hear that the sweep has ended."""
        self._messages.carried_by(None)
        ray.kill(self._actor, no_restart=True)

    def _fill(self) -> None:
        self._actor.fill.remote(self._messages.letters, self._messages.why)

    def _get(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=DEADLINE_S)
        except (GetTimeoutError, RayError) as error:
            raise HostFailed(
                f"the sweep's mailbox does not answer ({type(error).__name__})",
                field=self.name,
                remedy="Run the sweep again; it goes on where it was",
            ) from error


class RemoteInbox:
    """The side of a trial's process: `proxygap.sweep.messages.Inbox`.

    Args:
        mailbox: name of the actor.
        number: of the trial.
    """

    def __init__(self, mailbox: str, number: int) -> None:
        try:
            self._actor = ray.get_actor(mailbox)
        except ValueError as error:
            raise SweepGone(GONE, field=mailbox) from error
        self._number = number
        self._stop_reference = self._actor.stopped.remote()
        self._stop: concurrent.futures.Future[str] = self._stop_reference.future()

    def assignment(self) -> Assignment:
        """What the trial is to do. Raises SweepGone."""
        letter = self._letter()
        if letter is None:
            raise SweepGone("the sweep has nothing for this trial", field=f"trial {self._number}")
        return letter.assignment

    def order(self, index: int) -> Order | None:
        """The answer to report ``index``, None where there is none. Raises SweepGone."""
        letter = self._letter()
        return letter.answer(index) if letter else None

    def await_order(self, index: int, give_up: Callable[[], bool]) -> Order | None:
        """The answer to report ``index`` once it is there; None: ``give_up`` became true before."""
        reference = self._actor.answer.remote(self._number, index)
        coming: concurrent.futures.Future[Order | None] = reference.future()
        while True:
            with contextlib.suppress(concurrent.futures.TimeoutError, RayError):
                if (found := coming.result(POLL_S)) is not None:
                    return found
            if give_up():
                return None
            if coming.done():
                time.sleep(POLL_S)  # all stop, or the sweep is gone: whoever gives up will hear so

    def stopping(self) -> str:
        """Why every trial is to stop, also because the sweep's process has ended; empty while none is."""
        if not self._stop.done():
            return ""
        return GONE if self._stop.exception() is not None else self._stop.result()

    def close(self) -> None:
        """Ask nothing any more."""
        if not self._stop.done():
            ray.cancel(self._stop_reference)

    def _letter(self) -> Letter | None:
        try:
            found: Letter | None = ray.get(self._actor.letter.remote(self._number), timeout=DEADLINE_S)
        except (GetTimeoutError, RayError) as error:
            raise SweepGone(GONE, field=f"trial {self._number}") from error
        return found


@contextlib.contextmanager
def inbox_of(mailbox: str, number: int) -> Iterator[RemoteInbox]:
    """The inbox of a trial for the length of a block. Raises SweepGone."""
    inbox = RemoteInbox(mailbox, number)
    try:
        yield inbox
    finally:
        inbox.close()
