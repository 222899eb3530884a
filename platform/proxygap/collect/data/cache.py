"""A dataset that takes long to make is made once, and kept as a file that is verified whenever it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from proxygap.base.errors import InvalidDataset, StorageError
from proxygap.base.records import Transitions
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.episodes import read_episodes, write_episodes

Made = tuple[Transitions, Lineage]
OnEvent = Callable[[str, Mapping[str, Any]], None]


def kept(file: Path, key: str, build: Callable[[], Made], on_event: OnEvent) -> Made:
    """The dataset in a file, made and written where it is not there.

    Of several processes that want the same one, the first builds it and the others wait for it; one that dies lets go.

    Args:
        file: a local path; its folder is created.
        key: what `Lineage.key` must be.
        build: makes the dataset.
        on_event: told ``dataset_refused`` where the file is damaged or another's; it is then made again.

    Raises:
        StorageError: the folder cannot be written.
        What ``build`` raises.
    """
    with _alone(file):
        found = _read(file, key, on_event)
        if found is None:
            found = build()
            write_episodes(file, found[0], found[1].provenance())
        return found


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """No other process is in here for the same file."""
    lock = FileLock(file.with_suffix(".lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        remedy = "Give a writable record.folder with free space"
        raise StorageError(f"cannot keep a dataset: {error}", field=str(file), remedy=remedy) from error
    try:
        yield
    finally:
        lock.release()


def _read(file: Path, key: str, on_event: OnEvent) -> Made | None:
    if not file.exists():
        return None
    try:
        transitions, provenance = read_episodes(file)
        lineage = Lineage.read(provenance, transitions, str(file))
        reason = "" if lineage.key == key else "is another dataset"
    except InvalidDataset as error:
        reason = error.problem
    if reason:
        on_event("dataset_refused", {"file": file.name, "reason": reason})
        return None
    return transitions, lineage
