"""What is rendered says what was meant, to every parser and every shell, whatever somebody has written into a field."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import comment, yaml_documents
from proxygap.submit.render.nodes import path_word, word

HOSTILE = (
    '"; touch pwned; #',
    "$(touch pwned)",
    "`touch pwned`",
    "' && touch pwned && '",
    "a\nb: {}",
    "${HOME}",
    "*",
    "\\",
)
AMBIGUOUS = (
    "yes",
    "No",
    "on",
    "12:30:45",
    "1e3",
    "0x1f",
    "0o7",
    "~",
    "null",
    "",
    " a",
    "a: b",
    "a #b",
    "- a",
    "%YAML",
    ".5",
)


@pytest.mark.parametrize(
    "text", [*HOSTILE, *AMBIGUOUS, "two\nlines\n", "tab\tin\nlines", "\x07bell", "ümlaut", "\u2028"]
)
def test_text_is_read_as_it_was_written_by_both_versions_of_yaml(text: str) -> None:
    tree = {"key": text, text: ["x", {"deep": text}], "n": 1, "f": 0.5, "b": True}
    written = yaml_documents(f"header {text}", tree, {"second": text})
    assert list(yaml.safe_load_all(written)) == [tree, {"second": text}]
    assert list(YAML(typ="safe", pure=True).load_all(written)) == [tree, {"second": text}]


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"])) | st.booleans() | st.integers(-9, 9), st.lists))
def test_any_tree_comes_back(tree: object) -> None:
    assert list(yaml.safe_load_all(yaml_documents("any", {"tree": tree}))) == [{"tree": tree}]


def test_what_is_none_is_left_out_and_nothing_is_an_alias() -> None:
    shared = {"a": "b"}
    assert yaml_documents("h", {"x": shared, "w": shared, "z": None}) == "# h\nx:\n  a: b\nw:\n  a: b\n"


def test_a_comment_cannot_be_left() -> None:
    assert comment("one\nrm -rf ~\r\x00") == "# one\n# rm -rf ~\\r\\x00\n"


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\n" not in text])
def test_a_word_of_a_script_stays_one_word(text: str, tmp_path: Path) -> None:
    script = f"printf '%s' {word(text, 'x')} {path_word('~/' + text, 'x')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "HOME": "/h"}
    )
    assert done.stdout == f"{text}/h/{text}"
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b[2J", "\x00"])
def test_a_word_with_control_characters_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(InvalidExperiment, match=r"^made_by\.activate = .*control characters"):
        word(text, "made_by.activate")
