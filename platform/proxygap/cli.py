"""The command line: every command is a thin shell over a function that a program can call as well.

Answers go to standard output, progress and errors to standard error where a script reads the answer. The exit code
of an error is that of its class (``base/errors.py``); a run that a signal stopped ends with 128 plus its number.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from proxygap import __version__
from proxygap.base.errors import Interrupted, ProxyGapError, RunFailed, TrackerUnavailable
from proxygap.lookup import catalog, find_run

if TYPE_CHECKING:
    from proxygap.experiment import Experiment
    from proxygap.loops.run import RunSummary
    from proxygap.study import Study

HINT = "This is a defect of ProxyGap: please report it with the lines above and the output of `proxygap doctor`."
_JSON = "proxygap.as_json"


class _Commands(click.Group):
    """Ends every error that ProxyGap raises on purpose in one line and in its own exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ProxyGapError as error:
            for line in str(error).splitlines() or [type(error).__name__]:
                click.echo(f"error: {line}", err=True)
            if ctx.meta.get(_JSON):
                _answer(_as_document(error))
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            error.add_note(HINT)
            raise


def _as_document(error: ProxyGapError) -> dict[str, Any]:
    told = {"kind": type(error).__name__, "field": error.field, "message": str(error), "exit_code": error.exit_code}
    return {"error": told}


def _answer(document: dict[str, Any] | list[Any]) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def _remember_json(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta[_JSON] = as_json
    return as_json


_json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember_json, help="One JSON document on standard output."
)
_root_option = click.option(
    "--folder", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are."
)
_file_argument = click.argument("file", type=click.Path(path_type=Path))
_overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
_variant_option = click.option(
    "--variant", "only", multiple=True, metavar="NAME", help="Only this variant of the file; may be repeated."
)
_run_argument = click.argument("run_folder", metavar="[RUN]", required=False)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="proxygap")
def commands() -> None:
    """Run reinforcement learning, and measure what it optimizes beside what it is wanted for.

    Where a command takes RUN, give a run's folder or the beginning of its name below ./runs; by default it is the
    newest one.
    """


def main() -> None:
    """Entry point of ``proxygap``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    commands(prog_name="proxygap")


@commands.command()
@_file_argument
@_overrides_argument
@click.option("--fresh", is_flag=True, help="Start again in a new folder instead of continuing.")
@_variant_option
@_json_option
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
        (experiment,) = study.experiments.values()
        code, summary = _watch(experiment, _starter(experiment, fresh), as_json)
        if as_json:
            _answer(_summary_document(summary))
        ctx.exit(code)
    ctx.exit(_run_variants(study, fresh, as_json))


@commands.command()
@_run_argument
@_root_option
@_json_option
@click.pass_context
def resume(ctx: click.Context, run_folder: str | None, root: Path, as_json: bool) -> None:
    """Continue what is unfinished in a run's folder."""
    from proxygap.experiment import validate
    from proxygap.record.folder import ExperimentFolder

    folder = find_run(run_folder, root)
    experiment = validate(ExperimentFolder(folder).experiment)

    def start(**watch: Any) -> RunSummary:
        from proxygap.loops.run import resume as execute

        return execute(folder, **watch)

    code, summary = _watch(experiment, start, as_json)
    if as_json:
        _answer(_summary_document(summary))
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
    with _only_answers(as_json), session():
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
        _answer({"variants": told, "comparison": page and str(page)})
    elif page:
        click.echo(f"\nComparison of all variants: {_short(page)}")
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
    with _only_answers(as_json), view, graceful_stop(view.notice) as stop:
        summary = start(on_progress=view.update, stop=stop)
    states = {seed: str(state) for seed, state in summary.states.items()}
    if not as_json:
        lines = summary_lines(
            verdict=summary.verdict,
            states=states,
            reasons=summary.reasons,
            folder=_short(summary.folder),
            report=_short(summary.report),
            undelivered=summary.undelivered,
        )
        say(console, ["", *lines])
    if any(states.get(seed) not in ("finished", "failed") for seed in experiment.seeds):
        return stop.exit_code or 130, summary
    return _failed_code(states), summary


def _failed_code(states: dict[int, str]) -> int:
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
    }


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextlib.contextmanager
def _only_answers(active: bool) -> Iterator[None]:
    """Send whatever others print on standard output, other processes included, to standard error."""
    if not active:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@commands.command()
@_file_argument
@_overrides_argument
@_variant_option
@_json_option
def validate(file: Path, overrides: tuple[str, ...], only: tuple[str, ...], as_json: bool) -> None:
    """Check an experiment file; print it with all defaults.

    Prints each of its variants, if it has some. Constructs the task, but starts nothing.
    """
    from proxygap.study import load_study
    from proxygap.yaml_file import yaml_text

    study, documents = load_study(file, overrides, only), dict[str, Any]()
    for name, experiment in study.experiments.items():
        experiment.check()
        if documents and not as_json:
            click.echo("---")
        resolved = experiment.model_dump(mode="json")
        told = {"identity": experiment.identity, "folder": str(Path(experiment.record.folder) / experiment.folder_name)}
        documents[name] = {"valid": True, **told, "experiment": resolved}
        if not as_json:
            click.echo(yaml_text(resolved) + "".join(f"# {key}: {value}\n" for key, value in told.items()), nl=False)
    if as_json:
        _answer({"variants": documents} if study.compared else documents[next(iter(documents))])


