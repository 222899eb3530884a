"""Where copies of run folders are kept that all nodes reach: a folder of any filesystem that pyarrow knows.

What a listing returns is not trusted: a name that leads out of its folder is refused, whichever way a file goes.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proxygap.base.errors import StorageError
from proxygap.base.files import Place, check_name
from proxygap.base.filesystems import place_of
from proxygap.record.folder import storage_errors


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a storage."""

    size: int
    mtime_ns: int


class Storage:
    """A folder of a filesystem; it need not exist. Writes are whole or absent (see `proxygap.base.files`).

    Args:
        uri: a URI of any pyarrow filesystem, or an absolute path; credentials come from the environment.

    Raises:
        InvalidExperiment: no filesystem takes the URI, or it carries credentials.
    """

    def __init__(self, uri: str) -> None:
        self._place, self._root = place_of(uri), True

    def __reduce__(self) -> tuple[object, ...]:
        """By URI, so that another process takes the credentials of its own environment."""
        return _opened, (self.uri, self._root)

    @property
    def uri(self) -> str:
        """Opens the same folder elsewhere; without secrets."""
        return self._place.uri

    @property
    def shown(self) -> str:
        """The URI as errors show it, without its options."""
        return self._place.shown

    @property
    def local(self) -> bool:
        """Whether it is a path of this node, network mounts included."""
        return self._place.local

    def below(self, *names: str) -> Storage:
        """A folder below this one. Raises StorageError for names that lead out of it."""
        return _at(self._place.below(*names), root=self._root and not names)

    def read(self, name: str) -> bytes | None:
        """All of a file, None where there is none. Raises StorageError."""
        return self._place.below(name).read()

    def write(self, name: str, content: bytes) -> None:
        """Create or replace a file. Raises StorageError."""
        self._place.below(name).write(content)

    def upload(self, local: Path, name: str) -> str:
        """Create or replace a file by a local one.

        Returns:
            SHA-256 (hex) of what was written.

        Raises:
            StorageError: the storage cannot be written.
            OSError: the local file cannot be read.
        """
        return self._place.below(name).upload(local)

    def download(self, name: str, local: Path) -> str | None:
        """Create or replace a local file, and the folders above it, by one of the storage.

        Returns:
            SHA-256 (hex) of what was read; None where there is no such file.

        Raises:
            StorageError: the storage cannot be read, or the local file not written.
        """
        with storage_errors(local):
            local.parent.mkdir(parents=True, exist_ok=True)
            return self._place.below(name).download(local)

    def entries(self) -> dict[str, Entry]:
        """All files below this folder, by their names relative to it; none where it does not exist.

        Raises:
            StorageError: it cannot be listed, or a name leads out of it.
        """
        return {
            self._relative(info.path): Entry(int(info.size or 0), int(info.mtime_ns or 0))
            for info in self._listed(recursive=True)
            if info.is_file
        }

    def folders(self) -> list[str]:
        """Names of the folders right below this one, sorted. Raises StorageError as `entries` does."""
        return sorted(self._relative(info.path) for info in self._listed(recursive=False) if not info.is_file)

    def remove(self, name: str) -> None:
        """Delete a file; one that is not there is fine. Raises StorageError."""
        place = self._place.below(name)
        with place.errors():
            try:
                place.filesystem.delete_file(place.path)
            except FileNotFoundError:
                return

    def delete(self) -> None:
        """Delete this folder with all that is in it; one that is not there is fine.

        Raises:
            StorageError: it cannot be deleted, or is the one that a user named.
        """
        if self._root:
            raise StorageError("the root of a storage is never deleted", field=self.shown, remedy="Delete it by hand")
        with self._place.errors():
            try:
                self._place.filesystem.delete_dir(self._place.path)
            except FileNotFoundError:
                return

    def _listed(self, *, recursive: bool) -> list[_Info]:
        from pyarrow.fs import FileSelector, FileType

        with self._place.errors():
            if self.local:  # pyarrow's own stumbles over what appears or vanishes meanwhile
                return list(_walked(Path(self._place.path), recursive=recursive))
            selector = FileSelector(self._place.path, recursive=recursive, allow_not_found=True)
            found = self._place.filesystem.get_file_info(selector)
        return [_Info(each.path, each.type == FileType.File, each.size, each.mtime_ns) for each in found]

    def _relative(self, path: str) -> str:
        base = self._place.path.rstrip("/") + "/"
        if not path.startswith(base):
            remedy = "Remove it from the storage"
            raise StorageError("a listing names a file elsewhere", field=self.shown, value=path, remedy=remedy)
        return check_name(path.removeprefix(base), self.shown)


@dataclass(frozen=True, slots=True)
class _Info:
    path: str
    is_file: bool
    size: int | None
    mtime_ns: int | None


def _walked(folder: Path, *, recursive: bool) -> Iterator[_Info]:
    """What is in a folder of a disk, at some moment each. Raises OSError for what is there and cannot be listed."""
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            is_file = not stat.S_ISDIR(facts.st_mode)
            yield _Info(str(path), is_file, facts.st_size, facts.st_mtime_ns)
            if recursive and not is_file and not path.is_symlink():
                yield from _walked(path, recursive=True)


def _at(place: Place, *, root: bool) -> Storage:
    made = Storage.__new__(Storage)
    made._place, made._root = place, root  # noqa: SLF001
    return made


def _opened(uri: str, root: bool) -> Storage:
    return _at(place_of(uri), root=root)


def storage_of(setting: str | None) -> Storage | None:
    """The storage of ``record.storage``, else of ``PROXYGAP_STORAGE``; None without either. Raises as `Storage`."""
    uri = setting or os.environ.get("PROXYGAP_STORAGE", "").strip()
    return Storage(uri) if uri else None
