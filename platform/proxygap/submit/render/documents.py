"""YAML documents that every reader reads alike: the launchers', compose's and Kubernetes' parsers know YAML 1.1.

There, an unquoted ``yes``, ``on`` or ``12:30`` is no text. So whatever could be taken for something else is quoted, and
nothing is ever put into YAML but through this dumper.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})
_WIDTH = 10_000


class _Representer(SafeRepresenter):
    """Quotes text that some parser could take for something else; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True

    def _text(self, data: str) -> ScalarNode:
        plain = _PLAIN.fullmatch(data) and data.lower() not in _WORDS
        block = "\n" in data and data.isascii() and all(letter.isprintable() or letter == "\n" for letter in data)
        style = None if plain else "|" if block else '"'
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:str", data, style=style)
        return node


_Representer.add_representer(str, _Representer._text)  # noqa: SLF001


def yaml_documents(header: str, *documents: Mapping[str, Any]) -> str:
    """Plain trees as one file of YAML documents, under a comment of one or more lines.

    Args:
        header: text of the comment.
        documents: mappings of text, numbers, truth values, lists and mappings.
    """
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = _WIDTH
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    texts = []
    for document in documents:
        stream = io.StringIO()
        writer.dump(_plain(document), stream)
        texts.append(stream.getvalue())
    return comment(header) + "---\n".join(texts)


def comment(text: str) -> str:
    """The lines of a text behind ``# ``; characters that are not printable are escaped."""
    shown = "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)
    return "".join(f"# {line}".rstrip() + "\n" for line in shown.split("\n"))


def _plain(tree: Any) -> Any:
    """Mappings and sequences of any kind as dicts and lists; what is None is left out of mappings."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items() if value is not None}
    return [_plain(item) for item in tree] if isinstance(tree, list | tuple) else tree
