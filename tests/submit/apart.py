"""``python apart.py PROGRAM...``: bring loopback up inside fresh namespaces, and run the program there.

`ray symmetric-run` and `ray stop` take every Ray that they see for theirs. In namespaces of their own (processes,
network, users) they see none but the test's, the usual ports are free, and everything ends with the program.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import socket
import struct
import subprocess
import sys

import pytest

_SET_FLAGS, _UP = 0x8914, 0x1 | 0x40
COMMAND = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]


@functools.cache
def apart() -> list[str]:
    """The words before a program that is to run apart; skips where the kernel does not allow it."""
    command = [*COMMAND, sys.executable, __file__]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    if (tried := subprocess.run([*command, "true"], capture_output=True, text=True, timeout=60)).returncode:
        pytest.skip(f"the kernel does not allow namespaces here: {tried.stderr.strip()[:100]}")
    return command


if __name__ == "__main__":
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh", b"lo", _UP))
    child = subprocess.Popen(sys.argv[1:])
    ended, status = 0, 0
    while ended != child.pid:  # the first process of a namespace inherits all orphans: Ray waits until they are gone
        ended, status = os.wait()
    sys.exit(os.waitstatus_to_exitcode(status))
