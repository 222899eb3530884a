"""``python -m tests.chaos.long``: every workload warm, clean, and under random kills for minutes; then the table.

The exit code is 0 if every run came to its end, all that must be equal is, and nothing was left behind.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
import torch

from tests.chaos.aftermath import check_all_free
from tests.chaos.killer import ray_totals
from tests.chaos.long.commands_front import driver_rounds
from tests.chaos.long.fronts import on_many_nodes, on_one_node
from tests.chaos.long.siege import Front
from tests.chaos.table import Row, lines_of

PARTS = 9
"""Workloads that share the time."""


def main() -> int:
    """Run them all."""
    given = _arguments()
    rng, share_s, rows = random.Random(given.seed), 60.0 * given.minutes / PARTS, list[Row]()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        if given.only != "driver":
            with _one_node():
                rows += _run(on_one_node(), root, rng, share_s, given)
            with on_many_nodes(rng) as fronts:
                rows += _run(fronts, root, rng, share_s, given)
        if given.only in ("", "driver"):
            rows += driver_rounds(root / "driver", rng, share_s, given.every)
    _say(lines_of(rows))
    if given.out:
        Path(given.out).write_text("".join(f"{row.line()}\n" for row in rows))
    dealt_with = [s for row in rows for s in row.recovery_s]
    missed = sum(not math.isfinite(s) for s in dealt_with)
    _say([f"{len(dealt_with)} kills with seed {given.seed}, {missed} of them fell when nothing was left to lose"])
    return int(not all(row.completed and row.equal is not False for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0, help="of kills, over all workloads together")
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of the killer")
    parser.add_argument("--only", default="", help="one workload by its name, or driver")
    parser.add_argument("--out", default="", help="file for the rows as lines of JSON")
    return parser.parse_args()


@contextmanager
def _one_node() -> Iterator[None]:
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=4, namespace="proxygap-chaos", **options)
    try:
        yield
    finally:
        ray.shutdown()


def _run(fronts: list[Front], root: Path, rng: random.Random, share_s: float, given: argparse.Namespace) -> list[Row]:
    rows: list[Row] = []
    for front in fronts:
        if given.only not in ("", front.name):
            continue
        _say([f"== {front.name}"])
        told = front.rounds(root / front.name.replace(" ", "-"), rng, share_s, given.every)
        check_all_free(ray_totals())
        _say(lines_of(told)[1:])
        rows += told
    return rows


def _say(lines: list[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
