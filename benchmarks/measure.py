"""How the benchmarks measure: peers take turns in one process, and every claim is kept as JSON with its evidence."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peers.cost import Cost, peak_mib

RESULTS = Path(__file__).parent / "results"

Samples = Mapping[str, Sequence[float]]
"""Name of what was measured to its repeats, all in one unit."""


@dataclass(frozen=True)
class Ratio:
    """The claim that ``ours`` divided by ``peer`` (medians of rates, larger is better) is at least a number."""

    ours: str
    peer: str
    at_least: float

    def judge(self, samples: Samples) -> dict[str, Any]:
        value = statistics.median(samples[self.ours]) / statistics.median(samples[self.peer])
        best = max(samples[self.ours]) / max(samples[self.peer])
        name, target, met = f"{self.ours} / {self.peer}", f">= {self.at_least}", value >= self.at_least
        return {"claim": name, "value": round(value, 3), "of_the_best": round(best, 3), "target": target, "met": met}


@dataclass(frozen=True)
class Bound:
    """The claim that the median of ``name`` (smaller is better) is at most a number."""

    name: str
    at_most: float

    def judge(self, samples: Samples) -> dict[str, Any]:
        value = statistics.median(samples[self.name])
        target = f"<= {self.at_most}"
        return {"claim": self.name, "value": round(value, 5), "target": target, "met": value <= self.at_most}


@dataclass(frozen=True)
class Found:
    """A claim about a number that was worked out elsewhere, such as the end of an interval in the details."""

    name: str
    value: float
    at_least: float = float("-inf")
    at_most: float = float("inf")

    def judge(self, samples: Samples) -> dict[str, Any]:  # noqa: ARG002 - the number is known
        sides = ((">=", self.at_least), ("<=", self.at_most))
        target = " and ".join(f"{sign} {side}" for sign, side in sides if abs(side) != float("inf"))
        met = self.at_least <= self.value <= self.at_most
        return {"claim": self.name, "value": round(self.value, 5), "target": target, "met": met}


Claim = Ratio | Bound | Found


def interleaved(subjects: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Process CPU seconds of each subject, one after the other in every round, after one round of warm-up.

    The order turns around from round to round, so that no subject always runs on the other's caches.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for round_number in range(repeats + 1):
        order = list(subjects) if round_number % 2 else list(reversed(subjects))
        for name in order:
            started = time.process_time()
            subjects[name]()
            if round_number:
                times[name].append(time.process_time() - started)
    return times


def turns(subjects: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, list[Cost]]:
    """As `interleaved`, for subjects that say themselves what they took, in whatever process they ran."""
    costs: dict[str, list[Cost]] = {name: [] for name in subjects}
    for round_number in range(repeats + 1):
        order = list(subjects) if round_number % 2 else list(reversed(subjects))
        for name in order:
            cost = subjects[name]()
            if round_number:
                costs[name].append(cost)
    return costs


def cpu_rates(costs: Mapping[str, Sequence[Cost]], work: Mapping[str, float]) -> dict[str, list[float]]:
    """Units of ``work`` that a call of each subject does, per CPU second."""
    return {name: [work[name] / each.cpu_s for each in costs[name]] for name in costs}


def seconds_table(costs: Mapping[str, Sequence[Cost]]) -> dict[str, dict[str, list[float]]]:
    """Least and median seconds of a call, of the processor and on the wall."""

    def both(seconds: list[float]) -> list[float]:
        return [float(f"{value:.4g}") for value in (min(seconds), statistics.median(seconds))]

    return {
        name: {"cpu_s": both([each.cpu_s for each in some]), "wall_s": both([each.wall_s for each in some])}
        for name, some in costs.items()
    }


def fresh_peak_mib(build: Callable[..., Callable[[], object]], *given: Any) -> float:
    """The memory that building a subject and calling it once takes in a fresh process beyond its imports."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_beyond_imports, (build, *given))


def _peak_beyond_imports(build: Callable[..., Callable[[], object]], *given: Any) -> float:
    imported = peak_mib()
    build(*given)()
    return peak_mib() - imported


def waited_for_core_s() -> float:
    """Seconds that this thread was ready to run while other programs had the core; 0 where the system does not say."""
    counters = Path("/proc/thread-self/schedstat")  # nanoseconds: on the core, ready but waiting; then time slices
    return int(counters.read_text().split()[1]) / 1e9 if counters.exists() else 0.0


def report(
    name: str, *, unit: str, samples: Samples, claims: Sequence[Claim], details: Mapping[str, Any] | None = None
) -> bool:
    """Print the table, write ``results/<name>.json``, and say whether every claim was met."""
    judged = [claim.judge(samples) for claim in claims]
    for subject, each in samples.items():
        middle, low, high = statistics.median(each), min(each), max(each)
        print(f"{subject:>36}: {middle:10.4g} {unit}  (from {low:.4g} to {high:.4g}, n = {len(each)})")
    for row in judged:
        print(f"{row['claim']:>36}: {row['value']:10.4g}  {row['target']}  {'met' if row['met'] else 'NOT MET'}")
    record = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "unit": unit,
        "claims": judged,
        "samples": {subject: [float(f"{value:.5g}") for value in each] for subject, each in samples.items()},
        "details": dict(details or {}),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return all(bool(row["met"]) for row in judged)


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
