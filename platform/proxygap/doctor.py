"""One screen about this installation and this machine, to paste into a bug report. Shows no secret, loads no torch."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from proxygap.base.errors import InvalidExperiment

TESTED = {
    "ray": "2.60.0",
    "torch": "2.13.0",
    "mlflow": "3.17.2",
    "gymnasium": "1.2.2",
    "mujoco": "4.0.0",
    "numpy": "2.4.6",
}
"""Versions that the tests pass with, as in ``requirements.lock``."""
PYTHON = (3, 11)
TIMEOUT_S = 3.0
"""Longest wait for a tracker or a cluster to answer."""
LEAST_DISK = 1 << 30
"""Bytes without which a run is likely to end early."""


class Grade(StrEnum):
    """What a finding means for a run."""

    OK = "ok"
    NOTE = "note"
    STOPS = "stops a run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, what it means, what to do about it."""

    topic: str
    found: str
    grade: Grade = Grade.OK
    remedy: str = ""


def examine(folder: Path, tracking_uri: str | None = None) -> tuple[Finding, ...]:
    """Look at everything that a run depends on; changes nothing and takes a few seconds at most.

    Args:
        folder: where runs go.
        tracking_uri: the tracker; default: what a run with default settings uses.
    """
    return (
        *_versions(),
        _source_root(),
        _system(),
        _gpus(),
        _threads(),
        *_ray(),
        _storage(folder),
        _tracker(folder, tracking_uri),
    )


def render(findings: Sequence[Finding]) -> str:
    """The findings as aligned lines, marked where they matter."""
    width = max(len(finding.topic) for finding in findings)
    marks = {Grade.OK: " ", Grade.NOTE: "!", Grade.STOPS: "X"}
    lines = []
    for finding in findings:
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        lines.append(f"{marks[finding.grade]} {finding.topic:<{width}}  {finding.found}{remedy}")
    stops = sum(finding.grade is Grade.STOPS for finding in findings)
    verdict = f"{stops} of these would stop a run (X)" if stops else "nothing here would stop a run"
    return "\n".join([*lines, "", verdict])


def _versions() -> Iterator[Finding]:
    yield Finding("proxygap", _version("proxygap") or "not installed; running from a source tree")
    right = sys.version_info[:2] == PYTHON
    remedy = "" if right else f"Use Python {PYTHON[0]}.{PYTHON[1]}"
    yield Finding("python", platform.python_version(), Grade.OK if right else Grade.STOPS, remedy)
    for package, tested in TESTED.items():
        found = _version(package)
        if found is None:
            yield Finding(package, "not installed", Grade.STOPS, f"pip install {package}=={tested}")
        elif found.partition("+")[0] == tested:
            yield Finding(package, found)
        else:
            pinned = package == "ray" and found.split(".")[:2] != tested.split(".")[:2]
            grade, remedy = (Grade.STOPS, f"pip install ray=={tested}") if pinned else (Grade.NOTE, "")
            yield Finding(package, f"{found} (tested with {tested})", grade, remedy)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _source_root() -> Finding:
    """``platform/`` must stay a source root: as a package it would hide Python's own module from every process."""
    script = "import platform, sys; platform.system(); sys.exit(0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=30, check=False)  # noqa: S603
    if done.returncode == 0:
        return Finding("source root", "Python's own `platform` module is found from here")
    remedy = "Remove platform/__init__.py and any loose .py in platform/, or run from another folder"
    return Finding("source root", f"`import platform` is broken in {Path.cwd()}", Grade.STOPS, remedy)


def _system() -> Finding:
    import psutil  # type: ignore[import-untyped]

    memory = psutil.virtual_memory()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = (
        f"{platform.system()} {platform.release()} {platform.machine()}, {usable} of {os.cpu_count()} CPUs usable, "
        f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory available"
    )
    return Finding("machine", found)


def _gpus() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("gpu", "none found (no nvidia-smi)")
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("gpu", f"nvidia-smi does not answer ({type(error).__name__})", Grade.NOTE)
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
    if names and (_version("torch") or "").endswith("+cpu"):
        return Finding("gpu", "; ".join(names), Grade.NOTE, "torch is a build for CPUs: install one for CUDA to use it")
    return Finding("gpu", "; ".join(names) or "none usable")


