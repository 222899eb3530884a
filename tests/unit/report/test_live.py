"""What a run shows of itself: rows in a terminal, few lines elsewhere, nothing that a stream cannot carry."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from proxygap.base.clock import Clocks
from proxygap.base.progress import Progress
from proxygap.report.live import PLAIN_EVERY_S, LiveView, say, summary_lines

NOW = Progress(
    seed=1,
    state="running",
    clocks=Clocks(iteration=5, real_step=250, imagined_step=100_000, model_update=77, policy_update=5000),
    budget=3000,
    steps_per_second=31.25,
    eta_s=3725.0,
    objective=math.nan,
    outcome=math.nan,
    correlation=math.nan,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock | None = None, seeds: tuple[int, ...] = (0, 1)) -> tuple[LiveView, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    names = {"objective": "held_out_mse", "outcome": "return"}
    return LiveView("small", "Is it?", 3000, seeds, console, clock=clock or Clock(), **names), stream


def test_a_plain_line_has_every_number_on_one_line() -> None:
    view, stream = plain()
    with view:
        view.update(replace(NOW, objective=0.5, outcome=12.0, correlation=-0.25))
    heading, line = stream.getvalue().splitlines()
    assert heading == "small: Is it? (2 seeds x 3000 real steps)"
    assert line == (
        "seed 1 running: 250/3000 real steps, iteration 5, 100000 imagined, 77 model updates, 5000 policy updates, "
        "31.25 steps/s, held_out_mse 0.5, return 12, correlation -0.25, ETA 1:02:05"
    )


def test_plain_lines_are_few() -> None:
    clock = Clock()
    view, stream = plain(clock)
    with view:
        for step in range(100):
            clock.now = step * PLAIN_EVERY_S / 50
            view.update(replace(NOW, clocks=Clocks(real_step=step)))
    told = [line.split(": ")[1].split("/")[0] for line in stream.getvalue().splitlines()[1:]]
    assert told == ["0", "50"], "one at once, one after the pause"


@pytest.mark.parametrize(
    "news", [{"objective": 1.0}, {"outcome": 1.0}, {"state": "failed"}, {"note": "host restarted"}]
)
def test_news_are_told_at_once(news: dict[str, object]) -> None:
    view, stream = plain()
    with view:
        view.update(NOW)
        view.update(replace(NOW, **news))  # type: ignore[arg-type]
    assert len(stream.getvalue().splitlines()) == 3


def test_seeds_do_not_silence_each_other() -> None:
    view, stream = plain()
    with view:
        view.update(NOW)
        view.update(replace(NOW, seed=0))
    assert len(stream.getvalue().splitlines()) == 3


@pytest.mark.parametrize("width", [80, 119, 120, 200])
def test_a_terminal_shows_one_row_per_seed(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with LiveView("small", "Is it?", 3000, (0, 1), console, objective="held_out_mse", outcome="return") as view:
        view.update(replace(NOW, objective=0.5, outcome=12.0, correlation=0.75))
        view.notice("stopping")
    shown = stream.getvalue()
    assert max(map(len, shown.replace("\x1b", "\n").splitlines())) <= width + 8, "nothing wraps"
    rows = [line for line in shown.splitlines() if "running" in line]
    assert {"250", "31.25", "0.5", "12", "+0.75", "1:02:05"} <= set(rows[-1].split())
    assert ("100,000" in rows[-1]) == (width >= 120)
    assert "waiting" in shown
    assert "stopping" in shown


def test_a_notice_is_written_past_all_buffers_where_there_is_no_table(capfd: pytest.CaptureFixture[str]) -> None:
    view, _ = plain()
    with view:
        view.notice("stopping")
    assert capfd.readouterr().err == "stopping\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_gets_only_what_its_encoding_has(terminal: bool) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    console = Console(file=stream, width=100, force_terminal=terminal, _environ={"TERM": "xterm"})
    with LiveView("schön", "Ist es „gut“?", 3000, (0, 1), console) as view:
        view.update(replace(NOW, note="→ Host 3 läuft wieder"))
    say(console, ["Größe"])
    stream.flush()
    assert b"sch?n" in raw.getvalue()
    assert b"Gr??e" in raw.getvalue()


def test_no_control_characters_reach_a_terminal() -> None:
    view, stream = plain()
    with view:
        view.update(replace(NOW, note="a\x1b[2Jb\nc [bold]d[/bold]"))
    line = stream.getvalue().splitlines()[1]
    assert "\x1b" not in line
    assert line.endswith("a?[2Jb c [bold]d[/bold]"), "one line, and no markup"


def _summary(**changes: object) -> list[str]:
    given: dict[str, object] = {
        "verdict": "A better model meant better balance: Spearman 0.8 [0.6, 0.9].",
        "states": {1: "failed", 0: "finished"},
        "reasons": {1: "NonFiniteValue: the critic's loss is NaN"},
        "folder": Path("runs/small-1"),
        "report": Path("runs/small-1/report/report.html"),
        "undelivered": 0,
    }
    return summary_lines(**{**given, **changes})  # type: ignore[arg-type]


def test_the_summary_begins_with_the_verdict_and_has_failed_seeds_as_rows() -> None:
    lines = _summary()
    assert lines[0].startswith("A better model meant")
    assert lines[2:4] == ["seed 0: finished", "seed 1: failed (NonFiniteValue: the critic's loss is NaN)"]
    assert "report: runs/small-1/report/report.html" in lines
    assert not any("sync" in line or "resume" in line for line in lines)


def test_the_summary_says_what_is_left_to_do() -> None:
    lines = _summary(undelivered=12, states={0: "interrupted"}, reasons={}, report=None)
    assert any("12 readings" in line and "proxygap sync runs/small-1" in line for line in lines)
    assert any("proxygap resume runs/small-1" in line for line in lines)
    assert any("proxygap report" in line for line in lines)
