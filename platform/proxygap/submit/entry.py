"""What a job runs on the cluster: look whether this node can, then become the command line.

``python -m proxygap.submit.entry [FOLDER]`` reads ``job.json`` in FOLDER (default: where it is started; see
`proxygap.submit.package.description`), and runs the file that lies beside it. What is wrong is told in one line, with
the exit code of `proxygap.base.errors.SubmissionFailed`, before anything is launched. Until the versions are known to
fit, nothing but the standard library is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import proxygap
from proxygap.base.errors import ProxyGapError, SubmissionFailed
from proxygap.submit.secrets import check_secrets, read_secrets

COMMANDS = ("run", "sweep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns, the exit code, only where the job cannot start here."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    folder = Path(given[0] if given else ".")
    try:
        job = _description(folder)
        check_node(job)
        if job.get("secrets_file"):
            os.environ.update(read_secrets(str(job["secrets_file"])))
        check_secrets(map(str, job.get("secrets", ())))
        command = command_line(job, folder)
    except ProxyGapError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return os.execv(sys.executable, command)  # noqa: S606 - the same process, so that signals reach the run


def check_node(job: Mapping[str, Any]) -> None:
    """Refuse a node that cannot run what was sent.

    Raises:
        SubmissionFailed: another Python, Ray or ProxyGap than the submitter's, or packages that are not installed.
    """
    sent = job.get("versions", {})
    own = {"python": platform.python_version(), "ray": _version("ray"), "proxygap": proxygap.__version__}
    known = ["python", "ray", *(["proxygap"] if job.get("code") == "installed" else [])]
    for name in known:
        if _minor(own[name]) != _minor(sent.get(name, own[name])):
            has, wanted = own[name] or "(none)", _minor(sent[name])
            raise SubmissionFailed(
                f"the nodes have {name} {has}, and this was submitted with {sent[name]}",
                field=f"versions.{name}",
                remedy=f"Install {name} {wanted} on the nodes, or submit from an environment like theirs",
            )
    if missing := [name for name in job.get("needed", ()) if importlib.util.find_spec(str(name)) is None]:
        raise SubmissionFailed(
            f"{sys.executable} on this node lacks {', '.join(missing)}",
            field="python",
            remedy="Install ProxyGap's dependencies there (pip install proxygap), or name the Python that has them in "
            "the cluster file",
        )


def command_line(job: Mapping[str, Any], folder: Path) -> list[str]:
    """The words of the command line; nothing of them passes through a shell."""
    command, file = str(job.get("command")), str(job.get("file"))
    if command not in COMMANDS or Path(file).name != file:
        raise SubmissionFailed("does not say what to run", field="job.json", remedy="Submit it again")
    words = [sys.executable, "-m", "proxygap.cli", command, str(folder / file)]
    place = str(job.get("folder") or "")
    if place.startswith("~"):
        words.append(f"record.folder={json.dumps(str(Path(place).expanduser()))}")
    return [*words, *(["--fresh"] if job.get("fresh") is True else [])]


def _description(folder: Path) -> dict[str, Any]:
    try:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "Submit with `proxygap submit`"
        raise SubmissionFailed(f"cannot be read ({error})", field=str(folder / "job.json"), remedy=remedy) from None
    if not isinstance(job, dict):
        raise SubmissionFailed("is no description of a job", field="job.json", remedy="Submit it again")
    return job


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _minor(text: str) -> str:
    return ".".join(text.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
