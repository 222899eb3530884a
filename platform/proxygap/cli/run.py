"""``run`` and ``resume``: experiments, and studies of several variants."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxygap.base.errors import Interrupted, RunFailed
from proxygap.cli.group import (
    UNPUBLISHED,
    answer,
    commands,
    file_argument,
    json_option,
    only_answers,
    overrides_argument,
    root_option,
    run_argument,
    short,
    variant_option,
)
from proxygap.lookup import find_run

if TYPE_CHECKING:
    from proxygap.experiment import Experiment
    from proxygap.loops.run import RunSummary
    from proxygap.study import Study


@commands.command()
@file_argument
@overrides_argument
@click.option("--fresh", is_flag=True, help="Start again in a new folder instead of continuing.")
@variant_option
@json_option
@click.pass_context
def run(
    ctx: click.Context, file: Path, overrides: tuple[str, ...], fresh: bool, only: tuple[str, ...], as_json: bool
) -> None:
    """Run an experiment file, or continue it where it was left.

    A file with variants runs each of them, then compares them on one page. Ctrl-C and SIGTERM stop a run at a
    checkpoint; a second one ends it at once.
    """
    from proxygap.study import load_study

    study = load_study(file, overrides, only)
    for experiment in study.experiments.values():
        experiment.check()
    if not study.compared:
        code, summary = _watch(study.single, _starter(study.single, fresh), as_json)
        if as_json:
            answer(_summary_document(summary))
        ctx.exit(code)
    ctx.exit(_run_variants(study, fresh, as_json))


@commands.command()
@run_argument
@root_option
@json_option
@click.pass_context
def resume(ctx: click.Context, run_folder: str | None, root: Path, as_json: bool) -> None:
    """Continue what is unfinished in the folder of a run or a sweep."""
    from proxygap.cli.sweep import continue_sweep
    from proxygap.experiment import validate
    from proxygap.record.sweep_folder import SweepFolder, folder_of

    folder = find_run(run_folder, root)
    if isinstance(place := folder_of(folder), SweepFolder):
        ctx.exit(continue_sweep(place.path, as_json))
    experiment = validate(place.experiment)

    def start(**watch: Any) -> RunSummary:
        from proxygap.loops.run import resume as execute

        return execute(folder, **watch)

    code, summary = _watch(experiment, start, as_json)
    if as_json:
        answer(_summary_document(summary))
    ctx.exit(code)


def _starter(experiment: Experiment, fresh: bool) -> Callable[..., RunSummary]:
    def start(**watch: Any) -> RunSummary:
        from proxygap.loops.run import run as execute

        return execute(experiment, fresh=fresh, **watch)

    return start


def _run_variants(study: Study, fresh: bool, as_json: bool) -> int:
    """Run each variant, then compare them; an interruption ends the study where it is, to be continued."""
    from proxygap.loops.report import make_comparison
    from proxygap.loops.session import ray_session

    told: dict[str, Any] = {}
    folders, worst, page = [], 0, None
    session = ray_session if any(one.needs_ray for one in study.experiments.values()) else contextlib.nullcontext
    with only_answers(as_json), session():
        for name, experiment in study.experiments.items():
            code, summary = _watch(experiment, _starter(experiment, fresh), as_json)
            told[name] = _summary_document(summary)
            done = code in (0, RunFailed.exit_code)
            folders += [summary.folder] if done else []
            if summary.interrupted and not (done and len(folders) == len(study.experiments)):
                worst = Interrupted.exit_code if done else code  # a signal after the last step is not in its code
                break
            worst = max(worst, code)
        else:
            if any("finished" in document["states"].values() for document in told.values()):
                page = make_comparison(folders, study.page_folder.absolute(), study.question)
    if as_json:
        answer({"variants": told, "comparison": page and str(page)})
    elif page:
        click.echo(f"\nComparison of all variants: {short(page)}")
    elif summary.interrupted:
        how = "" if fresh else " Run it again to continue."
        click.echo(f"\n{len(folders)} of {len(study.experiments)} variants are done.{how}", err=True)
    else:
        click.echo("\nNo seed of any variant finished: there is nothing to compare.", err=True)
    return worst


def _watch(experiment: Experiment, start: Callable[..., RunSummary], as_json: bool) -> tuple[int, RunSummary]:
    """Run with progress on the screen; returns the exit code and the summary."""
    from rich.console import Console

    from proxygap.report.live import LiveView, say, summary_lines
    from proxygap.signals import graceful_stop

    console = Console(stderr=as_json)
    view = LiveView(
        experiment.name,
        experiment.question,
        experiment.loop.real_steps,
        experiment.seeds,
        console,
        objective=experiment.objective,
        outcome=experiment.outcomes[0],
    )
    say(console, [f"note: {notice}" for notice in experiment.notices])
    with only_answers(as_json), view, graceful_stop(view.notice) as stop:
        summary = start(on_progress=view.update, stop=stop)
    states = {seed: str(state) for seed, state in summary.states.items()}
    if not as_json:
        lines = summary_lines(
            verdict=summary.verdict,
            states=states,
            reasons=summary.reasons,
            folder=short(summary.folder),
            report=short(summary.report),
            undelivered=summary.undelivered,
        )
        say(console, ["", *lines, *([UNPUBLISHED] if summary.unpublished else [])])
    if any(states.get(seed) not in ("finished", "failed") for seed in experiment.seeds):
        return stop.exit_code or 130, summary
    return failed_code(states), summary


def failed_code(states: dict[int, str]) -> int:
    """The exit code of a run some of whose seeds failed, said on standard error; 0 where none did."""
    failed = [str(seed) for seed, state in states.items() if state == "failed"]
    if not failed:
        return 0
    click.echo(f"error: {len(failed)} of {len(states)} seeds failed: {', '.join(failed)}", err=True)
    return RunFailed.exit_code


def _summary_document(summary: RunSummary) -> dict[str, Any]:
    return {
        "verdict": summary.verdict,
        "states": {seed: str(state) for seed, state in summary.states.items()},
        "reasons": summary.reasons,
        "interrupted": summary.interrupted,
        "folder": str(summary.folder),
        "report": str(summary.report),
        "tracking_uri": summary.tracking_uri,
        "undelivered": summary.undelivered,
        "unpublished": summary.unpublished,
    }
