"""What a trial hears where it runs in the director's own process: the messages themselves, with nothing between."""

from __future__ import annotations

import time
from collections.abc import Callable

from proxygap.sweep.messages import Assignment, Messages, Order


class DirectInbox:
    """`proxygap.sweep.messages.Inbox` of one trial, without Ray."""

    def __init__(self, messages: Messages, number: int) -> None:
        self._messages, self._number = messages, number

    def assignment(self) -> Assignment:
        return self._messages.letters[self._number].assignment

    def order(self, index: int) -> Order | None:
        return self._messages.letters[self._number].answer(index)

    def await_order(self, index: int, give_up: Callable[[], bool]) -> Order | None:
        while (order := self.order(index)) is None and not give_up():
            time.sleep(0.01)
        return order

    def stopping(self) -> str:
        return self._messages.why
