"""What a sweep tells the processes of its trials, beside Tune's reports: what to do, how to go on, and that all stop.

They are messages, not memory: the ledger keeps what was decided, and all of them are made anew from it. The director
keeps them here; a carrier (`proxygap.sweep.mailbox`) brings a copy to where trials can ask, on whatever node they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from proxygap.base.errors import HostFailed


class SweepGone(HostFailed):
    """The process of the sweep has ended, or its mailbox does not answer: a trial stops, and is taken up later."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a trial is to do.

    Args:
        setting: dotted fields of the experiment and their values now.
        reported: stretches that the sweep has heard of; they are not reported again.
        change: newest change of the setting: ``index`` after which it holds and ``donor`` whose state it goes on from.
        compared: whether the comparison after stretch ``reported`` has been made, for populations.
        deadline: seconds since 1970 after which no iteration begins; None: no end.
        allowance: by clock, what the trial may spend from here on; no iteration begins after that.
        stop: why the trial has ended already, where its process died before it had followed the order; else empty.
    """

    setting: Mapping[str, Any]
    reported: int = 0
    change: Mapping[str, int] = field(default_factory=dict)
    compared: bool = False
    deadline: float | None = None
    allowance: Mapping[str, int] = field(default_factory=dict)
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What a trial does after report ``index``.

    Args:
        index: the report that this answers.
        stop: why the trial ends here; empty: it goes on.
        donor: trial whose state it continues from; None: its own.
        setting: the setting from here on; empty: as it was.
    """

    index: int
    stop: str = ""
    donor: int | None = None
    setting: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Letter:
    """All that one trial has been told: its assignment, and the newest order since."""

    assignment: Assignment
    order: Order | None = None

    def answer(self, index: int) -> Order | None:
        """The order that answers report ``index``, None while there is none."""
        return self.order if self.order is not None and self.order.index == index else None


class Carrier(Protocol):
    """Brings messages to the processes of trials; each has arrived when the call returns."""

    def put(self, number: int, letter: Letter | None) -> None:
        """The letter of a trial, the former one replaced; None: it needs none any more."""
        ...

    def stop(self, why: str) -> None:
        """That every trial stops at its next iteration."""
        ...


class Inbox(Protocol):
    """What the process of one trial hears."""

    def assignment(self) -> Assignment:
        """What the trial is to do. Raises SweepGone."""
        ...

    def order(self, index: int) -> Order | None:
        """The answer to report ``index``, None where there is none. Raises SweepGone."""
        ...

    def await_order(self, index: int, give_up: Callable[[], bool]) -> Order | None:
        """The answer to report ``index`` once it is there; None: ``give_up`` became true before."""
        ...

    def stopping(self) -> str:
        """Why every trial is to stop, empty while none is. Asked after every iteration, so it asks nobody."""
        ...


class Messages:
    """All that the trials of a sweep have been told: the director's own copy, and what a carrier is filled from."""

    def __init__(self) -> None:
        self.letters: dict[int, Letter] = {}
        self.why = ""
        self._carrier: Carrier | None = None

    def carried_by(self, carrier: Carrier | None) -> None:
        """Tell a carrier all that is said from here on; None: nobody hears it."""
        self._carrier = carrier

    def assign(self, number: int, assignment: Assignment) -> None:
        """Tell a trial what to do; the order that it had is withdrawn."""
        self._write(number, Letter(assignment))

    def give(self, number: int, order: Order) -> None:
        """Answer a report of a trial; one that no process has taken up yet will hear it in its assignment."""
        if number in self.letters:
            self._write(number, replace(self.letters[number], order=order))

    def forget(self, number: int) -> None:
        """Nobody has the trial any more."""
        if self.letters.pop(number, None) is not None and self._carrier is not None:
            self._carrier.put(number, None)

    def stop(self, why: str) -> None:
        """Ask every trial to stop at its next iteration."""
        self.why = why
        if self._carrier is not None:
            self._carrier.stop(why)

    def _write(self, number: int, letter: Letter) -> None:
        self.letters[number] = letter
        if self._carrier is not None:
            self._carrier.put(number, letter)
