"""Progress while a run goes on: a live table in a terminal, plain lines everywhere else, a summary at the end."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from proxygap.base.progress import Progress

PLAIN_EVERY_S = 5.0
"""Shortest time between two plain lines of one seed that say nothing new but the clocks."""
WIDE = 120
"""Columns from which the clocks of imagination and learning are shown, too."""
_STYLES = {"finished": "green", "failed": "bold red", "interrupted": "yellow", "running": "cyan"}


class LiveView:
    """Shows every seed of an experiment while it runs. Use as a context manager and `update` it.

    Args:
        experiment_name: title of the table.
        question: what the run is to answer.
        budget: real steps of each seed.
        seeds: rows, in this order.
        console: where to write; its stream decides between table and lines.
        objective: name of the objective that is shown.
        outcome: name of the outcome that is shown.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        experiment_name: str,
        question: str,
        budget: int,
        seeds: Sequence[int],
        console: Console,
        *,
        objective: str = "objective",
        outcome: str = "outcome",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._question, self._budget, self._seeds = experiment_name, question, budget, tuple(seeds)
        self._console, self._objective, self._outcome, self._clock = console, objective, outcome, clock
        self._newest: dict[int, Progress] = {}
        self._told: dict[int, tuple[float, str]] = {}
        self._notice = ""
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Start the display."""
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)
            self._live.start()
        else:
            self._say(f"{self._name}: {self._question} ({len(self._seeds)} seeds x {self._budget} real steps)")
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last table standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, progress: Progress) -> None:
        """Show the newest state of one seed."""
        self._newest[progress.seed] = progress
        if self._live is None and self._is_news(progress):
            self._say(self._line(progress))

    def notice(self, text: str) -> None:
        """Show a line below the table. Waits for no lock and no buffer, so that a signal handler may call it."""
        self._notice = text
        if self._live is None:
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode())

    def _is_news(self, progress: Progress) -> bool:
        news = repr((progress.state, progress.objective, progress.outcome, progress.note))
        last_time, last_news = self._told.get(progress.seed, (-math.inf, ""))
        now = self._clock()
        if news == last_news and now - last_time < PLAIN_EVERY_S:
            return False
        self._told[progress.seed] = (now, news)
        return True

    def _say(self, line: str) -> None:
        say(self._console, [line])

    def _line(self, progress: Progress) -> str:
        clocks = progress.clocks
        parts = [
            f"seed {progress.seed} {progress.state}: {clocks.real_step}/{progress.budget} real steps",
            f"iteration {clocks.iteration}",
            f"{clocks.imagined_step} imagined",
            f"{clocks.model_update} model updates",
            f"{clocks.policy_update} policy updates",
            f"{_number(progress.steps_per_second)} steps/s",
            f"{self._objective} {_number(progress.objective)}",
            f"{self._outcome} {_number(progress.outcome)}",
            f"correlation {_signed(progress.correlation)}",
            f"ETA {_duration(progress.eta_s)}",
            *([progress.note] if progress.note else []),
        ]
        return ", ".join(parts)

    def _table(self) -> RenderableType:
        title = self._text(f"{self._name}: objective = {self._objective}, outcome = {self._outcome}")
        caption = self._text(self._notice or self._question)
        table = Table(box=box.SIMPLE_HEAD, title=title, caption=caption, padding=0)
        for header in ("seed", "state", "done", *self._numbers):
            table.add_column(header, justify="left" if header == "state" else "right", no_wrap=True)
        for seed in self._seeds:
            table.add_row(*self._row(seed))
        notes = [f"seed {seed}: {self._newest[seed].note}" for seed in self._seeds if self._note(seed)]
        return Group(table, *(self._text(note) for note in notes)) if notes else table

    @property
    def _numbers(self) -> tuple[str, ...]:
        middle = ("iter", "imagined", "model upd.", "policy upd.") if self._console.width >= WIDE else ()
        return ("real step", *middle, "steps/s", "objective", "outcome", "corr.", "ETA")

    def _note(self, seed: int) -> str:
        return self._newest[seed].note if seed in self._newest else ""

    def _row(self, seed: int) -> list[RenderableType]:
        progress = self._newest.get(seed)
        if progress is None:
            return [str(seed), "waiting", ProgressBar(completed=0, width=9), *["-" for _ in self._numbers]]
        clocks = progress.clocks
        shown = {
            "real step": _count(clocks.real_step),
            "iter": _count(clocks.iteration),
            "imagined": _count(clocks.imagined_step),
            "model upd.": _count(clocks.model_update),
            "policy upd.": _count(clocks.policy_update),
            "steps/s": _number(progress.steps_per_second),
            "objective": _number(progress.objective),
            "outcome": _number(progress.outcome),
            "corr.": _signed(progress.correlation),
            "ETA": _duration(progress.eta_s),
        }
        state = Text(progress.state, style=_STYLES.get(progress.state, ""))
        bar = ProgressBar(total=max(progress.budget, 1), completed=clocks.real_step, width=9)
        return [str(seed), state, bar, *(shown[name] for name in self._numbers)]

    def _text(self, text: str) -> Text:
        return Text(_speakable(text, self._console))


def say(console: Console, lines: Sequence[str]) -> None:
    """Write plain lines: no markup, no wrapping, and nothing that the stream's encoding cannot carry."""
    for line in lines:
        console.print(Text(_speakable(line, console)), soft_wrap=True)


def summary_lines(
    *,
    verdict: str,
    states: Mapping[int, str],
    reasons: Mapping[int, str],
    folder: Path,
    report: Path | None,
    undelivered: int,
) -> list[str]:
    """What to read when a run has ended: the verdict, each seed's end, and where to look."""
    lines = [verdict, ""]
    for seed, state in sorted(states.items()):
        reason = reasons.get(seed, "")
        lines.append(f"seed {seed}: {state}{f' ({reason})' if reason else ''}")
    lines += ["", f"report: {report}" if report else "report: none; `proxygap report` writes it from the records"]
    lines.append(f"folder: {folder}")
    lines.append(f"MLflow: proxygap ui {folder}")
    if undelivered > 0:
        lines.append(f"MLflow lacks {undelivered} readings, the journal has them: proxygap sync {folder}")
    if any(state in ("interrupted", "running") for state in states.values()):
        lines.append(f"to continue: proxygap resume {folder}")
    return lines


def _speakable(text: str, console: Console) -> str:
    """One line, without control characters, in letters that the stream can carry."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line.encode(console.encoding, errors="replace").decode(console.encoding)


def _count(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.4g}M"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-" if math.isnan(value) else f"{value}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "-"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
