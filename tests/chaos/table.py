"""The table that a chaos run prints: what was killed how often, and how long it took to deal with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

PROPERTY = "chaos"
"""Name of the property by which a test hands a row to whoever prints the table."""
HEAD = ("victim", "kills", "recovered", "min s", "median s", "max s", "completed", "equal")


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a run.

    Args:
        victim: what was killed.
        recovery_s: per kill, seconds until the run had dealt with it; not a number for one that was never noticed.
        completed: whether the run came to its end.
        equal: whether all values are those of the undisturbed run; None where its configuration does not promise it.
        clean_s: seconds of the undisturbed run, 0 where that is not known.
        run_s: seconds of this one.
    """

    victim: str
    recovery_s: tuple[float, ...]
    completed: bool
    equal: bool | None
    clean_s: float = 0.0
    run_s: float = 0.0

    def line(self) -> str:
        """As strict JSON."""
        told = {**asdict(self), "recovery_s": [round(s, 3) if math.isfinite(s) else None for s in self.recovery_s]}
        return json.dumps({**told, "clean_s": round(self.clean_s, 2), "run_s": round(self.run_s, 2)})


def row_of(line: str) -> Row:
    """What `Row.line` has written."""
    told: dict[str, Any] = json.loads(line)
    told["recovery_s"] = tuple(math.nan if s is None else s for s in told["recovery_s"])
    return Row(**told)


def lines_of(rows: Iterable[Row]) -> list[str]:
    """The table, a line per victim."""
    by_victim: dict[str, list[Row]] = {}
    for row in rows:
        by_victim.setdefault(row.victim, []).append(row)
    return [_aligned(HEAD), *(_aligned(_told(victim, group)) for victim, group in by_victim.items())]


def _told(victim: str, rows: Sequence[Row]) -> tuple[str, ...]:
    taken = [s for row in rows for s in row.recovery_s]
    dealt_with = [s for s in taken if math.isfinite(s)]
    spread = [f"{of(dealt_with):.2f}" if dealt_with else "-" for of in (min, median, max)]
    promised = [row.equal for row in rows if row.equal is not None]
    equal = f"{sum(promised)}/{len(promised)}" if promised else "-"
    completed = f"{sum(row.completed for row in rows)}/{len(rows)}"
    return (victim, str(len(taken)), str(len(dealt_with)), *spread, completed, equal)


def _aligned(cells: Sequence[str]) -> str:
    return f"{cells[0]:<24}" + "".join(f"{cell:>11}" for cell in cells[1:])
