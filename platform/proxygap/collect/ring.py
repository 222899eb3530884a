"""A ring of rows in columns: the mechanism of every replay.

Memory grows with use, not with capacity. Rows are addressed by age (0 is the oldest), so that what is sampled does not
depend on where in the ring a row happens to lie, before a checkpoint or after it.
Shape legend: B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import State
from proxygap.base.records import Int64

Columns = dict[str, NDArray[Any]]

_SMALLEST = 1024
"""Rows allocated at first."""


class Ring:
    """The newest ``capacity`` rows of some columns.

    Args:
        capacity: most rows kept; the oldest are dropped first.
        layout: column name to (type, shape of a row).
    """

    def __init__(self, capacity: int, layout: Mapping[str, tuple[type[np.generic], tuple[int, ...]]]) -> None:
        self._capacity, self._added, self._length, self._oldest = _positive(capacity), 0, 0, 0
        self._columns: Columns = {name: np.empty((0, *shape), kind) for name, (kind, shape) in layout.items()}

    def __len__(self) -> int:
        """Rows kept."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most rows kept."""
        return self._capacity

    @property
    def first_row(self) -> int:
        """How many rows were ever added before the oldest one kept."""
        return self._added - self._length

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append rows, oldest first. Raises ValueError for a column of another shape."""
        count = _rows_of(rows, self._columns)
        if not count:
            return
        kept = min(count, self._capacity)
        self._grow(min(self._length + kept, self._capacity))
        self._added += count
        slot = (self._oldest + self._length) % self._size
        split = min(kept, self._size - slot)
        for name, column in self._columns.items():
            newest = rows[name][count - kept :]
            column[slot : slot + split] = newest[:split]
            column[: kept - split] = newest[split:]
        dropped = max(self._length + kept - self._capacity, 0)
        self._length += kept - dropped
        self._oldest = (self._oldest + dropped) % self._size

    def take(self, age_B: Int64, names: tuple[str, ...] | None = None) -> Columns:
        """Copies of the rows of these ages (all columns, or the named ones)."""
        slot_B = (age_B + self._oldest) % self._size if self._oldest else age_B
        return {name: self._columns[name].take(slot_B, axis=0) for name in names or self._columns}

    def sample(self, count: int, rng: np.random.Generator) -> Int64:
        """Ages of ``count`` rows, uniform with replacement. Raises ValueError when there are none."""
        if not self._length:
            raise ValueError("an empty replay cannot be sampled")
        return rng.integers(0, self._length, size=count)

    def newest(self, count: int) -> Columns:
        """Copies of the newest rows (all, where there are fewer than ``count``), oldest first."""
        count = min(count, self._length)
        start = self._oldest + self._length - count
        stop, size = start + count, max(self._size, 1)
        if start >= size or stop <= size:
            return {name: column[start % size : start % size + count].copy() for name, column in self._columns.items()}
        return {name: np.concatenate([col[start:], col[: stop - size]]) for name, col in self._columns.items()}

    def resize(self, capacity: int) -> None:
        """Keep at most ``capacity`` rows from now on: the newest."""
        if _positive(capacity) != self._capacity:
            self._replace(self.newest(capacity), capacity)

    def state(self) -> State:
        """All rows in order of age, the capacity, and how many rows were ever added."""
        return State(self.newest(self._length), {"capacity": self._capacity, "added": self._added})

    def load_state(self, state: State) -> None:
        """Continue from a `state`. Raises `CheckpointRefused` where its columns are not those of this ring."""
        for name, column in self._columns.items():
            found = state.arrays.get(name)
            if found is None or found.dtype != column.dtype or found.shape[1:] != column.shape[1:]:
                raise CheckpointRefused(
                    f"a replay column of rows {column.shape[1:]} {column.dtype} is expected",
                    field=name,
                    value=None if found is None else f"{found.shape[1:]} {found.dtype}",
                    remedy="Resume with the experiment that wrote the checkpoint",
                )
        self._replace({name: state.arrays[name].copy() for name in self._columns}, int(state.structure["capacity"]))
        self._added = int(state.structure["added"])

    @property
    def _size(self) -> int:
        """Rows allocated; below the capacity the ring has not yet closed and rows lie in order of age from 0."""
        return len(next(iter(self._columns.values())))

    def _grow(self, needed: int) -> None:
        if needed <= self._size:
            return
        size = min(max(needed, 2 * self._size, _SMALLEST), self._capacity)
        for name, column in self._columns.items():
            self._columns[name] = np.empty((size, *column.shape[1:]), column.dtype)
            self._columns[name][: self._length] = column[: self._length]

    def _replace(self, rows: Columns, capacity: int) -> None:
        self._columns, self._capacity, self._oldest = rows, capacity, 0
        self._length = self._size


def _positive(capacity: int) -> int:
    if capacity < 1:
        raise ValueError(f"a replay keeps at least one row, not {capacity}")
    return capacity


def _rows_of(rows: Mapping[str, NDArray[Any]], columns: Columns) -> int:
    """How many rows were given; ValueError unless every column has as many, shaped like ours."""
    count = len(next(iter(rows.values())))
    for name, column in columns.items():
        if rows[name].shape != (count, *column.shape[1:]):
            raise ValueError(f"{name}: expected shape {(count, *column.shape[1:])}, not {rows[name].shape}")
    return count
