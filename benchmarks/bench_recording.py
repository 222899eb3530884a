"""What recording costs a run: a reading of 40 metrics each second, with the shipper delivering to MLflow beside it.

A fixed piece of single-threaded work repeats for as long as the benchmark lasts; each second it is interrupted by one
reading and one event, written and synced to disk. Three shares are added up, as if none of them overlapped: wall clock
of writing in the run (without the time that other programs kept the core), CPU seconds of the shipper over all cores,
and the slowdown of the work by caches and memory that it shares with the shipper.

That slowdown is far below the scatter of any timing, so it is measured enlarged: a shipper that delivers all the time
is stopped and continued from window to window (SIGSTOP, SIGCONT), and the slowdown that it causes is scaled by how much
less of a core the ordinary shipper uses.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil

from measure import Bound, report, waited_for_core_s
from proxygap.base.clock import Clocks
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.shipper import Shipper

METRICS, PERIOD_S, FLUSH_S, WINDOW_S, WINDOWS, AT_MOST = 40, 1.0, 5.0, 5.0, 10, 0.01
BUSY_FLUSH_S, BUSY_PERIOD_S, PAIRS = 0.02, 0.1, 5
WRITING, SHIPPING = "writing, in the run", "shipper, of all cores"
BUSY, ENLARGED, SLOWDOWN = "busy shipper, of one core", "slowdown beside it", "slowdown, scaled"
TOGETHER = "recording, all together"
CORES = os.cpu_count() or 1
NAMES = [f"metric_{index}" for index in range(METRICS)]


def reading(number: int) -> Reading:
    """Made as a run makes it, so that this is part of the cost."""
    made = (Measurement(name, number + 0.1, Side.OBJECTIVE, "nats", Direction.HIGHER) for name in NAMES)
    return Reading(Clocks(iteration=number, real_step=10 * number), tuple(made))


def experiment_folder(root: Path) -> ExperimentFolder:
    folder = ExperimentFolder.place(root, "bench", "0123456789abcdef")
    resolved = {"name": "bench", "question": "What does recording cost?", "seeds": [0]}
    folder.create(experiment_hash="0123456789abcdef", yaml_text="name: bench\n", resolved=resolved, provenance={})
    return folder


def fixed_work() -> Callable[[], object]:
    """About five milliseconds of what a learner does: products that fit the caches, and Python between them."""
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((2, 256, 256), dtype=np.float32)

    def work() -> float:
        for _ in range(10):
            product = left @ right
        return float(product.sum()) + sum(index * index for index in range(20_000))

    return work


class Window:
    """The same work for `WINDOW_S` seconds, with a reading each ``period_s``; CPU seconds are this process's own."""

    def __init__(self, journal: Journal, numbers: Iterator[int], work: Callable[[], object], period_s: float) -> None:
        self.writes_s: list[float] = []
        self.pieces, self.work_cpu_s = 0, 0.0
        started = time.perf_counter()
        due = started + period_s / 2
        while (now := time.perf_counter()) < started + WINDOW_S:
            if now >= due:
                due += period_s
                self._record(journal, next(numbers))
            before = time.process_time()
            work()
            self.work_cpu_s += time.process_time() - before
            self.pieces += 1
        self.seconds = time.perf_counter() - started

    def _record(self, journal: Journal, number: int) -> None:
        before, waited = time.perf_counter(), waited_for_core_s()
        journal.write(reading(number))
        journal.event("fitted", {"version": number, "elites": [0, 1, 2]})
        waited = waited_for_core_s() - waited
        self.writes_s.append(time.perf_counter() - before - waited)

    @property
    def cpu_s_per_piece(self) -> float:
        return self.work_cpu_s / self.pieces


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def shipping(folder: ExperimentFolder, every_s: float) -> Iterator[psutil.Process]:
    """A shipper that has imported MLflow and delivered what there was; at the end it delivers the rest."""
    shipper, began_ms = Shipper(folder, every_s), time.time() * 1000
    shipper.start()
    until = time.monotonic() + 90
    while shipper.status().lag or shipper.status().time_ms < began_ms:
        assert time.monotonic() < until, shipper.status()
        time.sleep(0.2)
    process = next(child for child in psutil.Process().children() if "proxygap.record.shipper" in child.cmdline())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        status = shipper.stop()
    assert status.lag == 0, status
    assert not status.error, status


def measure(root: Path) -> dict[str, list[float]]:
    folder = experiment_folder(root)
    journal, work, numbers = Journal(folder.seed(0).journal), fixed_work(), itertools.count(1)
    journal.write(reading(0))
    shares: dict[str, list[float]] = {name: [] for name in (WRITING, SHIPPING, BUSY, ENLARGED, SLOWDOWN)}
    with shipping(folder, FLUSH_S) as process:
        for _ in range(WINDOWS):
            before = cpu_s(process)
            window = Window(journal, numbers, work, PERIOD_S)
            shares[WRITING].append(sum(window.writes_s) / window.seconds)
            shares[SHIPPING].append((cpu_s(process) - before) / window.seconds / CORES)
    ordinary = statistics.mean(shares[SHIPPING]) * CORES
    with shipping(folder, BUSY_FLUSH_S) as process:
        for _ in range(PAIRS):
            process.send_signal(signal.SIGSTOP)
            alone = Window(journal, numbers, work, BUSY_PERIOD_S)
            process.send_signal(signal.SIGCONT)
            before = cpu_s(process)
            beside = Window(journal, numbers, work, BUSY_PERIOD_S)
            shares[BUSY].append((cpu_s(process) - before) / beside.seconds)
            shares[ENLARGED].append(beside.cpu_s_per_piece / alone.cpu_s_per_piece - 1)
            shares[SLOWDOWN].append(shares[ENLARGED][-1] * ordinary / shares[BUSY][-1])
    journal.close()
    writing, sent = statistics.mean(shares[WRITING]), statistics.mean(shares[SHIPPING])
    return shares | {TOGETHER: [writing + sent + max(0.0, statistics.median(shares[SLOWDOWN]))]}


def main() -> bool:
    with tempfile.TemporaryDirectory() as root:
        shares = measure(Path(root))
    details = {"metrics": METRICS, "period_s": PERIOD_S, "flush_s": FLUSH_S, "busy_flush_s": BUSY_FLUSH_S}
    return report("recording", unit="of the time", samples=shares, claims=[Bound(TOGETHER, AT_MOST)], details=details)


if __name__ == "__main__":
    sys.exit(not main())
