"""Attempts at a part of a run: who writes it, since when, and what its copy in storage holds.

::

    <storage>/<folder name>/<part>/attempt-0003-9f2c41aa/
      .claim.json        who claimed it; from then on every earlier attempt is superseded
      .published.json    what it holds: names, sizes and hashes; without it there is nothing to restore
      ...                the files, as in the local folder
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proxygap.base.errors import InvalidExperiment, StorageError
from proxygap.base.files import check_name
from proxygap.record.folder import read_json, write_json
from proxygap.record.storage import Storage

CLAIM, PUBLISHED, LOCAL = ".claim.json", ".published.json", "attempt.json"
_NAME = re.compile(r"attempt-(\d{4,9})-([0-9a-f]{8})")


@dataclass(frozen=True, order=True, slots=True)
class Attempt:
    """One writer of a part; of two, the larger (number, nonce) is the newer."""

    number: int
    nonce: str

    @property
    def name(self) -> str:
        """Its folder below the part."""
        return f"attempt-{self.number:04d}-{self.nonce}"

    @staticmethod
    def numbered(number: int) -> Attempt:
        """A new one of this number."""
        return Attempt(number, secrets.token_hex(4))

    @staticmethod
    def named(name: str) -> Attempt | None:
        """The attempt of a folder; None for folders of anything else."""
        match = _NAME.fullmatch(name)
        return Attempt(int(match[1]), match[2]) if match else None


def attempts_of(part: Storage) -> list[Attempt]:
    """All attempts at a part, oldest first. Raises StorageError."""
    return sorted(found for name in part.folders() if (found := Attempt.named(name)))


def asked_attempt() -> int:
    """The number that a submitter gave this job (``PROXYGAP_ATTEMPT``); 0 without one. Raises InvalidExperiment."""
    given = os.environ.get("PROXYGAP_ATTEMPT", "").strip()
    if not given:
        return 0
    if not re.fullmatch(r"\d{1,9}", given):
        raise InvalidExperiment("not a number", field="PROXYGAP_ATTEMPT", value=given, remedy="Unset it")
    return int(given)


@dataclass(frozen=True, slots=True)
class Sent:
    """A file as it was published; ``text`` is its content where it must not differ from the rest by a moment."""

    size: int
    sha256: str
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What an attempt holds, as its writer left it after a whole publish."""

    attempt: Attempt
    files: dict[str, Sent]

    def encoded(self) -> bytes:
        """For `published_by`."""
        files = {name: asdict(sent) for name, sent in sorted(self.files.items())}
        facts = {"schema": 1, "attempt": self.attempt.name, "time_ms": time.time_ns() // 1_000_000, "files": files}
        return json.dumps(facts, allow_nan=False).encode()


def published_by(part: Storage, attempt: Attempt) -> Published | None:
    """What an attempt holds; None before its first whole publish. Raises StorageError for what is no such list."""
    place = part.below(attempt.name)
    content = place.read(PUBLISHED)
    if content is None:
        return None
    try:
        facts = json.loads(content)
        files = {_checked(name, place.shown): _sent(entry) for name, entry in facts["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        remedy = "Remove this attempt, so that an earlier one is taken up"
        raise StorageError(
            f"not a list of files ({error!r})", field=f"{place.shown}/{PUBLISHED}", remedy=remedy
        ) from error
    return Published(attempt, files)


def _checked(name: str, place: str) -> str:
    """A name that a local folder takes: not one of the files that say what the folder holds."""
    if name == LOCAL or any(part.startswith(".") for part in check_name(name, place).split("/")):
        raise StorageError("not the name of a published file", field=place, value=name, remedy="Remove this attempt")
    return name


def _sent(entry: dict[str, Any]) -> Sent:
    text = entry.get("text")
    if not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str) or not isinstance(text, str | None):
        raise TypeError("a file has a size and a hash")
    return Sent(entry["size"], entry["sha256"], text)


def newest_published(part: Storage, before: Attempt | None = None) -> Published | None:
    """What the newest attempt with a whole publish holds, or the newest ``before`` one. Raises StorageError."""
    for attempt in reversed(attempts_of(part)):
        if before is None or attempt < before:
            found = published_by(part, attempt)
            if found is not None:
                return found
    return None


@dataclass(frozen=True, slots=True)
class Held:
    """Whose files a local folder holds: those that the attempt ``writes`` there, or a copy of what it published."""

    attempt: Attempt
    writes: bool

    def save(self, local: Path) -> None:
        """Say so in the folder. Raises StorageError."""
        facts = {"number": self.attempt.number, "token": self.attempt.nonce, "writes": self.writes}
        write_json(local / LOCAL, {**facts, "time_ms": time.time_ns() // 1_000_000})


def held_by(local: Path) -> Held | None:
    """Whose files a local folder holds; None where that is not said. Raises StorageError for a damaged file."""
    told = read_json(local / LOCAL)
    if not told:
        return None
    attempt = Attempt.named(f"attempt-{str(told.get('number')).rjust(4, '0')}-{told.get('token')}")
    if attempt is None:
        raise StorageError("not an attempt", field=str(local / LOCAL), value=told, remedy="Remove the file")
    return Held(attempt, bool(told.get("writes")))
