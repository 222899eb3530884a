"""The sweep's decisions with hand-made trials: no process, no Ray, real ledger and messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from proxygap.record.sweep_folder import SweepFolder, TrialState, read_ledger
from proxygap.sweep.book import Book
from proxygap.sweep.budget import CLOCKS
from proxygap.sweep.director import Director
from proxygap.sweep.ending import Ending
from proxygap.sweep.lockstep import Stretch
from proxygap.sweep.messages import Assignment, Messages, Order
from tests.sweep.small import loaded

GOLD = "outcome/gold_reward"
STEPS = 6
Open = Callable[..., Director]


@pytest.fixture
def sweep(tmp_path: Path) -> Open:
    """Opens the sweep, as a new process would; what another one wrote is found in the folder."""

    def opened(*, asked: bool = False, **section: Any) -> Director:
        made, folder = loaded(tmp_path, **section), SweepFolder(tmp_path / "sweep")
        folder.path.mkdir(exist_ok=True)
        messages = Messages()
        return Director(made, folder, Book(folder, made), Ending(messages, lambda: asked, 1.0), messages)

    return opened


def started(director: Director) -> int:
    number = director.next()
    assert number is not None
    director.take_up(number)
    return number


def tell(director: Director, number: int, step: int, gold: float, **clocks: int) -> None:
    counts = {**dict.fromkeys(CLOCKS, 0), "real_step": 2 * step, **clocks}
    stretch = Stretch(step, step, {GOLD: gold, "time/wall_s": 1.0}, counts, last=step == STEPS)
    director.heard(number, json.dumps(asdict(stretch)))


def finish(director: Director, number: int, gold: float, first: int = 1) -> None:
    for step in range(first, STEPS + 1):
        tell(director, number, step, gold)
    director.gone(number, died=False)


def order(director: Director, number: int, index: int) -> Order | None:
    return director.messages.letters[number].answer(index)


def given(director: Director, number: int, index: int) -> Order:
    found = order(director, number, index)
    assert found is not None
    return found


def assignment(director: Director, number: int) -> Assignment:
    return director.messages.letters[number].assignment


def test_trials_one_by_one_until_they_are_spent(sweep: Open) -> None:
    director = sweep(trials=2)
    first = started(director)
    assert director.next() is None  # one at a time
    finish(director, first, 1.0)
    second = started(director)
    finish(director, second, 2.0)
    with pytest.raises(StopIteration):
        director.next()
    assert director.complete
    found = read_ledger(director.folder.ledger)
    assert [(trial.state, trial.attempts, len(trial.reports)) for trial in found.values()] == [("finished", 1, 6)] * 2


def test_next_process_goes_on_with_interrupted_trials_first_and_proposes_the_same(sweep: Open, tmp_path: Path) -> None:
    director = sweep(trials=4)
    finish(director, started(director), 1.0)
    tell(director, started(director), 1, 1.0)
    tell(director, 1, 2, 1.0)
    later = sweep(trials=4)
    assert started(later) == 1
    told = assignment(later, 1)
    assert (told.reported, dict(told.setting)) == (2, later.book.trials[1].setting)
    tell(later, 1, 2, -9.0)  # heard before: nothing follows
    assert [report.values[GOLD] for report in later.book.trials[1].reports] == [1.0, 1.0]
    finish(later, 1, 1.0, first=3)
    assert started(later) == 2
    rows = [json.loads(line) for line in later.folder.ledger.read_text().splitlines()]
    assert [row["trial"] for row in rows if row["kind"] == "proposed"] == [0, 1, 2]
    whole = sweep(trials=4).book.trials[2].setting
    assert whole == later.book.trials[2].setting


def test_stopped_trial_is_ended_in_the_ledger_before_it_hears_of_it(sweep: Open) -> None:
    director = sweep(trials=3, scheduler={"kind": "asha", "grace": 2, "reduction": 2})
    finish(director, started(director), 5.0)
    number = started(director)
    tell(director, number, 1, 1.0)
    assert order(director, number, 1) is None
    tell(director, number, 2, 1.0)
    reason = "stopped by asha at 2 real steps"
    assert read_ledger(director.folder.ledger)[number].reason == given(director, number, 2).stop == reason
    director.take_up(number)  # its process died before it read the order
    assert assignment(director, number).stop == reason
    director.gone(number, died=False)
    assert director.book.trials[number].state is TrialState.STOPPED
    later = sweep(trials=3, scheduler={"kind": "asha", "grace": 2, "reduction": 2})
    assert started(later) == 2
    tell(later, 2, 2, 4.0)  # a rule that remembers 5 and 1 lets whoever is above their median of 3 go on
    assert order(later, 2, 2) is None


def test_population_waits_for_its_last_member_and_then_the_worst_follows_the_best(sweep: Open) -> None:
    section: dict[str, Any] = {"trials": 3, "concurrency": 3, "scheduler": {"kind": "pbt", "every": 2}}
    director = sweep(**section)
    for _ in range(3):
        started(director)
    for step in (1, 2):
        for number, gold in ((0, 3.0), (1, 1.0)):
            tell(director, number, step, gold, label=100 * (number + 1))
    tell(director, 2, 1, 2.0)
    assert all(order(director, number, 2) is None for number in range(3))
    tell(director, 2, 2, 2.0, label=300)
    change = director.book.trials[1].changes[0]
    assert (change.index, change.donor) == (2, 0)
    assert given(director, 1, 2).donor == 0
    assert given(director, 1, 2).setting == change.setting == director.book.trials[1].current
    assert [given(director, number, 2).donor for number in (0, 2)] == [None, None]
    rows = [json.loads(line)["kind"] for line in director.folder.ledger.read_text().splitlines()]
    assert rows[-2:] == ["changed", "reported"]  # a kill between them leaves a report to be made again
    assert director.spending.spent["label"] == 600
    tell(director, 1, 3, 2.5, label=130)  # 30 more than the donor had
    assert director.spending.spent["label"] == 630
    later = sweep(**section)
    assert later.spending.spent == director.spending.spent
    assert later.book.trials[1].current == change.setting
    assert [started(later) for _ in range(3)] == [0, 1, 2]
    waiting = assignment(later, 0)
    assert (waiting.reported, waiting.compared) == (2, True)  # it need not wait for an order


def test_population_is_compared_without_a_member_that_failed(sweep: Open) -> None:
    director = sweep(trials=4, concurrency=4, scheduler={"kind": "pbt", "every": 2})
    for _ in range(4):
        started(director)
    for number in (0, 1, 2):
        for step in (1, 2):
            tell(director, number, step, float(number))
    assert order(director, 0, 2) is None
    director.heard(3, json.dumps({"failed": "seed 0 failed"}))
    assert given(director, 0, 2).donor == 2
    assert director.book.trials[3].reason == "seed 0 failed"


def test_failures_end_the_sweep_and_dead_processes_count(sweep: Open) -> None:
    director = sweep(trials=9, failures={"stop_after": 2})
    number = started(director)
    director.take_up(number)
    director.gone(number, died=True)
    assert director.book.trials[0].reason == "its process died 2 times"
    number = started(director)
    director.heard(number, json.dumps({"failed": "no"}))
    director.gone(number, died=False)
    with pytest.raises(StopIteration):
        director.next()
    assert director.messages.why == director.ending.why
    assert director.ending.why == "2 trials failed, and sweep.failures.stop_after = 2"


def test_trial_that_says_that_a_budget_is_spent_ends_the_sweep_and_stays_open(sweep: Open) -> None:
    director = sweep(trials=9, budget={"label": 100})
    number = started(director)
    assert assignment(director, number).allowance == {"label": 100}
    director.heard(number, json.dumps({"interrupted": "sweep.budget.label = 100 was spent"}))
    director.gone(number, died=False)
    assert director.ending.begun
    assert director.book.interrupted == [number]


def test_interrupt_starts_nothing(sweep: Open) -> None:
    director = sweep(asked=True)
    with pytest.raises(StopIteration):
        director.next()
    assert director.ending.interrupted
    assert not director.complete