@commands.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    from proxygap.experiment import Experiment

    document = Experiment.model_json_schema()
    document["properties"]["variants"] = {
        "type": "object",
        "additionalProperties": {"type": ["object", "null"]},
        "description": "Names, and the fields that each changes; every variant is run, and all are compared.",
    }
    _answer({"$schema": "https://json-schema.org/draft/2020-12/schema", **document})


@commands.command("list")
@click.argument("seam", nargs=-1)
@_json_option
def list_parts(seam: tuple[str, ...], as_json: bool) -> None:
    """Show every part at every SEAM, and what can be measured."""
    rows = catalog()
    seams = list(dict.fromkeys(row["seam"] for row in rows))
    wanted = " ".join(seam).replace("_", " ").replace("-", " ")
    if wanted and wanted not in seams:
        nearest = difflib.get_close_matches(wanted, seams, n=1)
        guess = f"Did you mean {nearest[0]!r}? " if nearest else ""
        raise click.BadParameter(f"{wanted!r} is no seam. {guess}Known: {', '.join(seams)}", param_hint="SEAM")
    shown = [row for row in rows if wanted in ("", row["seam"])]
    if as_json:
        _answer(shown)
        return
    width = max(len(row["kind"]) for row in shown)
    for name in dict.fromkeys(row["seam"] for row in shown):
        click.echo(name)
        for row in (row for row in shown if row["seam"] == name):
            paper = f"  [{row['paper']}]" if row["paper"] else ""
            click.echo(f"  {row['kind']:<{width}}  {row['line']}{paper}")


@commands.command()
@_root_option
@click.option("--tracking-uri", help="Tracker to look at. Default: the one that a run would use.")
@_json_option
@click.pass_context
def doctor(ctx: click.Context, root: Path, tracking_uri: str | None, as_json: bool) -> None:
    """Look at what a run depends on: one screen for a bug report.

    Ends with 1 if something would stop a run. Shows no secret.
    """
    from dataclasses import asdict

    from proxygap.doctor import Grade, examine, render

    findings = examine(root, tracking_uri)
    well = all(finding.grade is not Grade.STOPS for finding in findings)
    if as_json:
        _answer({"ok": well, "findings": [asdict(finding) for finding in findings]})
    else:
        click.echo(render(findings))
    ctx.exit(0 if well else 1)


@commands.command()
@_run_argument
@_root_option
def report(run_folder: str | None, root: Path) -> None:
    """Write a run's report again, from its records alone.

    Prints where it is; the verdict goes to standard error.
    """
    from proxygap.loops.report import make_report

    page, verdict = make_report(find_run(run_folder, root))
    click.echo(verdict, err=True)
    click.echo(page)


@commands.command()
@click.argument("run_folders", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the page. Default: comparison, beside RUN.")
@_root_option
def compare(run_folders: tuple[str, ...], out: Path | None, root: Path) -> None:
    """Compare runs on the same seeds.

    The first is the baseline. Prints where the page is.
    """
    if len(run_folders) < 2:
        raise click.UsageError("give at least two runs")
    folders = [find_run(name, root) for name in run_folders]
    from proxygap.loops.report import make_comparison

    click.echo(make_comparison(folders, out or folders[0].parent / "comparison"))


@commands.command()
@_run_argument
@_root_option
@_json_option
def sync(run_folder: str | None, root: Path, as_json: bool) -> None:
    """Deliver to MLflow what it lacks of a run, without duplicates."""
    from proxygap.record.folder import ExperimentFolder
    from proxygap.record.shipper import sync as deliver

    folder = find_run(run_folder, root)
    with _only_answers(as_json):
        delivery = deliver(ExperimentFolder(folder))
    if as_json:
        _answer({"folder": str(folder), "delivered": delivery.delivered, "pending": delivery.pending})
    else:
        click.echo(f"{folder.name}: {delivery.delivered} readings delivered, {delivery.pending} pending")


@commands.command()
@_run_argument
@_root_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(0, 65535), help="Another, if it is taken.")
@click.option("--browser/--no-browser", default=True, help="Open a browser where there is one.")
def ui(run_folder: str | None, root: Path, host: str, port: int, browser: bool) -> None:
    """Open MLflow's pages on a run; Ctrl-C ends them."""
    from proxygap import ui as pages
    from proxygap.record.folder import ExperimentFolder
    from proxygap.record.tracker import tracking_uri
    from proxygap.signals import graceful_stop

    folder = find_run(run_folder, root)
    experiment = ExperimentFolder(folder).experiment
    record = experiment.get("record") or {}
    uri = tracking_uri(record.get("tracking_uri"), folder.parent)
    name = record.get("tracking_experiment") or str(experiment.get("name"))

    def show(base: str) -> None:
        page = pages.experiment_page(base, name)
        click.echo(page)
        if browser:
            pages.open_browser(page)

    if uri.startswith(("http://", "https://")):
        parts = urlsplit(uri)
        show(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/"))
        return
    port, log = pages.free_port(host, port), folder.parent / "mlflow-ui.log"
    base = f"http://{host}:{port}"
    with graceful_stop(lambda _: None) as stop, pages.server(uri, folder.parent, host, port, log) as child:
        pages.await_answer(base, child, log, stop)
        if not stop():
            show(base)
            click.echo("Ctrl-C ends it", err=True)
        while not stop():
            if child.poll() is not None:
                raise TrackerUnavailable("the MLflow server ended", field=base, remedy=f"Its messages are in {log}")
            time.sleep(0.2)


if __name__ == "__main__":
    main()
