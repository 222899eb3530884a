"""The command line: every command is a thin shell over a function that a program can call as well.

Answers go to standard output, progress and errors to standard error where a script reads the answer. The exit code
of an error is that of its class (``base/errors.py``); a run that a signal stopped ends with 128 plus its number.
"""

from __future__ import annotations

import io
import sys

from proxygap.cli import cluster, data, files, jobs, records, run, submit, sweep
from proxygap.cli.group import HINT, commands

__all__ = ["HINT", "cluster", "commands", "data", "files", "jobs", "main", "records", "run", "submit", "sweep"]


def main() -> None:
    """Entry point of ``proxygap``."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    commands(prog_name="proxygap")
