"""What recording costs a run: a reading of 40 metrics each second, with the shipper delivering to MLflow beside it.

A fixed piece of single-threaded work repeats for as long as the benchmark lasts; each second it is interrupted by one
reading and one event, written and synced to disk. The shipper, a process of its own, is stopped and continued from
window to window (SIGSTOP, SIGCONT), so that the same work is timed with it and without it under equal conditions;
continued, it delivers the readings of both windows.

Three shares are added up, as if none of them overlapped: wall clock of writing in the run (without the time that other
programs kept the core), slowdown of the work (CPU seconds a piece), and CPU seconds of the shipper over all cores.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from measure import Bound, report, waited_for_core_s
from proxygap.base.clock import Clocks
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.record.folder import ExperimentFolder
from proxygap.record.journal import Journal
from proxygap.record.shipper import Shipper

METRICS, PERIOD_S, FLUSH_S, WINDOW_S, PAIRS, AT_MOST = 40, 1.0, 5.0, 5.0, 12, 0.01
WRITING, SLOWDOWN, SHIPPING = "writing, in the run", "slowdown beside the shipper", "shipper, of all cores"
TOGETHER = "recording, all together"
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
    """The same work for `WINDOW_S` seconds, with a reading each second; CPU seconds are this process's own."""

    def __init__(self, journal: Journal, work: Callable[[], object], number: int) -> None:
        self.writes_s: list[float] = []
        self.pieces, self.work_cpu_s = 0, 0.0
        started = time.perf_counter()
        due = started + PERIOD_S / 2
        while (now := time.perf_counter()) < started + WINDOW_S:
            if now >= due:
                due += PERIOD_S
                self._record(journal, number + len(self.writes_s))
            before = time.process_time()
            work()
            self.work_cpu_s += time.process_time() - before
            self.pieces += 1

    def _record(self, journal: Journal, number: int) -> None:
        before, waited = time.perf_counter(), waited_for_core_s()
        journal.write(reading(number))
        journal.event("fitted", {"version": number, "elites": [0, 1, 2]})
        self.writes_s.append(time.perf_counter() - before - (waited_for_core_s() - waited))

    @property
    def cpu_s_per_piece(self) -> float:
        return self.work_cpu_s / self.pieces


def shipper_process() -> psutil.Process:
    return next(child for child in psutil.Process().children() if "proxygap.record.shipper" in child.cmdline())


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def settle(journal: Journal, shipper: Shipper) -> None:
    """Wait until the shipper has imported MLflow, created its database and delivered a first reading."""
    journal.write(reading(0))
    until = time.monotonic() + 90
    while shipper.status().lag or not shipper.status().time_ms:
        assert time.monotonic() < until, shipper.status()
        time.sleep(0.2)


def measure(root: Path) -> dict[str, list[float]]:
    """Repeats by name, one for each pair of windows: work alone, then work beside the shipper."""
    folder = experiment_folder(root)
    journal, shipper, work = Journal(folder.seed(0).journal), Shipper(folder, FLUSH_S), fixed_work()
    shipper.start()
    settle(journal, shipper)
    process = shipper_process()
    shares: dict[str, list[float]] = {WRITING: [], SLOWDOWN: [], SHIPPING: []}
    try:
        for pair in range(PAIRS):
            process.send_signal(signal.SIGSTOP)
            alone = Window(journal, work, 1 + 200 * pair)
            process.send_signal(signal.SIGCONT)
            before = cpu_s(process)
            beside = Window(journal, work, 101 + 200 * pair)
            shares[WRITING].append(statistics.mean(beside.writes_s) / PERIOD_S)
            shares[SLOWDOWN].append(beside.cpu_s_per_piece / alone.cpu_s_per_piece - 1)
            shares[SHIPPING].append((cpu_s(process) - before) / WINDOW_S / (os.cpu_count() or 1))
    finally:
        process.send_signal(signal.SIGCONT)
        status = shipper.stop()
        journal.close()
    assert status.lag == 0, status
    assert not status.error, status
    together = sum(max(0.0, statistics.median(each)) for each in shares.values())
    return shares | {TOGETHER: [together]}


def main() -> bool:
    with tempfile.TemporaryDirectory() as root:
        shares = measure(Path(root))
    details = {"metrics": METRICS, "readings_per_s": 1 / PERIOD_S, "delivery_every_s": FLUSH_S, "window_s": WINDOW_S}
    return report("recording", unit="of the time", samples=shares, claims=[Bound(TOGETHER, AT_MOST)], details=details)


if __name__ == "__main__":
    sys.exit(not main())