def _threads() -> Finding:
    value = os.environ.get("OMP_NUM_THREADS")
    if value is None:
        found = f"OMP_NUM_THREADS unset: every process may take {os.cpu_count()} threads"
        return Finding("threads", found, Grade.NOTE, "export OMP_NUM_THREADS=1 where processes share this machine")
    return Finding("threads", f"OMP_NUM_THREADS={value}")


def _ray() -> Iterator[Finding]:
    mode, path = os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN_PATH")
    place = Path(path) if path else Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        token = "token in RAY_AUTH_TOKEN"  # noqa: S105
    else:
        shown = str(place).replace(str(Path.home()), "~", 1)
        token = f"token {'present' if place.is_file() else 'absent'} at {shown}"
    found = f"RAY_AUTH_MODE={mode or 'unset (Ray turns token mode on for local clusters)'}, {token}"
    if mode not in (None, "disabled", "token", "k8s"):
        yield Finding("ray auth", found, Grade.STOPS, "Set RAY_AUTH_MODE to token, k8s or disabled")
    elif mode == "disabled":
        yield Finding("ray auth", found, Grade.NOTE, "whoever reaches the cluster runs code on it: keep it on loopback")
    elif "absent" in token and (mode == "token" or path):
        yield Finding("ray auth", found, Grade.STOPS, "`ray get-auth-token --generate` makes one")
    else:
        yield Finding("ray auth", found)
    yield _cluster()


def _cluster() -> Finding:
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local", "auto"):
        return Finding("ray cluster", f"RAY_ADDRESS {address or 'unset'}: a run starts, or finds, a local one")
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    problem = _unreachable(parts.hostname or "", _port(address) or 6379)
    if problem:
        remedy = "Start the cluster, or unset RAY_ADDRESS to run on this machine"
        return Finding("ray cluster", f"{_masked(address)}: {problem}", Grade.STOPS, remedy)
    return Finding("ray cluster", f"{_masked(address)} answers")


def _storage(folder: Path) -> Finding:
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"proxygap")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        problem = f"{folder}: cannot be written ({error.strerror})"
        return Finding("runs folder", problem, Grade.STOPS, "Choose another with record.folder")
    found = f"{folder}: writable, {free / 2**30:.1f} GiB free"
    if free < LEAST_DISK:
        return Finding("runs folder", found, Grade.STOPS, "Free some space")
    return Finding("runs folder", found)


def _tracker(folder: Path, setting: str | None) -> Finding:
    from proxygap.record.tracker import tracking_uri

    try:
        uri = tracking_uri(setting, folder)
    except InvalidExperiment as error:
        return Finding("tracker", f"{_masked(str(error.value))}: {error.problem}", Grade.STOPS, error.remedy)
    if uri.startswith("sqlite:///"):
        problem = _unreadable(Path(uri.removeprefix("sqlite:///")))
    elif uri.startswith(("http://", "https://")):
        problem = _unanswered(uri)
    else:
        problem = _unreachable(urlsplit(uri).hostname or "", _port(uri) or 0) if _port(uri) else ""
    if problem:
        remedy = "a run goes on without it; `proxygap sync` delivers later"
        return Finding("tracker", f"{_masked(uri)}: {problem}", Grade.NOTE, remedy)
    return Finding("tracker", f"{_masked(uri)} is reachable")


def _unreadable(database: Path) -> str:
    """Why a SQLite store cannot be used; one that does not exist yet will be created."""
    if not database.exists():
        return ""
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_S)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return str(error)
    return ""


def _unanswered(uri: str) -> str:
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    try:
        with urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=TIMEOUT_S):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code in (401, 403) else f"answers with HTTP {error.code}"
    except (OSError, ValueError) as error:
        return f"does not answer ({getattr(error, 'reason', error)})"


def _unreachable(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S):
            return ""
    except (OSError, ValueError) as error:
        return f"does not answer ({error})"


def _port(address: str) -> int | None:
    try:
        return urlsplit(address if "://" in address else f"tcp://{address}").port
    except ValueError:
        return None


def _masked(uri: str) -> str:
    """The URI without user, password and query, where tokens hide."""
    if "://" not in uri or uri.startswith("sqlite:"):
        return uri
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"***@{host}" if "@" in parts.netloc else host
    return parts._replace(netloc=netloc, query="***" if parts.query else "", fragment="").geturl()
