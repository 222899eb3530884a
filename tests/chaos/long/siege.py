"""A run that victims are torn from every few seconds, until it is over; and what it must be equal to."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxygap.loops.run import RunSummary, run
from tests.chaos import aftermath
from tests.chaos.killer import NobodyThere, Strike
from tests.chaos.table import Row
from tests.chaos.workloads import experiment

Blow = Callable[[], object]
ON_RECOVERY = 0.2
"""Share of the strikes that wait for nothing."""


class Siege:
    """Strikes one of its victims at random, again and again, until a run in another thread is over.

    Most strikes wait until the journals have gone on since the last one, or else a slow machine would never come to an
    end; `ON_RECOVERY` of them fall upon a run that may still be recovering.

    Args:
        rng: decides whom, and when.
        blows: how each victim is struck; one that raises has found nobody to strike, and is tried again later.
        every_s: mean seconds between two strikes.
        folder: of the run's records.
    """

    def __init__(self, rng: random.Random, blows: dict[str, Blow], every_s: float, folder: Path) -> None:
        self._rng, self._blows, self._every_s, self._folder = rng, blows, every_s, folder
        self._over = threading.Event()
        self.strikes: list[Strike] = []

    def around(self, work: Callable[[], RunSummary]) -> RunSummary:
        """Do the work in a thread of its own; the strikes fall in this one, where Ray wants nodes to be started."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            doing = pool.submit(work)
            doing.add_done_callback(lambda _: self._over.set())
            while not self._over.wait(self._rng.expovariate(1.0 / self._every_s)):
                self._strike()
            return doing.result()

    def _strike(self) -> None:
        victim = self._rng.choice(sorted(self._blows))
        strike = Strike(victim, 0, 0.0, self._blows[victim], at_s=time.time())
        with contextlib.suppress(NobodyThere, ProcessLookupError):
            strike.blow()
            self.strikes.append(strike)
            if self._rng.random() > ON_RECOVERY:
                self._await_readings(self._readings() + 1)

    def _await_readings(self, count: int) -> None:
        while self._readings() < count and not self._over.wait(0.1):
            pass

    def _readings(self) -> int:
        """On disk, of the seed that has fewest."""
        most: dict[str, int] = {}
        for journal in self._folder.rglob("seed-*/journal.jsonl"):
            seed = journal.parent.name
            with contextlib.suppress(FileNotFoundError):  # it is being replaced
                most[seed] = max(most.get(seed, 0), journal.read_bytes().count(b'"values"'))
        return min(most.values(), default=0)


@dataclass(frozen=True, slots=True)
class Front:
    """A workload, and what is killed while it runs.

    Args:
        name: of its folder.
        workload: see `tests.chaos.workloads`.
        sections: laid over it.
        blows: of its victims.
        equal: whether its values must be those of the undisturbed run.
        seeds: that must finish.
    """

    name: str
    workload: dict[str, Any]
    sections: dict[str, Any]
    blows: dict[str, Blow]
    equal: bool = True
    seeds: tuple[int, ...] = (0,)
    record: dict[str, Any] = field(default_factory=dict)

    def rounds(self, root: Path, rng: random.Random, seconds: float, every_s: float) -> list[Row]:
        """Warm, clean, then under siege again and again until the time is up."""
        until, rows = time.monotonic() + seconds, list[Row]()
        self._run(root, "warm")
        began = time.monotonic()
        clean = self._run(root, "clean")
        clean_s = time.monotonic() - began
        while not rows or time.monotonic() < until:
            name, began = f"round-{len(rows)}", time.monotonic()
            siege = Siege(rng, self.blows, every_s, root / name)
            summary = siege.around(lambda name=name: self._run(root, name))
            rows += self._rows(summary, clean, siege.strikes, clean_s, time.monotonic() - began)
        return rows

    def _run(self, root: Path, name: str) -> RunSummary:
        record = {"folder": str(root / name), "tracking_uri": f"sqlite:///{root}/mlflow.db"}
        record |= {key: value.format(folder=root / name) for key, value in self.record.items()}
        sections = {**self.sections, "seeds": self.seeds}
        return run(experiment(self.workload, root, record=record, **sections))

    def _rows(
        self, summary: RunSummary, clean: RunSummary, strikes: Sequence[Strike], clean_s: float, run_s: float
    ) -> list[Row]:
        journals = {seed: aftermath.journal_of(summary, seed) for seed in self.seeds}
        whole = all(
            summary.states.get(seed) == "finished"
            and aftermath.steps(rows) == aftermath.steps(aftermath.finished(clean, seed))
            for seed, rows in journals.items()
        )
        same = all(
            aftermath.readings(rows) == aftermath.readings(aftermath.finished(clean, seed))
            for seed, rows in journals.items()
        )
        equal = same if self.equal else None
        every = [row for rows in journals.values() for row in rows]
        victims = sorted(self.blows)
        taken = {each: tuple(s.dealt_with_s(every) for s in strikes if s.victim == each) for each in victims}
        return [Row(f"{each} ({self.name})", taken[each], whole, equal, clean_s, run_s) for each in victims]
