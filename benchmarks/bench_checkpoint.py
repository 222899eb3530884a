"""A checkpoint of an ensemble with 50 million parameters, against writing as many bytes to the same disk and syncing.

Both take turns in one folder; the file is new each time. A checkpoint also hashes every byte and checks, after a
write, nothing twice. What counts is wall clock, since a disk is waited for, not computed with; the CPU time of a save
stands in the details, and so do loading (which verifies every hash) and the copy into a storage on the same disk.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from measure import Ratio, report
from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.mirror import Mirror
from proxygap.record.storage import Storage

MEMBERS, PARAMETERS, ROUNDS, AT_LEAST = 5, 50_000_000, 5, 0.5
CHUNK = 1 << 24


def ensemble() -> State:
    """Weights of five networks with three square layers each, as a dynamics ensemble keeps them."""
    width = int((PARAMETERS / MEMBERS / 3) ** 0.5)
    rng = np.random.default_rng(0)
    layer = rng.standard_normal((MEMBERS, width, width), dtype=np.float32)
    return State({f"layer{index}.weight": layer + index for index in range(3)}, {"members": MEMBERS})


def plain(folder: Path, content: bytes) -> None:
    """As many bytes in one file, in large pieces, synced."""
    with (folder / "plain").open("wb", buffering=0) as file:
        for start in range(0, len(content), CHUNK):
            file.write(memoryview(content)[start : start + CHUNK])
        os.fsync(file.fileno())


def main() -> bool:
    state = ensemble()
    size = sum(array.nbytes for array in state.arrays.values())
    content = np.random.default_rng(1).bytes(size)
    written: dict[str, list[float]] = {"checkpoint": [], "plain write and fsync": []}
    cpu_s: list[float] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        store = CheckpointStore(folder / "checkpoints", keep=1)
        for number in range(ROUNDS + 1):
            started, cpu = time.perf_counter(), time.process_time()
            store.save({"dynamics": state}, Clocks(real_step=number), "bench")
            saved, cpu = time.perf_counter() - started, time.process_time() - cpu
            started = time.perf_counter()
            plain(folder, content)
            wrote = time.perf_counter() - started
            (folder / "plain").unlink()
            if number:
                written["checkpoint"].append(size / saved / 1e6)
                written["plain write and fsync"].append(size / wrote / 1e6)
                cpu_s.append(cpu)
        details = {
            "megabytes": size / 1e6,
            "save_cpu_s": round(float(np.median(cpu_s)), 3),
            **others(folder, store, size),
        }
    claims = [Ratio("checkpoint", "plain write and fsync", AT_LEAST)]
    return report("checkpoint", unit="MB/s", samples=written, claims=claims, details=details)


def others(folder: Path, store: CheckpointStore, size: int) -> dict[str, Any]:
    started = time.perf_counter()
    assert store.load_newest("bench") is not None
    loaded = time.perf_counter() - started
    mirror = Mirror(Storage(str(folder / "storage")), folder / "checkpoints")
    mirror.take_up()
    started = time.perf_counter()
    mirror.publish()
    published = time.perf_counter() - started
    shutil.rmtree(folder / "storage")
    rates = {"load_mb_s": size / loaded / 1e6, "publish_to_same_disk_mb_s": size / published / 1e6}
    return {key: round(value, 1) for key, value in rates.items()}


if __name__ == "__main__":
    sys.exit(not main())
