"""Local files that an experiment names, found and given a place below the folder that travels. Loads no torch, no Ray.

A file's place carries the hash of its content, so the same content makes the same experiment wherever it is submitted
from. Files below a cluster's ``shared_folders`` and URIs stay as they are named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxygap.base.errors import InvalidExperiment
from proxygap.record.provenance import file_hash

FIELDS: Final = frozenset({("labels", "file"), ("policy", "directory"), ("proxy", "network", "folder")})
"""Fields that name a file or a folder on the machine that reads them."""
LIMIT: Final = 100_000_000
"""Bytes that one of them may have; a job's package passes through the memory of the head."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file here, and its name in what travels."""

    source: Path
    name: str


def pack_files(tree: Mapping[str, Any], shared: tuple[str, ...] = ()) -> tuple[dict[str, Any], tuple[LocalFile, ...]]:
    """The tree with each local file renamed to its place in what travels, and these files.

    Args:
        tree: an experiment file, with its ``variants`` or its section ``sweep``.
        shared: folders that the nodes have as well.

    Raises:
        InvalidExperiment: a file that is missing, unreadable, or larger than `LIMIT`.
    """
    packer = _Packer(tuple(map(Path, shared)))
    packed = {key: packer.section(key, value) for key, value in tree.items()}
    return packed, tuple(packer.files[name] for name in sorted(packer.files))


def names_elsewhere(tree: Mapping[str, Any]) -> bool:
    """Whether a resolved experiment names a file that is not on this machine."""
    named = [_at(tree, where) for where in FIELDS]
    return any("://" in name or not Path(name).exists() for name in named if isinstance(name, str))


def _at(tree: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


class _Packer:
    def __init__(self, shared: tuple[Path, ...]) -> None:
        self._shared = shared
        self.files: dict[str, LocalFile] = {}

    def section(self, key: str, value: Any) -> Any:
        if key == "variants" and isinstance(value, dict):
            return {name: self._rename(changes, ()) for name, changes in value.items()}
        if key == "sweep" and isinstance(value, dict) and isinstance(space := value.get("space"), dict):
            return {**value, "space": {name: self._axis(str(name), axis) for name, axis in space.items()}}
        return self._rename(value, (key,))

    def _axis(self, name: str, axis: Any) -> Any:
        if not isinstance(axis, dict) or "values" not in axis:
            return axis
        return {**axis, "values": self._rename(axis["values"], tuple(name.split(".")))}

    def _rename(self, node: Any, where: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {key: self._rename(value, (*where, str(key))) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self._rename(item, where) for item in node]
        return self._pack(node, ".".join(where)) if isinstance(node, str) and where in FIELDS else node

    def _pack(self, named: str, field: str) -> str:
        path = Path(named)
        if "://" in named or any(path.is_relative_to(folder) for folder in self._shared):
            return named
        try:
            parts = _parts(path, field)
            place = f"files/{_content_hash(parts)[:16]}/{path.resolve().name}"
        except OSError as error:
            raise _refused(field, named, f"cannot be read here ({error.strerror})", "Check the path") from error
        self.files |= {name: LocalFile(source, name) for relative, source in parts if (name := place + relative)}
        return place


def _parts(path: Path, field: str) -> list[tuple[str, Path]]:
    """The file itself under the empty name, or all files below a folder by their relative names with a slash."""
    if path.is_dir():
        parts = [(f"/{each.relative_to(path).as_posix()}", each) for each in sorted(_below(path))]
    elif path.is_file():
        parts = [("", path)]
    else:
        remedy = "Check the path; what is on the nodes already is named by a URI, or lies below shared_folders"
        raise _refused(field, str(path), "there is no such file or folder here to send along", remedy)
    size = sum(each.stat().st_size for _, each in parts)
    if size > LIMIT:
        problem = f"has {size / 1e6:.0f} MB, and at most {LIMIT // 1_000_000} MB travel with a job"
        remedy = "Put it where all nodes read it, and name it by a URI or below the cluster's shared_folders"
        raise _refused(field, str(path), problem, remedy)
    return parts


def _below(folder: Path) -> Iterator[Path]:
    return (each for each in folder.rglob("*") if each.is_file() and ".git" not in each.relative_to(folder).parts)


def _content_hash(parts: list[tuple[str, Path]]) -> str:
    if len(parts) == 1 and not parts[0][0]:
        return file_hash(parts[0][1])
    listing = "\n".join(f"{file_hash(source)} {name}" for name, source in parts)
    return hashlib.sha256(listing.encode()).hexdigest()


def _refused(field: str, value: str, problem: str, remedy: str) -> InvalidExperiment:
    return InvalidExperiment(problem, field=field, value=value, remedy=remedy)
