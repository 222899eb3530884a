"""Arrays to and from a safetensors file, hashed while they are written, with no copy in between.

The format (https://github.com/huggingface/safetensors#format): eight bytes of header length, a JSON header, then
the raw bytes of all arrays without holes. The `safetensors` package reads what is written here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from proxygap.base.errors import StorageError
from proxygap.base.protocols import Arrays

_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}


def write_tensors(path: Path, arrays: Arrays) -> tuple[int, str]:
    """Write and sync ``arrays``.

    Returns:
        Size in bytes and SHA-256 (hex) of the file.

    Raises:
        StorageError: a dtype that the format does not know (objects, text, complex), or a reserved key.
        OSError: not writable.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as hasher:  # both let go of the interpreter
        for chunk in _chunks(path.stem, arrays):
            hasher.submit(digest.update, chunk)
            view = memoryview(chunk)
            while view:
                view = view[file.write(view) :]
            size += len(chunk)
        os.fsync(file.fileno())
        hasher.shutdown()
    return size, digest.hexdigest()


def read_tensors(content: bytes) -> Arrays:
    """Arrays of a file's content, each one writable and of its own. Raises SafetensorError for foreign content."""
    return {key: np.array(array, order="C") for key, array in load(content).items()}


def _chunks(part: str, arrays: Arrays) -> Iterator[bytes | memoryview]:
    # Wide types first, then by name: every array starts at a multiple of its item size.
    ordered = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    native = {key: _native(part, key, arrays[key]) for key in ordered}
    entries, end = {}, 0
    for key, array in native.items():
        entries[key] = _entry(array, end)
        end += array.nbytes
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    yield len(head).to_bytes(8, "little") + head
    for array in native.values():
        if array.nbytes:
            yield array.reshape(-1).view(np.uint8).data


def _entry(array: NDArray[Any], start: int) -> dict[str, Any]:
    offsets = [start, start + array.nbytes]
    return {"dtype": _NAMES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}


def _native(part: str, key: str, array: NDArray[Any]) -> NDArray[Any]:
    """The same values, contiguous and little-endian, of the same shape."""
    if array.dtype.name not in _NAMES:
        remedy = "Store it as numbers, or move it to the structure of the state"
        raise StorageError(
            "arrays of this type are not saved", field=f"{part}/{key}", value=str(array.dtype), remedy=remedy
        )
    if key == "__metadata__":
        raise StorageError("this key is reserved by the file format", field=f"{part}/{key}", remedy="Rename the array")
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
