"""Real experience to and from parquet, in RLlib's columnar schema, with a content hash and provenance.

Columns: ``eps_id`` int64, ``t`` int64, ``obs`` and ``new_obs`` (fixed-size list of O float32), ``actions`` (fixed-size
list of A float32, in [-1, 1]), ``rewards`` float32 (the task's own), ``terminateds``, ``truncateds`` bool; where the
task pays R rewards apart, also ``component_rewards`` (fixed-size list of R float32). RLlib's ``OfflineData`` reads the
file as it is. Shape legend: B transitions, O observation size, A action size, R component rewards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from proxygap.base.config import canonical_hash
from proxygap.base.errors import InvalidDataset
from proxygap.base.records import Transitions
from proxygap.collect.tables import first_line, read_table, write_table

SCHEMA_VERSION = "1"

_COLUMNS = {
    "eps_id": ("episode_B", pa.int64()),
    "t": ("step_B", pa.int64()),
    "obs": ("obs_BO", pa.float32()),
    "actions": ("action_BA", pa.float32()),
    "rewards": ("outcome_reward_B", pa.float32()),
    "new_obs": ("next_obs_BO", pa.float32()),
    "terminateds": ("terminated_B", pa.bool_()),
    "truncateds": ("truncated_B", pa.bool_()),
    "component_rewards": ("component_reward_BR", pa.float32()),
}
_COMPONENTS = "component_rewards"
_LISTS = ("obs", "actions", "new_obs", _COMPONENTS)
_KEYS = ("version", "content_hash", "provenance", "seal")
_PREFIX = "proxygap."


def write_episodes(path: str | Path, transitions: Transitions, provenance: Mapping[str, str]) -> str:
    """Write transitions to a parquet file, all of it or nothing.

    Args:
        path: file to create or replace, or its URI (see `proxygap.base.filesystems`); a local folder must exist.
        transitions: any number of rows, in the order they were lived.
        provenance: where they come from, e.g. experiment hash, commit, task, policy.

    Returns:
        The content hash (SHA-256, hex) that `read_episodes` will demand: `Transitions.content_hash`.

    Raises:
        StorageError: when the file cannot be written.
    """
    columns = transitions.columns()
    content_hash = transitions.content_hash
    facts = {"version": SCHEMA_VERSION, "content_hash": content_hash, "provenance": json.dumps(dict(provenance))}
    metadata = {_PREFIX + key: value for key, value in {**facts, "seal": canonical_hash(facts)}.items()}
    named = {
        name: _to_arrow(columns[ours], kind, listed=name in _LISTS)
        for name, (ours, kind) in _COLUMNS.items()
        if name != _COMPONENTS or columns[ours].shape[1]
    }
    table = pa.table(named).replace_schema_metadata(metadata)
    write_table(path, table, "episodes")
    return content_hash


def read_episodes(path: str | Path) -> tuple[Transitions, dict[str, str]]:
    """Read what `write_episodes` wrote, from a file or a URI.

    Returns:
        The transitions, equal to those written in every bit, and their provenance.

    Raises:
        InvalidDataset: naming the file (and the column) that is missing, truncated, altered or foreign.
        InvalidExperiment, StorageError: no filesystem takes the URI, or it cannot be reached.
    """
    source = str(path)
    try:
        table = read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _refusal(source, f"cannot be read as parquet: {first_line(error)}") from error
    facts = _facts(source, table)
    there = [name for name in _COLUMNS if name in table.column_names]
    found = {_COLUMNS[name][0]: _from_arrow(source, name, table[name]) for name in there}
    found.setdefault("component_reward_BR", np.empty((len(table), 0), np.float32))
    transitions = Transitions(**found)
    if transitions.content_hash != facts["content_hash"]:
        raise _refusal(source, "its rows do not match its content hash: it was altered after it was written")
    return transitions, dict(json.loads(facts["provenance"]))


def _to_arrow(column: np.ndarray[Any, Any], kind: Any, *, listed: bool) -> Any:
    flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=kind)
    return pa.FixedSizeListArray.from_arrays(flat, column.shape[1]) if listed else flat


def _from_arrow(source: str, name: str, column: Any) -> np.ndarray[Any, Any]:
    kind = _COLUMNS[name][1]
    rows = column.combine_chunks()
    width = rows.type.list_size if pa.types.is_fixed_size_list(rows.type) else 1
    expected = pa.list_(kind, width) if name in _LISTS else kind
    if rows.type != expected:
        raise _refusal(source, f"column {name!r} is {rows.type}, not {expected}")
    flat = rows.flatten() if name in _LISTS else rows
    if rows.null_count or flat.null_count:
        raise _refusal(source, f"column {name!r} has gaps")
    # A copy: arrays that borrow from arrow cannot be written to.
    values = np.array(flat.to_numpy(zero_copy_only=False))
    return values.reshape(-1, width) if name in _LISTS else values


def _facts(source: str, table: Any) -> dict[str, str]:
    """The file's own metadata, once it is known to be unaltered and to go with known columns."""
    raw = table.schema.metadata or {}
    facts = {key: raw.get(f"{_PREFIX}{key}".encode(), b"").decode(errors="replace") for key in _KEYS}
    if not all(facts.values()):
        raise _refusal(source, "was not written by ProxyGap: its schema metadata is missing")
    if facts["version"] != SCHEMA_VERSION:
        raise _refusal(source, f"has schema version {facts['version']}, and this ProxyGap reads {SCHEMA_VERSION}")
    if facts.pop("seal") != canonical_hash(facts):
        raise _refusal(source, "its metadata was altered after it was written")
    missing = [name for name in _COLUMNS if name not in table.column_names and name != _COMPONENTS]
    if missing:
        raise _refusal(source, f"column {missing[0]!r} is missing")
    return facts


def _refusal(source: str, problem: str) -> InvalidDataset:
    return InvalidDataset(
        problem, field=source, remedy="Fetch or write the file again; if it is foreign, convert it first"
    )
