"""The group of all commands, and what they share: options, errors in one line, answers on standard output alone."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from proxygap import __version__
from proxygap.base.errors import ProxyGapError

HINT = "This is a defect of ProxyGap: please report it with the lines above and the output of `proxygap doctor`."
UNPUBLISHED = "The copy in record.storage is not complete; the same command, on this machine, completes it."
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
                answer(_as_document(error))
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            error.add_note(HINT)
            raise


def _as_document(error: ProxyGapError) -> dict[str, Any]:
    told = {"kind": type(error).__name__, "field": error.field, "message": str(error), "exit_code": error.exit_code}
    return {"error": told}


def answer(document: dict[str, Any] | list[Any]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=True))


def _remember_json(ctx: click.Context, _: click.Parameter, as_json: bool) -> bool:
    ctx.meta[_JSON] = as_json
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember_json, help="One JSON document on standard output."
)
root_option = click.option(
    "--folder", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are."
)
file_argument = click.argument("file", type=click.Path(path_type=Path))
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
variant_option = click.option(
    "--variant", "only", multiple=True, metavar="NAME", help="Only this variant of the file; may be repeated."
)
run_argument = click.argument("run_folder", metavar="[RUN]", required=False)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="proxygap")
def commands() -> None:
    """Run reinforcement learning, and measure what it optimizes beside what it is wanted for.

    Where a command takes RUN, give a run's folder or the beginning of its name below ./runs; by default it is the
    newest one.
    """


def short(path: Path) -> Path:
    """The path as one would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


@contextlib.contextmanager
def only_answers(active: bool) -> Iterator[None]:
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
