"""A disk that is full: a small file system of its own where root may mount one, else a limit on the size of files."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

SIZE = "16m"


class Disk:
    """A folder whose disk can be filled up, for the processes that write to it."""

    def __init__(self, folder: Path, *, mounted: bool) -> None:
        self.folder, self._mounted = folder, mounted
        self._ballast = folder / "ballast"

    def fill(self, pid: int) -> None:
        """Leave not one byte; without a file system of its own, let no file of a process grow any more."""
        if not self._mounted:
            psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, (1, 1))
            return
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give the space back; a limit went with its process."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Disk]:
    """A disk of `SIZE` on a new folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "proxygap-chaos", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, mounted=mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=True)
