"""Checkpoints: complete, atomic, hashed, versioned, and free of pickle.

::

    checkpoints/step-0000001234/
      manifest.json          clocks, identity, structure of every part, SHA-256 of every file and of itself
      <part>.safetensors     arrays of one part

A checkpoint is written aside, synced, and renamed into place. One that does not verify is refused by name, and
the newest that does is loaded instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.config import canonical_hash
from proxygap.base.errors import CheckpointRefused, StorageError
from proxygap.base.protocols import State
from proxygap.record.folder import fsync_folder, storage_errors, write_atomically
from proxygap.record.tensors import read_tensors, write_tensors

SCHEMA = 1
_NAME = re.compile(r"step-(\d{10,})(?:\.(\d+))?")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A checkpoint that was not loaded, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Restored:
    """What a checkpoint held, and which newer ones were refused on the way to it."""

    parts: dict[str, State]
    clocks: Clocks
    refusals: tuple[Refusal, ...]
    path: Path


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they live.
        keep: newest checkpoints kept, at least one.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = max(1, keep)
        self._refused: set[str] = set()

    def save(self, parts: Mapping[str, State], clocks: Clocks, identity: str) -> Path:
        """Write a checkpoint of all parts, then drop those beyond ``keep``.

        Args:
            parts: part name to state; tuples in a structure come back as lists.
            clocks: the clocks of the state.
            identity: whose state it is (the run key); another identity is refused on loading.

        Raises:
            StorageError: the disk is full or not writable (earlier checkpoints are untouched), or a state cannot be
                represented, its place named.
        """
        draft = self._folder / f".draft-{os.getpid()}"
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".draft-*"):
                shutil.rmtree(leftover)
            draft.mkdir()
            try:
                self._fill(draft, parts, clocks, identity)
                fsync_folder(draft)
                final = self._folder / self._free_name(clocks.real_step)
                draft.replace(final)
                fsync_folder(self._folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            self._drop_old(final, identity)
        return final

    def load_newest(self, identity: str) -> Restored | None:
        """The newest checkpoint that verifies; None where none was ever written.

        Raises:
            CheckpointRefused: there are checkpoints, and none of them verifies; each is named with its reason.
        """
        refusals: list[Refusal] = []
        for path in self._newest_first():
            try:
                parts, clocks = _load(path, identity)
            except (CheckpointRefused, OSError) as error:
                reason = error.problem if isinstance(error, CheckpointRefused) else str(error)
                refusals.append(Refusal(path.name, reason))
                self._refused.add(path.name)
            else:
                return Restored(parts, clocks, tuple(refusals), path)
        if refusals:
            raise CheckpointRefused(
                "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refusals),
                field=str(self._folder),
                remedy="Restore one of them from a copy, or move this folder away to start from the beginning",
            )
        return None

    def _fill(self, draft: Path, parts: Mapping[str, State], clocks: Clocks, identity: str) -> None:
        entries = {}
        for name, state in parts.items():
            if not _PART.fullmatch(name):
                raise ValueError(f"a part's name names its file; {name!r} cannot")
            size, digest = write_tensors(draft / f"{name}.safetensors", state.arrays)
            structure = _encode(state.structure, name)
            entries[name] = {"bytes": size, "sha256": digest, "arrays": list(state.arrays), "structure": structure}
        manifest = {
            "schema": SCHEMA,
            "proxygap": version("proxygap"),
            "identity": identity,
            "clocks": clocks.as_dict(),
            "parts": entries,
        }
        sealed = {**manifest, "sha256": canonical_hash(manifest)}
        write_atomically(draft / "manifest.json", json.dumps(sealed, allow_nan=False).encode())  # keeps key order

    def _free_name(self, real_step: int) -> str:
        """A second checkpoint of the same step stands beside the first, so that no moment is without one."""
        taken = [attempt for step, attempt in map(_order, self._newest_first()) if step == real_step]
        return f"step-{real_step:010d}" + (f".{max(taken) + 1}" if taken else "")

    def _newest_first(self) -> list[Path]:
        found = [path for path in self._folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_order, reverse=True)

    def _drop_old(self, newest: Path, identity: str) -> None:
        kept = 0
        for path in self._newest_first():
            if _order(path) > _order(newest):
                continue  # refused on loading, and evidence until the run has passed it
            if kept >= self._keep:
                shutil.rmtree(path)
            elif path.name not in self._refused and _looks_whole(path, identity):
                kept += 1


def _order(path: Path) -> tuple[int, int]:
    """Real step, then attempt at it."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _looks_whole(path: Path, identity: str) -> bool:
    """Whether a checkpoint has a sound manifest and files of the right size; the bytes are not read."""
    try:
        manifest = _manifest(path, identity)
        return all((path / f"{name}.safetensors").stat().st_size == p["bytes"] for name, p in manifest["parts"].items())
    except (CheckpointRefused, OSError):
        return False


def _manifest(path: Path, identity: str) -> dict[str, Any]:
    """The verified manifest. Raises CheckpointRefused, with a reason in words."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        stated = manifest.pop("sha256")
        schema, owner = manifest["schema"], manifest["identity"]
        actual = canonical_hash(manifest)
    except FileNotFoundError as error:
        raise CheckpointRefused("it has no manifest") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointRefused(f"its manifest is damaged ({type(error).__name__})") from error
    if schema != SCHEMA:
        raise CheckpointRefused(
            f"it has schema {schema} (ProxyGap {manifest.get('proxygap')}), this version reads {SCHEMA}"
        )
    if stated != actual:
        raise CheckpointRefused("its manifest was altered")
    if owner != identity:
        raise CheckpointRefused(f"it belongs to another run ({str(owner)[:16]})")
    return dict(manifest)


def _load(path: Path, identity: str) -> tuple[dict[str, State], Clocks]:
    manifest = _manifest(path, identity)
    parts = {}
    for name, entry in manifest["parts"].items():
        file = path / f"{name}.safetensors"
        if not file.exists():
            raise CheckpointRefused(f"{file.name} is missing")
        content = file.read_bytes()
        if len(content) != entry["bytes"]:
            raise CheckpointRefused(f"{file.name} has {len(content)} bytes of {entry['bytes']}")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointRefused(f"{file.name} was altered")
        arrays = read_tensors(content)
        parts[name] = State({key: arrays[key] for key in entry["arrays"]}, _decode(entry["structure"]))
    return parts, Clocks(**manifest["clocks"])


def _encode(value: Any, place: str) -> Any:
    """A structure as strict JSON. Non-finite floats become ``{"$float": ...}``; keys that begin with $ get another."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise StorageError("keys of a structure are text", field=place, value=list(value)[:5])
        return {f"${k}" if k.startswith("$") else k: _encode(v, f"{place}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if value is None or isinstance(value, (str, int)):
        return value
    raise StorageError("not representable as JSON", field=place, value=type(value).__name__, remedy="Use plain data")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        return {key.removeprefix("$"): _decode(item) for key, item in value.items()}
    return value
