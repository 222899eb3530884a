"""Labeled pairs to and from parquet: a schema, a content hash, provenance, and every row checked before it is used.

A file that ProxyGap wrote has one row per pair and, for each side (``chosen_``, ``rejected_``), the columns ``prompt``
int64, ``prompt_token`` and ``token`` (lists of int64; the answer without its padding, the end token included) and
``feature`` (list of steps, each a list of float32), as far as the items have them; beside them ``tie`` bool,
``strength`` float32, ``annotator`` int64, ``chosen_rating`` and ``rejected_rating`` float32 (NaN: not rated).

The field's plain columns are read as well: ``prompt``, ``chosen``, ``rejected`` as lists of tokens, or as text where a
tokenizer is given; the columns ``tie`` to ``rejected_rating`` may stand beside them.
Shape legend: N pairs, P prompts of a task, L prompt tokens, T answer tokens, V vocabulary, H steps, F features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from proxygap.base.config import canonical_hash
from proxygap.base.errors import InvalidDataset
from proxygap.base.language import Items, ItemSpec, Preferences
from proxygap.base.records import Bool, Int64
from proxygap.collect.labels.rows import LABELS, Sheet, Tokenize, found_in, items_of, labels_of, plain_items_of
from proxygap.collect.tables import first_line, read_table, write_table

SCHEMA_VERSION = "1"
Repeats = Literal["refuse", "keep"]

_PREFIX = "proxygap."
_SIDES = ("chosen", "rejected")
_AGAIN = "Fetch or write the file again"
_KEYS = ("kind", "version", "content_hash", "provenance", "seal")


def write_preferences(path: str | Path, preferences: Preferences, provenance: Mapping[str, str]) -> str:
    """Write labeled pairs to a parquet file, all of it or nothing.

    Args:
        path: file to create or replace, or its URI (see `proxygap.base.filesystems`); a local folder must exist.
        preferences: any number of pairs. Padding of answers is not written.
        provenance: where they come from, e.g. experiment hash, commit, task, seed of the labels.

    Returns:
        The content hash (SHA-256, hex) over all columns, which `read_preferences` will demand.

    Raises:
        StorageError: when the file cannot be written.
    """
    columns = {
        f"{side}_{name}": column
        for side in _SIDES
        for name, column in _item_columns(getattr(preferences, side)).items()
    }
    columns |= {name: pa.array(getattr(preferences, f"{name}_N"), kind) for name, kind in LABELS.items()}
    table = pa.table(columns)
    facts = {
        "kind": "preferences",
        "version": SCHEMA_VERSION,
        "content_hash": _content_hash(table),
        "provenance": json.dumps(dict(provenance)),
    }
    sealed = {_PREFIX + key: value for key, value in {**facts, "seal": canonical_hash(facts)}.items()}
    write_table(path, table.replace_schema_metadata(sealed), "preferences")
    return facts["content_hash"]


def read_preferences(
    path: str | Path,
    spec: ItemSpec,
    *,
    prompts: Int64 | None = None,
    tokenize: Tokenize | None = None,
    on_duplicate: Repeats = "refuse",
    on_contradiction: Repeats = "refuse",
) -> Preferences:
    """Read labeled pairs, once every row of them is known to be usable.

    Args:
        path: a file of `write_preferences`, or one with the field's plain columns; its path or URI.
        spec: the sizes of the task's items; answers are padded to ``max_tokens``, prompts to ``prompt_length``.
        prompts: the task's prompt table (P, L). Where given, every prompt must be one of its rows; plain columns
            have no ``prompt`` column (the row of the table) without it.
        tokenize: turns a text into tokens, for plain columns of text: a prompt, or an answer with its end token.
        on_duplicate: whether to refuse or keep a pair that one annotator labeled twice, in the same way.
        on_contradiction: whether to refuse or keep a pair that one annotator labeled in opposite ways, or an item
            preferred to itself. Annotators who disagree with each other are never refused.

    Returns:
        The pairs, in the order of the file.

    Raises:
        InvalidDataset: naming the file, and the row (counted from 0) and column that cannot be used.
        InvalidExperiment, StorageError: no filesystem takes the URI, or it cannot be reached.
    """
    sheet = _opened(path)
    if _is_ours(sheet):
        _check_seal(sheet)
        chosen, rejected = (items_of(sheet, side, spec) for side in _SIDES)
    else:
        chosen, rejected = plain_items_of(sheet, spec, tokenize)
    if spec.features and chosen["feature"].shape != rejected["feature"].shape:
        lengths = (chosen["feature"].shape[1], rejected["feature"].shape[1])
        raise sheet.refusal("chosen and rejected segments differ in length", "Cut them to one", value=lengths)
    if prompts is not None and spec.max_tokens:
        chosen, rejected = found_in(prompts, sheet, chosen, "chosen"), found_in(prompts, sheet, rejected, "rejected")
    preferences = Preferences(chosen, rejected, **labels_of(sheet))
    _check_repeats(sheet, preferences, on_duplicate, on_contradiction)
    return preferences


def read_provenance(path: str | Path) -> dict[str, str]:
    """Where the pairs of a file come from; empty for plain columns. Raises `InvalidDataset` like `read_preferences`."""
    sheet = _opened(path)
    return dict(json.loads(_check_seal(sheet)["provenance"])) if _is_ours(sheet) else {}


def _item_columns(items: Items) -> dict[str, Any]:
    """One side's columns as arrow arrays; lists are cut from the flat values, row by row."""
    columns: dict[str, Any] = {}
    if "prompt" in items:
        columns["prompt"] = pa.array(items["prompt"], pa.int64())
    if "prompt_token" in items:
        columns["prompt_token"] = _lists(items["prompt_token"], np.ones(items["prompt_token"].shape, bool))
    if "token" in items:
        columns["token"] = _lists(items["token"], np.arange(items["token"].shape[1]) < items["length"][:, None])
    if "feature" in items:
        rows, steps, features = items["feature"].shape
        flat = pa.array(np.ascontiguousarray(items["feature"], np.float32).reshape(-1))
        inner = pa.ListArray.from_arrays(pa.array(np.arange(rows * steps + 1, dtype=np.int32) * features), flat)
        columns["feature"] = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * steps), inner)
    return columns


