"""Parquet files of datasets, by path or by URI of any pyarrow filesystem; whole or absent, every page checked."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxygap.base.errors import StorageError
from proxygap.base.files import whole
from proxygap.base.filesystems import is_uri, place_of


def read_table(path: str | Path) -> Any:
    """The arrow table of a parquet file.

    Raises:
        OSError, ArrowException: the file is missing or damaged.
        InvalidExperiment, StorageError: no filesystem takes the URI, or it cannot be reached.
    """
    if not is_uri(path):
        with Path(path).open("rb") as file:
            return pq.read_table(file, page_checksum_verification=True)
    return pq.read_table(pa.BufferReader(_content(path)), page_checksum_verification=True)


def table_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes. Raises OSError, InvalidExperiment and StorageError as `read_table`."""
    if is_uri(path):
        return hashlib.sha256(_content(path)).hexdigest()
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(uri: str | Path) -> bytes:
    content = place_of(str(uri), "dataset").read()
    if content is None:
        raise FileNotFoundError("there is no such file")
    return content


def write_table(path: str | Path, table: Any, what: str) -> None:
    """Create or replace a parquet file, all of it or nothing; the folder of a local one must exist.

    Raises:
        StorageError: the file cannot be written; it says ``what`` was to be.
        InvalidExperiment: no filesystem takes the URI.
    """
    try:
        if not is_uri(path):
            with whole(Path(path)) as file:
                pq.write_table(table, file, write_page_checksum=True)
            return
        sink = io.BytesIO()
        pq.write_table(table, sink, write_page_checksum=True)
        place_of(str(path), "dataset").write(sink.getvalue())
    except StorageError as error:
        raise StorageError(f"cannot write {what}: {error.problem}", field=error.field, remedy=error.remedy) from error
    except OSError as error:
        remedy = "Give a writable folder with free space"
        raise StorageError(f"cannot write {what}: {error}", field=str(path), remedy=remedy) from error


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]
