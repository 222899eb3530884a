"""The shipper: a process beside the run that tails the journals and delivers them, so that training never waits.

``python -m proxygap.record.shipper FOLDER --every 5`` delivers every five seconds, backs off while the tracker is
down, and drains once when its standard input closes, which is what the death of the run looks like from here. It ends
when a newer attempt delivers the run. The folder is that of an experiment or of a sweep; one shipper delivers for all
of a sweep's trials.
Deliveries of one folder exclude each other by a lock on ``.tracking.lock``; `sync` takes the same lock.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from proxygap.base.errors import ProxyGapError, StorageError, Superseded
from proxygap.record.delivery import Delivery, DeliveryReport, pending
from proxygap.record.folder import ExperimentFolder, read_json
from proxygap.record.sweep_delivery import SweepDelivery, pending_of_sweep
from proxygap.record.sweep_folder import SweepFolder, folder_of
from proxygap.record.tracker import unavailable

LONGEST_WAIT_S = 15.0
"""Between two attempts while the tracker is down; one costs it a refused connection."""
_log = logging.getLogger("proxygap.shipper")


@dataclass(frozen=True, slots=True)
class ShipperStatus:
    """Readings not yet delivered, the last error (empty: none), when it was tried (0: never), and whether it runs."""

    lag: int
    error: str
    time_ms: int
    alive: bool


class Shipper:
    """Starts and stops the process; nothing here raises into the run.

    Args:
        folder: the experiment's or the sweep's folder.
        every_s: seconds between two deliveries.
    """

    def __init__(self, folder: ExperimentFolder | SweepFolder, every_s: float) -> None:
        self._folder, self._every_s = folder, every_s
        self._process: subprocess.Popen[bytes] | None = None
        self._problem = ""

    def start(self) -> None:
        """Start the process; a failure to do so is told by `status`, and `sync` delivers later."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "proxygap.record.shipper", str(self._folder.path), "--every"]
        try:
            with (self._folder.path / "shipper.log").open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603
                    [*command, str(self._every_s)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    start_new_session=True,  # Ctrl-C is for the run, which then closes the pipe
                )
        except OSError as error:
            self._problem = f"the shipper did not start ({error})"

    def stop(self, timeout: float = 60.0) -> ShipperStatus:
        """Let it deliver what is left, and wait; after ``timeout`` seconds it is terminated."""
        process = self._process
        if process is not None:
            if process.stdin is not None:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
        return self.status()

    def status(self) -> ShipperStatus:
        """How far delivery is behind. Reads the folder only; an unreadable one is an error in words."""
        alive = self._process is not None and self._process.poll() is None
        try:
            last = read_json(self._folder.path / "tracking.json").get("last", {})
            problem = self._problem or str(last.get("error", ""))
            return ShipperStatus(waiting(self._folder), problem, int(last.get("time_ms", 0)), alive)
        except ProxyGapError as error:
            return ShipperStatus(-1, str(error), 0, alive)


@contextlib.contextmanager
def delivered(folder: ExperimentFolder | SweepFolder, every_s: float, patience_s: float) -> Iterator[None]:
    """Have the tracker told beside what is done; but nothing more once a newer attempt has taken it over.

    Args:
        folder: the experiment's or the sweep's folder.
        every_s: seconds between two deliveries.
        patience_s: longest wait for the tracker at the end; what it lacks then is delivered by `sync`.
    """
    shipper = Shipper(folder, every_s)
    shipper.start()
    try:
        yield
    except Superseded:
        patience_s = 0.0
        raise
    finally:
        shipper.stop(patience_s)


def waiting(folder: ExperimentFolder | SweepFolder) -> int:
    """Readings in the journals that no tracker has acknowledged, those of a sweep's trials included."""
    return pending_of_sweep(folder) if isinstance(folder, SweepFolder) else pending(folder)


def sync(folder: ExperimentFolder | SweepFolder, *, lock_timeout: float = 120.0) -> DeliveryReport:
    """Deliver everything now, artifacts included. A trial is delivered with its sweep.

    Returns:
        What was delivered; nothing is pending.

    Raises:
        TrackerUnavailable: the tracker is down; what was delivered before stays delivered.
        Superseded: a newer attempt of the run delivers.
        StorageError: a journal is corrupt, or another process has been delivering for ``lock_timeout`` seconds.
        InvalidExperiment: the tracking URI is not supported.
    """
    place = folder_of(folder.path)
    _ = place.identity
    delivery = _delivery(place)
    with _exclusive(place.path, lock_timeout):
        report = delivery.deliver()
        artifacts = report if report.error else delivery.deliver_artifacts()
    if artifacts.superseded is not None:
        raise artifacts.superseded
    if artifacts.error:
        raise unavailable(delivery.uri, artifacts.error)
    return DeliveryReport(report.delivered, artifacts.pending)


def _delivery(folder: ExperimentFolder | SweepFolder) -> Delivery | SweepDelivery:
    return SweepDelivery(folder) if isinstance(folder, SweepFolder) else Delivery(folder)


@contextlib.contextmanager
def _exclusive(path: Path, timeout: float) -> Iterator[None]:
    lock = FileLock(path / ".tracking.lock")
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise StorageError(
            "another process is delivering this folder", field=str(path), remedy="Wait for it, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the process; returns 0 when everything was delivered, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="proxygap.record.shipper", description="Deliver journals to MLflow.")
    parser.add_argument("folder", type=Path, help="folder of the experiment or the sweep")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two deliveries")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _log.setLevel(logging.INFO)
    with contextlib.suppress(OSError):
        os.nice(10)
    return _ship(folder_of(options.folder), options.every, os.getppid())


def _ship(folder: ExperimentFolder | SweepFolder, every_s: float, parent: int) -> int:
    failures, last_error = 0, ""
    delivery: Delivery | SweepDelivery | None = None
    while True:
        over = _run_is_over(min(every_s * 2**failures, max(every_s, LONGEST_WAIT_S)), parent)
        try:
            delivery = delivery or _delivery(folder)
            with _exclusive(folder.path, LONGEST_WAIT_S):
                report = delivery.deliver()
                if over and not report.error:
                    report = delivery.deliver_artifacts()
            error, over = report.error, over or report.superseded is not None
        except ProxyGapError as problem:
            error = str(problem)
        failures = min(failures + 1, 10) if error else 0
        if error and error != last_error:
            _log.warning("delivery fails, the journal keeps everything: %s", error)
        elif last_error and not error:
            _log.info("delivery works again")
        last_error = error
        if over:
            return 1 if error else 0


def _run_is_over(wait_s: float, parent: int) -> bool:
    """Wait; True as soon as the pipe from the run closes or the run is no longer our parent."""
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([sys.stdin], [], [], min(left, 1.0))
        if os.getppid() != parent or (readable and not os.read(sys.stdin.fileno(), 4096)):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