def _lists(values_NT: Int64, mask_NT: Bool) -> Any:
    offsets = np.concatenate([[0], mask_NT.sum(axis=1).cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_NT[mask_NT], pa.int64()))


def _opened(path: str | Path) -> Sheet:
    source = str(path)
    try:
        table = read_table(path)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        problem = f"cannot be read as parquet: {first_line(error)}"
        raise Sheet(source, None).refusal(problem, _AGAIN) from error
    return Sheet(source, table)


def _is_ours(sheet: Sheet) -> bool:
    return any(key.startswith(_PREFIX.encode()) for key in sheet.table.schema.metadata or {})


def _check_seal(sheet: Sheet) -> dict[str, str]:
    """The file's own metadata, once it and the columns are known to be unaltered."""
    raw = sheet.table.schema.metadata
    facts = {key: raw.get(f"{_PREFIX}{key}".encode(), b"").decode(errors="replace") for key in _KEYS}
    if facts["kind"] != "preferences":
        raise sheet.refusal("holds something else than preferences", "Give a file of labeled pairs")
    if facts["version"] != SCHEMA_VERSION:
        raise sheet.refusal(
            f"has schema version {facts['version']}, and this ProxyGap reads {SCHEMA_VERSION}", "Update ProxyGap"
        )
    if facts.pop("seal") != canonical_hash(facts):
        raise sheet.refusal("its metadata was altered after it was written", _AGAIN)
    if facts["content_hash"] != _content_hash(sheet.table):
        raise sheet.refusal("its rows do not match its content hash: it was altered after it was written", _AGAIN)
    return facts


def _content_hash(table: Any) -> str:
    """SHA-256 (hex) over names, types, list lengths and values of all columns; empty for kinds we do not write."""
    digest = hashlib.sha256(str(table.num_rows).encode())
    for name in table.column_names:
        column = table[name].combine_chunks()
        digest.update(f"{name}:{column.null_count}".encode())
        while pa.types.is_list(column.type):  # the name that a file gives to the items of a list is of no account
            digest.update(b"list" + column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if not pa.types.is_primitive(column.type):
            return ""
        digest.update(f"{column.type}".encode() + column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def _check_repeats(sheet: Sheet, data: Preferences, on_duplicate: Repeats, on_contradiction: Repeats) -> None:
    """Refuse what one annotator cannot have meant; see `read_preferences`."""
    chosen, rejected = _keys(data.chosen), _keys(data.rejected)
    seen: dict[tuple[int, bytes, bytes], tuple[int, str]] = {}
    for row, (annotator, tie) in enumerate(zip(data.annotator_N.tolist(), data.tie_N.tolist(), strict=True)):
        first, second = sorted((chosen[row], rejected[row]))
        verdict = "tie" if tie else "first" if chosen[row] == first else "second"
        if on_contradiction == "refuse" and first == second and not tie:
            raise _repeat(sheet, row, annotator, "an item is preferred to itself", "contradiction")
        earlier, before = seen.setdefault((annotator, first, second), (row, verdict))
        if earlier == row:
            continue
        if before == verdict and on_duplicate == "refuse":
            raise _repeat(sheet, row, annotator, f"the pair of row {earlier} again, labeled alike", "duplicate")
        if before != verdict and on_contradiction == "refuse":
            raise _repeat(sheet, row, annotator, f"the pair of row {earlier} again, labeled otherwise", "contradiction")


def _repeat(sheet: Sheet, row: int, annotator: int, problem: str, kind: str) -> InvalidDataset:
    remedy = f"Remove one of them, number annotators apart, or read with on_{kind}='keep' where it is meant"
    return sheet.refusal(f"{problem}, by one annotator", remedy, column="annotator", row=row, value=annotator)


def _keys(items: Items) -> list[bytes]:
    """What makes an item that item: prompt, answer without its padding, features."""
    columns = [items[name] for name in ("prompt_token", "token", "length", "feature") if name in items]
    return [b"".join(row.tobytes() for row in rows) for rows in zip(*columns, strict=True)]
