"""Secrets that live on the nodes: a file of lines ``NAME=value`` that only its owner may read. Loads no packages."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from proxygap.base.errors import SubmissionFailed

VARIABLE = "PROXYGAP_SECRETS_FILE"
"""Names the file to every process of a job."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def read_secrets(path: str | Path) -> dict[str, str]:
    """Variables of a secrets file. Empty lines and lines that begin with ``#`` are skipped; quotes are part of a value.

    Raises:
        SubmissionFailed: the file is missing, others may read it, or a line is no assignment; values are never shown.
    """
    place = Path(path).expanduser()
    try:
        with place.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise _refused(path, f"cannot be read on this node ({reason})", "Put it on every node") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise _refused(path, f"may be read by others (mode {mode:o})", f"chmod 600 {place}, on every node")
    found = dict[str, str]()
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name.strip()):
            raise _refused(path, f"line {number} is not NAME=value", "Correct it")
        found[name.strip()] = value.strip()
    return found


def check_secrets(names: Iterable[str]) -> None:
    """Raise `SubmissionFailed` for variables that this node should have and has not."""
    if missing := [name for name in names if not os.environ.get(name)]:
        raise SubmissionFailed(
            f"not set on the nodes: {', '.join(missing)}",
            field="secrets",
            remedy="Set them in the environment that Ray is started in, or in the cluster file's secrets_file",
        )


def read_into_environment() -> None:
    """What Ray calls in every worker of a job. A bad file is told by the job's first process, never here."""
    if path := os.environ.get(VARIABLE):
        try:
            os.environ.update(read_secrets(path))
        except SubmissionFailed:
            return


def _refused(path: str | Path, problem: str, remedy: str) -> SubmissionFailed:
    return SubmissionFailed(problem, field=f"secrets_file {path}", remedy=remedy)
