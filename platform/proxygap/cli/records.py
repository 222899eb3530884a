"""``doctor``, ``report``, ``compare``, ``sync`` and ``ui``: what is there, and what it says."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from proxygap.base.errors import TrackerUnavailable
from proxygap.cli.group import answer, commands, json_option, only_answers, root_option, run_argument
from proxygap.lookup import find_run


@commands.command()
@root_option
@click.option("--tracking-uri", help="Tracker to look at. Default: the one that a run would use.")
@json_option
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
        answer({"ok": well, "findings": [asdict(finding) for finding in findings]})
    else:
        click.echo(render(findings))
    ctx.exit(0 if well else 1)


@commands.command()
@run_argument
@root_option
def report(run_folder: str | None, root: Path) -> None:
    """Write the report of a run or sweep again, from its records alone.

    Prints where it is; the verdict goes to standard error.
    """
    from proxygap.loops.report import make_report
    from proxygap.record.sweep_folder import SweepFolder, folder_of
    from proxygap.sweep.report import make_sweep_report

    folder = find_run(run_folder, root)
    make = make_sweep_report if isinstance(folder_of(folder), SweepFolder) else make_report
    page, verdict = make(folder)
    click.echo(verdict, err=True)
    click.echo(page)


@commands.command()
@click.argument("run_folders", metavar="RUN RUN...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the page. Default: comparison, beside RUN.")
@root_option
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
@run_argument
@root_option
@json_option
def sync(run_folder: str | None, root: Path, as_json: bool) -> None:
    """Give MLflow what it lacks of a run or sweep, without duplicates."""
    from proxygap.record.shipper import sync as deliver
    from proxygap.record.sweep_folder import folder_of

    folder = find_run(run_folder, root)
    with only_answers(as_json):
        delivery = deliver(folder_of(folder))
    if as_json:
        answer({"folder": str(folder), "delivered": delivery.delivered, "pending": delivery.pending})
    else:
        click.echo(f"{folder.name}: {delivery.delivered} readings delivered, {delivery.pending} pending")


@commands.command()
@run_argument
@root_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(0, 65535), help="Another, if it is taken.")
@click.option("--browser/--no-browser", default=True, help="Open a browser where there is one.")
def ui(run_folder: str | None, root: Path, host: str, port: int, browser: bool) -> None:
    """Show a run or a sweep in MLflow, objective against outcome."""
    from proxygap import ui as pages
    from proxygap.record.known_runs import Destination
    from proxygap.record.sweep_folder import folder_of
    from proxygap.record.view import View
    from proxygap.signals import graceful_stop

    folder = find_run(run_folder, root)
    destination, view = Destination.of(folder_of(folder)), View.of(folder_of(folder))
    uri, name = destination.uri, destination.name

    def show(base: str) -> None:
        page = pages.experiment_page(base, name, view.id if view else "")
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
