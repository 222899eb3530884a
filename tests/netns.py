"""Two hosts on one machine: a Ray head here, and a raylet in a network namespace of its own behind a pair of veths.

The link is cut as a cable is: nothing arrives, and no sender is told. Needs root, iproute2 and a kernel that gives out
namespaces; `unavailable` says what lacks. Disk and memory are the same for both hosts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")
START_S = 180.0


def unavailable() -> str:
    """Why there can be no second host; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    name = f"pgtry{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"the kernel gives out no network namespace: {tried.stderr.strip()}"
    try:
        pair = ["ip", "link", "add", name, "type", "veth", "peer", "name", "far0", "netns", name]
        tried = subprocess.run(pair, capture_output=True, text=True, check=False)
        return f"the kernel gives out no pair of veths: {tried.stderr.strip()}" if tried.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


class TwoHosts:
    """A head on this host and a worker on the far one; a token is asked for. Close it.

    Args:
        folder: for the token and for Ray's files; short, since it holds sockets.
        near: labels of this host.
        far: labels of the far host.
        cpus: of each.
        settings: Ray's own (``RAY_...``) for every process of both hosts, e.g. how soon a silent node is given up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        near: Mapping[str, str] | None = None,
        far: Mapping[str, str] | None = None,
        cpus: int = 2,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._cpus, self._labels = folder, cpus, (dict(near or {}), dict(far or {}))
        self._name, subnet = f"pg{os.getpid()}", f"10.77.{os.getpid() % 250}"
        self.near_ip, self.far_ip = f"{subnet}.1", f"{subnet}.2"
        token = folder / "token"
        self.environment = {
            **os.environ,
            **(settings or {}),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.address, self._processes = f"{self.near_ip}:{_free_port()}", list[subprocess.Popen[str]]()
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)

    def start(self) -> None:
        """Lay the link, start both raylets, and wait until the head knows of two."""
        _ip("netns", "add", self._name)
        _ip("link", "add", self._name, "type", "veth", "peer", "name", "far0", "netns", self._name)
        _ip("address", "add", f"{self.near_ip}/30", "dev", self._name)
        _ip("link", "set", self._name, "up")
        _ip("-n", self._name, "address", "add", f"{self.far_ip}/30", "dev", "far0")
        for device in ("lo", "far0"):
            _ip("-n", self._name, "link", "set", device, "up")
        port = self.address.rpartition(":")[2]
        self._ray(["--head", f"--port={port}", "--include-dashboard=false"], self.near_ip, self._labels[0])
        self._ray([f"--address={self.address}"], self.far_ip, self._labels[1], ["ip", "netns", "exec", self._name])
        self._await_both()

    def cut(self) -> None:
        """Have nothing arrive at either side any more: frames go to an address that no one has."""
        self._neighbors("02:00:00:00:00:99", "02:00:00:00:00:99")

    def mend(self) -> None:
        """Let frames arrive again."""
        near, far = _ip("-o", "link", "show", self._name), _ip("-n", self._name, "-o", "link", "show", "far0")
        self._neighbors(_mac(far), _mac(near))

    def driver(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        """Python code that runs on this host, with what a driver needs in its environment."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments], env=self.environment, text=True, **pipes
        )

    def close(self) -> None:
        """End what was started, and take the link away."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
        subprocess.run(["ip", "netns", "delete", self._name], capture_output=True, check=False)  # and with it the pair

    def _ray(self, options: list[str], ip: str, labels: Mapping[str, str], where: list[str] | None = None) -> None:
        said = ",".join(f"{key}={value}" for key, value in labels.items())
        command = [*(where or []), *RAY, "start", *options, f"--node-ip-address={ip}", f"--num-cpus={self._cpus}"]
        command += [f"--labels={said}", "--object-store-memory=120000000", "--disable-usage-stats", "--block"]
        log = (self._folder / f"{ip}.log").open("w")
        self._processes.append(
            subprocess.Popen(command, env=self.environment, text=True, stdout=log, stderr=subprocess.STDOUT)
        )

    def _await_both(self) -> None:
        waiting = self.driver(BOTH, self.address, str(START_S))
        said = waiting.communicate(timeout=START_S + 30.0)[1]
        if waiting.returncode:
            logs = "\n".join(log.read_text()[-2000:] for log in self._folder.glob("10.*.log"))
            raise RuntimeError(f"two nodes within {START_S:g} s were not to be had: {said[-500:]}\n{logs}")

    def _neighbors(self, far_mac: str, near_mac: str) -> None:
        for command, ip, mac, device in (
            ([], self.far_ip, far_mac, self._name),
            (["-n", self._name], self.near_ip, near_mac, "far0"),
        ):
            _ip(*command, "neighbor", "replace", ip, "lladdr", mac, "dev", device, "nud", "permanent")


BOTH = """
import sys, time
from ray._raylet import GcsClient
until, alive = time.monotonic() + float(sys.argv[2]), []
while len(alive) < 2:
    try:
        nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()
        alive = [node.node_id for node in nodes if node.state == 0]
    except Exception as error:  # the head is not up yet
        alive = []
        if time.monotonic() > until:
            sys.exit(str(error))
    if time.monotonic() > until:
        sys.exit(f"{len(alive)} nodes")
    time.sleep(0.2)
"""


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _mac(link: str) -> str:
    words = link.split()
    return words[words.index("link/ether") + 1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
