"""How the benchmarks measure: interleaved repeats, CPU time beside wall clock, ratios kept as JSON."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Ratio:
    """The claim that ``ours`` divided by ``peer`` (medians of rates) is at least, or at most, a number."""

    ours: str
    peer: str
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, rates: Mapping[str, Sequence[float]]) -> dict[str, object]:
        value = statistics.median(rates[self.ours]) / statistics.median(rates[self.peer])
        met = (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)
        return {
            "ratio": f"{self.ours} / {self.peer}",
            "value": round(value, 3),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": met,
        }


def interleaved(subjects: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Process CPU seconds of each subject, one after the other in every round, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for round_number in range(repeats + 1):
        for name, subject in subjects.items():
            started = time.process_time()
            subject()
            if round_number:
                times[name].append(time.process_time() - started)
    return times


def report(name: str, *, unit: str, rates: Mapping[str, Sequence[float]], ratios: Sequence[Ratio]) -> bool:
    """Print the table, write ``results/<name>.json``, and say whether every ratio was met."""
    judged = [ratio.judge(rates) for ratio in ratios]
    for subject, each in rates.items():
        print(f"{subject:>24}: median {statistics.median(each):10.2f} {unit}  (best {max(each):.2f}, n = {len(each)})")
    for row in judged:
        bound = f">= {row['at_least']}" if row["at_least"] is not None else f"<= {row['at_most']}"
        print(f"{row['ratio']:>24}: {row['value']}  ({bound}: {'met' if row['met'] else 'NOT MET'})")
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "unit": unit,
        "rates": {subject: list(each) for subject, each in rates.items()},
        "ratios": judged,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return all(bool(row["met"]) for row in judged)
