"""Files of any filesystem that pyarrow knows: read, written whole or not at all, copied up and down.

On disks a write goes through a draft that is synced and renamed; on S3 and GCS an object appears when its last byte is
there. `proxygap.base.filesystems` opens a `Place` by its URI.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from proxygap.base.errors import StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_CHUNK, _PATIENCE = 16 << 20, 8
_BY_OBJECT = ("s3", "gcs", "abfs")
"""Filesystems without renames, whose objects are replaced whole."""
_REMEDIES = {
    "NO_SUCH_BUCKET": "Create the bucket, or name another",
    "ACCESS_DENIED": "Set credentials in the environment that may read and write there",
    "INVALID_ACCESS_KEY_ID": "Set credentials in the environment that may read and write there",
    "SIGNATURE_DOES_NOT_MATCH": "Set credentials in the environment that may read and write there",
    "NETWORK_CONNECTION": "Check that the endpoint is up and reachable from this node",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder of a filesystem. ``uri`` opens it again and holds no secret."""

    filesystem: FileSystem
    path: str
    uri: str

    @property
    def local(self) -> bool:
        """Whether it is a path of this node, network mounts included."""
        return str(self.filesystem.type_name) == "local"

    @property
    def shown(self) -> str:
        """The URI as errors show it: without what follows the path."""
        return self.uri.partition("?")[0]

    def below(self, *names: str) -> Place:
        """A place below this one. Raises StorageError for names that lead out of it."""
        for name in names:
            check_name(name, self.shown)
        base, mark, query = self.uri.partition("?")
        path = "/".join([self.path.rstrip("/"), *names])
        return Place(self.filesystem, path, "/".join([base.rstrip("/"), *map(quote, names)]) + mark + query)

    def read(self) -> bytes | None:
        """All of a file; None where there is none. Raises StorageError."""
        sink = io.BytesIO()
        return sink.getvalue() if self._copy(sink) else None

    def write(self, content: bytes) -> None:
        """Create or replace a file, whole or not at all; folders above it are made. Raises StorageError."""
        with self.errors(), self._replaced() as sink:
            sink.write(content)

    def upload(self, source: Path) -> str:
        """Create or replace this file by a local one, whole or not at all.

        Returns:
            SHA-256 (hex) of what was written.

        Raises:
            StorageError: this place cannot be written.
            OSError: the source cannot be read; then this file is as it was, or absent.
        """
        with source.open("rb") as file:
            content = file.read(_CHUNK)
            digest = hashlib.sha256(content)
            with self.errors(), self._replaced() as sink:
                while content:
                    sink.write(content)
                    with _source_errors():
                        content = file.read(_CHUNK)
                    digest.update(content)
        return digest.hexdigest()

    def download(self, target: Path) -> str | None:
        """Create or replace a local file by this one, whole or not at all; its folder must exist.

        Returns:
            SHA-256 (hex) of what was read; None where this file does not exist.

        Raises:
            StorageError: this file cannot be read.
            OSError: the target cannot be written.
        """
        with contextlib.suppress(_Absent), whole(target) as sink:
            digest = self._copy(sink)
            if digest is None:
                raise _Absent  # so that the target stays as it is
            return digest
        return None

    def _copy(self, sink: BinaryIO) -> str | None:
        """Write all of this file to the sink; its SHA-256 (hex), None where it does not exist. Raises StorageError."""
        for _ in range(_PATIENCE):
            sink.seek(0)
            sink.truncate()
            with self._opened() as file:
                if file is None:
                    return None
                tag = _tag(file)
                digest = self._drained(file, sink)
            if tag is None or self._tag_now() == tag:
                if isinstance(digest, StorageError):
                    raise digest
                return digest
        raise StorageError("it was replaced again and again while it was read", field=self.shown, remedy="Try again")

    def _drained(self, file: Any, sink: BinaryIO) -> str | StorageError:
        """Hash of what was copied, or the trouble, which may come of reading an object that is no more."""
        digest = hashlib.sha256()
        try:
            while content := self._chunk(file):
                digest.update(content)
                sink.write(content)
        except StorageError as error:
            return error
        return digest.hexdigest()

    def _tag_now(self) -> object:
        with self._opened() as file:
            return None if file is None else _tag(file)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with self.errors():
            try:
                file = Path(self.path).open("rb") if self.local else self.filesystem.open_input_file(self.path)  # noqa: SIM115
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                file = None
        with file or contextlib.nullcontext():
            yield file

    def _chunk(self, file: Any) -> bytes:
        with self.errors():
            return bytes(file.read(_CHUNK))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn trouble with this place into a StorageError that names it and the remedy."""
        from pyarrow import ArrowException

        try:
            yield
        except _SourceError as error:
            raise error.cause from error
        except (OSError, ArrowException) as error:
            problem = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
            raise StorageError(problem, field=self.shown, remedy=remedy_of(error, problem)) from error

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[Any]:
        """A sink whose bytes become this file when the block ends, and do not when it fails."""
        if self.local:
            _make_folder(Path(self.path).parent)
            with whole(Path(self.path)) as sink:
                yield sink
            return
        if self.filesystem.type_name not in _BY_OBJECT:
            with self._renamed() as sink:
                yield sink
            return
        sink = self.filesystem.open_output_stream(self.path)
        try:
            yield sink
        except _SourceError:  # closing is what makes an object appear: take the half one away again
            sink.close()
            self.filesystem.delete_file(self.path)
            raise
        sink.close()

    @contextlib.contextmanager
    def _renamed(self) -> Iterator[Any]:
        """As `_replaced`, where files grow in sight of all and renames replace nothing (HDFS)."""
        folder, _, name = self.path.rpartition("/")
        draft = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
        self.filesystem.create_dir(folder, recursive=True)
        try:
            with self.filesystem.open_output_stream(draft) as sink:
                yield sink
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path)
            self.filesystem.move(draft, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(draft)
            raise


class _Absent(Exception):
    """There is nothing to read."""


class _SourceError(Exception):
    """The local side of an upload failed; nothing is wrong with the place."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _tag(file: Any) -> object:
    """What tells two objects of one name apart, since one is read in several requests; None for files of disks."""
    metadata: dict[str, object] = (file.metadata() if hasattr(file, "metadata") else None) or {}
    return metadata.get("ETag") or metadata.get("etag")


@contextlib.contextmanager
def _source_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _SourceError(error) from error


@contextlib.contextmanager
def whole(target: Path) -> Iterator[BinaryIO]:
    """A local file that takes the place of ``target`` once it is written and synced. Raises OSError."""
    draft = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
        _sync_folder(target.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    """A folder that outlives a power cut, as files in it do."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def check_name(name: str, place: str) -> str:
    """The name of a file or folder below ``place``. Raises StorageError for one that could lead elsewhere."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or not _is_text(name) or "\\" in name:
        remedy = "Use relative names without .., backslashes and control characters"
        raise StorageError("not the name of anything below a folder", field=place, value=name, remedy=remedy)
    return name


def _is_text(name: str) -> bool:
    return all(letter.isprintable() or letter == " " for letter in name)


def remedy_of(error: BaseException, problem: str) -> str:
    """What a user can do about an error of a filesystem."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "Free disk space and resume"
    found = (remedy for text, remedy in _REMEDIES.items() if text in problem)
    return next(found, "Check that it exists and may be read and written from this node")
