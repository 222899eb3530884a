"""The sweep's decisions, without Ray: which trial is next, what a report leads to, when the sweep ends.

Every decision is a row of the ledger before anything follows from it, so that a killed sweep goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from proxygap.base.errors import Superseded
from proxygap.record.folder import RunState
from proxygap.record.sweep_folder import Report, SweepFolder, TrialState
from proxygap.sweep.book import Book, settle
from proxygap.sweep.budget import Spending
from proxygap.sweep.ending import Ending
from proxygap.sweep.goals import measured, signed
from proxygap.sweep.load import LoadedSweep
from proxygap.sweep.lockstep import Stretch
from proxygap.sweep.messages import Assignment, Messages, Order
from proxygap.sweep.population import successions
from proxygap.sweep.proposals import Proposal, Proposals
from proxygap.sweep.schedulers import recall, stopping_rule
from proxygap.sweep.settings import PopulationBased
from proxygap.sweep.space import experiment_of


class Director:
    """Decides for the sweep in ``folder``.

    Args:
        loaded: the sweep.
        folder: its folder.
        book: its trials.
        ending: when it ends.
        messages: what trials are told.
        begins: called before a trial begins, so that what was decided is kept elsewhere too before it counts.
        ended: told the number of a trial that no process has any more.
    """

    def __init__(
        self,
        loaded: LoadedSweep,
        folder: SweepFolder,
        book: Book,
        ending: Ending,
        messages: Messages,
        *,
        begins: Callable[[], None] = lambda: None,
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.loaded, self.sweep, self.folder, self.book, self.ending = loaded, loaded.sweep, folder, book, ending
        self.messages, self._begins, self._ended = messages, begins, ended
        self._proposals = Proposals.from_ledger(self.sweep, book.trials)
        self._rule = stopping_rule(self.sweep, loaded.base.loop.real_steps)
        recall(self._rule, book.trials)
        self.spending = Spending(self.sweep.budget, loaded.report_every * len(loaded.base.seeds))
        self.spending.recall(book.trials, {number: self._most(each.current) for number, each in book.trials.items()})
        self._waiting = book.interrupted
        self._held: Proposal | None = None
        self.live: set[int] = set()
        self.note = ""

    def next(self) -> int | None:
        """The trial to start now; None while one has to be waited for. Interrupted ones come first.

        Raises:
            StopIteration: no trial will be started any more.
        """
        if self.ending.begun:
            raise StopIteration
        if len(self.live) >= self.sweep.concurrency:
            return None
        if not self._waiting and self._held is None:
            self._held = self._proposals.ask()
            if self._held is None:
                raise StopIteration
        number = self._waiting[0] if self._waiting else self._held.number  # type: ignore[union-attr]
        setting = self.book.trials[number].current if self._waiting else self._held.setting  # type: ignore[union-attr]
        most = self._most(setting)
        if not self.spending.admits(number, most):
            if self.live:
                return None
            self.note = self.spending.exhausted or self._no_room(number, most)
            raise StopIteration
        if self._waiting:
            self._waiting.pop(0)
        else:
            self.book.propose(number, setting)
            self._held = None
        self.live.add(number)
        self.spending.begin(number, most)
        return number

    @property
    def complete(self) -> bool:
        """Whether all trials are over, and no more are wanted."""
        return not self.book.interrupted and len(self.book.trials) >= self.sweep.trial_count

    @property
    def idle(self) -> bool:
        """Whether there is nothing to start."""
        return self.complete or self.ending.begun

    def take_up(self, number: int) -> None:
        """A process takes the trial up, for the first time or again: tell it what to do."""
        trial = self.book.trials[number]
        if self.book.ended(number):
            self.messages.assign(number, Assignment(trial.current, stop=trial.reason or "the trial had ended"))
            return
        self.book.start(number)
        self._begins()
        reported = self.book.last_index(number)
        change = trial.changes[-1] if trial.changes else None
        self.messages.assign(
            number,
            Assignment(
                setting=trial.current,
                reported=reported,
                change={"index": change.index, "donor": change.donor} if change else {},
                compared=self._standings(reported, {}, None) is not None,
                deadline=self.ending.deadline,
                allowance=self.spending.allowance,
            ),
        )

    def heard(self, number: int, message: str) -> None:
        """A report of a trial: follow what it says, and answer where it has to hear something."""
        told = json.loads(message)
        if self.book.ended(number):
            return
        if "failed" in told:
            self._fail(number, told["failed"])
        elif "superseded" in told:
            self.ending.fail(Superseded(told["superseded"]))
        elif "interrupted" in told:
            self.ending.begin(told["interrupted"])
        else:
            self._follow(number, Stretch(**told))

    def gone(self, number: int, *, died: bool) -> None:
        """The trial's process is done with it, or dead for good."""
        self.live.discard(number)
        self.spending.end(number)
        self.messages.forget(number)
        if died and not self.book.ended(number) and not self.ending.begun:
            attempts = self.book.trials[number].attempts
            reason = f"its process died {attempts} times" if attempts > 1 else "its process died"
            settle(self.folder.trial(number), RunState.FAILED, reason)
            self._fail(number, reason)
        trial = self.book.trials[number]
        self._proposals.tell(number, trial.state, trial.reports)
        self._ended(number)

    def _follow(self, number: int, stretch: Stretch) -> None:
        if stretch.index <= self.book.last_index(number):
            return
        self.spending.report(number, stretch.clocks)
        if not stretch.last:
            self._compare(stretch.index, newest={number: stretch})
        self.book.report(number, stretch)
        reason = self._rule.report(number, stretch.real_step, stretch.values)
        if stretch.last:
            self.book.end(number, TrialState.FINISHED)
        elif reason:
            self.book.end(number, TrialState.STOPPED, reason)
            self.messages.give(number, Order(stretch.index, stop=reason))
        else:
            self._release(stretch.index)
        if exhausted := self.spending.exhausted:
            self.ending.begin(exhausted)

    def _fail(self, number: int, reason: str) -> None:
        waited_at = {self.book.last_index(other) for other in self.live - {number}}
        for index in sorted(waited_at):
            self._compare(index, without=number)
        self.book.end(number, TrialState.FAILED, reason)
        self.spending.failed(number)
        for index in sorted(waited_at):
            self._release(index)
        limit, failures = self.sweep.failures.stop_after, self.book.count(TrialState.FAILED)
        if limit is not None and failures >= limit:
            self.ending.begin(f"{failures} trials failed, and sweep.failures.stop_after = {limit}")

    def _compare(self, index: int, newest: Mapping[int, Stretch] | None = None, without: int | None = None) -> None:
        """Compare a population once its last member has come to ``index``, and write down who continues from whom."""
        found = self._standings(index, newest or {}, without)
        if not found:
            return
        goal = self.sweep.goals[0]
        scores = {number: signed(measured(report, goal.metric), goal) for number, report in found.items()}
        settings = {number: self.book.trials[number].current for number in found}
        for number, (donor, setting) in successions(self.sweep, index, scores, settings).items():
            if not any(change.index == index for change in self.book.trials[number].changes):
                self.book.change(number, index, donor, setting, found[number].real_step)
                self.spending.take_over(number, found[donor].clocks)

    def _standings(
        self, index: int, newest: Mapping[int, Stretch], without: int | None
    ) -> dict[int, Report | Stretch] | None:
        """Every member's report ``index``; None while one is missing, or where no comparison is due."""
        scheduler = self.sweep.scheduler
        if not isinstance(scheduler, PopulationBased) or len(self.book.trials) < self.sweep.trial_count:
            return None
        found: dict[int, Report | Stretch] = dict(newest)
        for number, trial in self.book.trials.items():
            if number != without and number not in found and not self.book.ended(number):
                report = next((each for each in reversed(trial.reports) if each.index == index), None)
                if report is None:
                    return None
                found[number] = report
        due = all(report.real_step % scheduler.every == 0 for report in found.values())
        return dict(sorted(found.items())) if due else None

    def _release(self, index: int) -> None:
        """Let all members of a population go on that have been compared."""
        if self._standings(index, {}, None) is None:
            return
        for number in sorted(self.live):
            trial = self.book.trials[number]
            if not self.book.ended(number) and self.book.last_index(number) == index:
                change = next((each for each in trial.changes if each.index == index), None)
                order = Order(index, donor=change.donor, setting=change.setting) if change else Order(index)
                self.messages.give(number, order)

    def _most(self, setting: Mapping[str, Any]) -> int:
        """Real steps that a trial of this setting may take, all seeds added up."""
        base = self.loaded.base
        if any(field == "loop" or field.startswith("loop.") for field in setting):
            base = experiment_of(self.loaded, setting, 0)
        return base.loop.real_steps * len(base.seeds)

    def _no_room(self, number: int, most: int) -> str:
        limit, spent = self.sweep.budget.real_step, self.spending.spent["real_step"]
        return (
            f"trial {number} may take {most} real steps, and of sweep.budget.real_step = {limit} only "
            f"{(limit or 0) - spent} are left"
        )
