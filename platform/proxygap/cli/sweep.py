"""``sweep``: search over settings of an experiment, chosen by outcome."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxygap.base.errors import RunFailed
from proxygap.cli.group import (
    UNPUBLISHED,
    answer,
    commands,
    file_argument,
    json_option,
    only_answers,
    overrides_argument,
    short,
)
from proxygap.record.sweep_folder import ENDED

if TYPE_CHECKING:
    from rich.console import Console

    from proxygap.sweep.load import LoadedSweep
    from proxygap.sweep.progress import SweepProgress
    from proxygap.sweep.run import SweepSummary


@commands.command()
@file_argument
@overrides_argument
@click.option("--resume", is_flag=True, help="Continue; an error where there is nothing to continue.")
@click.option("--fresh", is_flag=True, help="Start again in a new folder instead of continuing.")
@json_option
@click.pass_context
def sweep(ctx: click.Context, file: Path, overrides: tuple[str, ...], resume: bool, fresh: bool, as_json: bool) -> None:
    """Search over settings, or continue a search where it was left.

    FILE is an experiment with a section `sweep`, or the folder of a sweep. Trials that have ended are never repeated,
    interrupted ones go on from their checkpoints, and more of sweep.trials continues the same sweep. Ctrl-C and
    SIGTERM stop all trials at a checkpoint.
    """
    from proxygap.sweep.load import load_sweep
    from proxygap.sweep.run import run_sweep, sweep_folder

    if resume and fresh:
        raise click.UsageError("--resume continues and --fresh starts again: give one of them")
    if (file / "sweep.yaml").is_file():
        if fresh or overrides:
            raise click.UsageError("a sweep's folder is continued as it is: give the file to change something")
        ctx.exit(continue_sweep(file, as_json))
    loaded = load_sweep(file, overrides)
    place = sweep_folder(loaded).path
    if resume and not (place / "identity.json").is_file():
        raise click.UsageError(f"nothing to resume: {short(place)} does not exist; leave --resume out")
    ctx.exit(_watch(loaded, lambda **watch: run_sweep(loaded, fresh=fresh, **watch), as_json))


def continue_sweep(folder: Path, as_json: bool) -> int:
    """Continue the sweep of a folder with progress on the screen; returns the exit code."""
    from proxygap.sweep.load import load_sweep
    from proxygap.sweep.run import resume_sweep

    return _watch(load_sweep(folder / "sweep.yaml"), lambda **watch: resume_sweep(folder, **watch), as_json)


def _watch(loaded: LoadedSweep, start: Callable[..., SweepSummary], as_json: bool) -> int:
    """Run with progress on the screen, say how it ended; returns the exit code."""
    from rich.console import Console

    from proxygap.report.live import say
    from proxygap.report.live_sweep import SweepView
    from proxygap.signals import graceful_stop

    console = Console(stderr=as_json)
    view = SweepView(loaded.name, loaded.question, loaded.sweep.trial_count, console)
    say(console, [f"note: {notice}" for notice in loaded.notices])

    def show(progress: SweepProgress) -> None:
        view.update(_line(progress), sum(progress.trials.get(state, 0) for state in ENDED))

    with only_answers(as_json), view, graceful_stop(view.notice) as stop:
        summary = start(on_progress=show, stop=stop)
    if as_json:
        answer(_document(summary))
    else:
        _say_summary(console, summary)
    return (stop.exit_code or 130) if summary.interrupted else _failed_code(summary)


def _line(progress: SweepProgress) -> str:
    from proxygap.report.live_sweep import progress_line

    best = [(each.goal.metric, each.trial, each.value) for each in progress.best]
    trials = {str(state): count for state, count in progress.trials.items()}
    return progress_line(trials, progress.total, best, progress.wall_s, progress.note)


def _say_summary(console: Console, summary: SweepSummary) -> None:
    from proxygap.report.live import say
    from proxygap.report.live_sweep import setting_text

    lines = [""]
    for each in summary.best:
        lines.append(f"Best {each.goal.metric}: {each.value:.4g}, trial {each.trial}: {setting_text(each.setting)}")
    lines += [f"note: {warning}" for warning in summary.warnings]
    failed = {number: summary.reasons.get(number, "") for number, state in summary.states.items() if state == "failed"}
    lines += [f"trial {number} failed: {reason}" for number, reason in failed.items()]
    lines += [summary.note] if summary.note else []
    lines += [summary.verdict, f"Report: {short(summary.report)}"] if summary.report else []
    lines += [f"Folder: {short(summary.folder)}", f"MLflow: proxygap ui {short(summary.folder)}"]
    if summary.undelivered:
        lines.append(f"{summary.undelivered} readings wait for the tracker: `proxygap sync {short(summary.folder)}`")
    lines += [UNPUBLISHED] if summary.unpublished else []
    lines += [] if summary.complete else ["The same command continues it."]
    say(console, lines)


def _failed_code(summary: SweepSummary) -> int:
    failed = [number for number, state in summary.states.items() if state == "failed"]
    if not failed:
        return 0
    click.echo(f"error: {len(failed)} of {len(summary.states)} trials failed", err=True)
    return RunFailed.exit_code


def _document(summary: SweepSummary) -> dict[str, Any]:
    best = [
        {
            "metric": each.goal.metric,
            "trial": each.trial,
            "value": each.value if math.isfinite(each.value) else None,
            "setting": dict(each.setting),
        }
        for each in summary.best
    ]
    return {
        "best": best,
        "verdict": summary.verdict,
        "warnings": list(summary.warnings),
        "states": {number: str(state) for number, state in summary.states.items()},
        "reasons": dict(summary.reasons),
        "spent": dict(summary.spent),
        "wall_s": summary.wall_s,
        "complete": summary.complete,
        "interrupted": summary.interrupted,
        "note": summary.note,
        "folder": str(summary.folder),
        "report": str(summary.report) if summary.report else None,
        "tracking_uri": summary.tracking_uri,
        "undelivered": summary.undelivered,
        "unpublished": summary.unpublished,
    }
