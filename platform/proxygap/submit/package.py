"""The package of a job: a deterministic archive with the experiment, its files, and ProxyGap's own code.

Ray names a package by the hash of its bytes, so equal content is uploaded once and kept once. Nothing here holds a
secret: the description of a job names the variables that the nodes must have, never their values.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shlex
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import proxygap
from proxygap.base.errors import SubmissionFailed
from proxygap.serve import growth
from proxygap.submit.feasible import node_of
from proxygap.submit.settings import Cluster, tells_secret
from proxygap.submit.work import Work

EXPERIMENT: Final = "experiment.yaml"
DESCRIPTION: Final = "job.json"
ENTRY: Final = "proxygap.submit.entry"
SECRETS_HOOK: Final = "proxygap.submit.secrets.read_into_environment"
TOTAL_LIMIT: Final = 400_000_000
"""Bytes of a whole package; the head keeps it in memory, 512 MiB at most."""
_CODE: Final = (".py", ".html")
_DATE: Final = (1980, 1, 1, 0, 0, 0)
NEEDED: Final = (
    "ray",
    "torch",
    "gymnasium",
    "mlflow",
    "pydantic",
    "pyarrow",
    "safetensors",
    "click",
    "rich",
    "filelock",
)
"""Modules that the nodes must have by themselves, whether ProxyGap's code travels or not."""


def description(work: Work, cluster: Cluster, *, fresh: bool = False) -> dict[str, Any]:
    """What the entry needs to know on the cluster (`proxygap.submit.entry`), as JSON-able data without secrets."""
    return {
        "command": work.command,
        "file": EXPERIMENT,
        "fresh": fresh,
        "folder": work.record_folder,
        "code": cluster.code,
        "versions": versions(),
        "needed": list(NEEDED),
        "secrets": list(cluster.secrets),
        "secrets_file": cluster.secrets_file,
    }


def versions() -> dict[str, str]:
    """Of the submitter's Python, Ray and ProxyGap."""
    return {"python": platform.python_version(), "ray": version("ray"), "proxygap": proxygap.__version__}


def contents(work: Work, cluster: Cluster, *, fresh: bool = False) -> dict[str, bytes]:
    """Everything that travels, by its name in the package.

    Raises:
        SubmissionFailed: all of it together is larger than `TOTAL_LIMIT`.
    """
    described = json.dumps(description(work, cluster, fresh=fresh), indent=1, sort_keys=True)
    found = {EXPERIMENT: work.text.encode(), DESCRIPTION: described.encode()}
    size = sum(each.source.stat().st_size for each in work.files)
    if size > TOTAL_LIMIT:
        problem = f"the files that the experiment names have {size / 1e6:.0f} MB together"
        remedy = "Put them where all nodes read them, below the cluster's shared_folders"
        raise SubmissionFailed(problem, field="package", remedy=remedy)
    found |= {each.name: each.source.read_bytes() for each in work.files}
    if cluster.code == "ship":
        found |= {name: path.read_bytes() for name, path in _own_code()}
    return found


def write_package(path: Path, content: dict[str, bytes]) -> None:
    """Write an archive whose bytes depend on names and content alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content[name])


def entrypoint(cluster: Cluster) -> str:
    """The command of a job; ``exec``, so that a signal reaches the run and no shell above it."""
    return f"exec {shlex.quote(cluster.python)} -m {ENTRY}"


def runtime_env(cluster: Cluster, attempt: int) -> dict[str, Any]:
    """Ray's runtime environment of a job, without its package.

    Raises:
        SubmissionFailed: a variable to forward has a password or a token in its value.
    """
    variables = {
        "OMP_NUM_THREADS": "1",
        **_forwarded(cluster),
        **cluster.env,
        "PROXYGAP_ATTEMPT": str(attempt),
        "RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_wait_s),
    }
    growing = [(node_of(group), group.most - group.least) for group in cluster.groups.values()]
    if any(count for _, count in growing):
        variables[growth.VARIABLE] = growth.addable_text(growing)
    if cluster.secrets_file is None:
        return {"env_vars": variables}
    variables["PROXYGAP_SECRETS_FILE"] = cluster.secrets_file
    return {"env_vars": variables, "worker_process_setup_hook": SECRETS_HOOK}


def _forwarded(cluster: Cluster) -> dict[str, str]:
    found = {name: os.environ[name] for name in cluster.forward if os.environ.get(name)}
    for name, value in found.items():
        if tells_secret(value):
            raise SubmissionFailed(
                "has a password or a token in its value, and whoever sees the job would see it",
                field=name,
                remedy="Unset it here and set it on the nodes, or put user and password into variables named under "
                "the cluster file's secrets",
            )
    return found


def _own_code() -> Iterator[tuple[str, Path]]:
    """The package's sources, by their names in the archive."""
    spec = importlib.util.find_spec("proxygap")
    root = Path(str(spec.origin)).parent if spec else Path()
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if "__pycache__" not in relative.parts and (path.suffix in _CODE or path.name == "py.typed"):
            yield f"proxygap/{relative.as_posix()}", path
