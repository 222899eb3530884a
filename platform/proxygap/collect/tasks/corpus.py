"""English sentences that come with Python: its language reference and the documentation of its standard library.

Nothing is downloaded and nothing is kept on disk. The text belongs to the interpreter, so another release of Python
has slightly other sentences; `fingerprint` tells them apart.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

Sentence = tuple[str, ...]
"""The words of a sentence in lower case, without punctuation."""

_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|[|+=*-]{2}|.*::=)", re.MULTILINE)
_MARKUP = re.compile(r"(?<!\w)[\"'“*`]+|[\"'”*`]+(?!\w)|\([^()]*\)")
_BORDER = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WHOLE = re.compile(r"\W*[A-Z].*[.!?]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_DOCUMENTATION = re.compile(r'^\s*[rR]?"""(.*?)"""', re.MULTILINE | re.DOTALL)


@cache
def sentences() -> tuple[Sentence, ...]:
    """All different sentences that are made of words alone, in the order of the text."""
    found = (sentence for text in _texts() for sentence in _sentences_of(text))
    return tuple(dict.fromkeys(found))


@cache
def fingerprint() -> str:
    """SHA-256 (hex) of all sentences: equal on machines whose Python has the same text."""
    return hashlib.sha256("\n".join(" ".join(sentence) for sentence in sentences()).encode()).hexdigest()


def _texts() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from topics.values()
    library = Path(sysconfig.get_paths()["stdlib"])
    for module in sorted(library.glob("[!_]*.py")):  # names with an underscore differ between platforms
        yield from _DOCUMENTATION.findall(module.read_text(encoding="utf-8", errors="replace"))


def _sentences_of(text: str) -> Iterator[Sentence]:
    for paragraph in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(paragraph):
            continue
        prose = _MARKUP.sub("", " ".join(paragraph.split()).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
        for sentence in _BORDER.split(prose):
            stripped = (word.strip(",;:.!?-").lower() for word in sentence.split())
            words = tuple(word for word in stripped if word)
            if _WHOLE.fullmatch(sentence) and all(_WORD.fullmatch(word) for word in words):
                yield words
