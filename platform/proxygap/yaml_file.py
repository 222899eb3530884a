"""Experiment files as text: YAML 1.2 in, errors out that name the field, the value and the remedy."""

from __future__ import annotations

import datetime as dt
import difflib
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError, YAMLWarning

from proxygap.base.errors import InvalidExperiment

SIZE_LIMIT = 64_000
"""Bytes; an experiment file larger than this is a mistake."""
DEPTH_LIMIT = 30
"""Sections inside sections; no experiment needs a third of it."""
NODE_LIMIT = 20_000
"""Values in one file, aliases counted each time they are used."""
PROBLEMS_SHOWN = 8
"""Problems of one file that are told at once."""
TEXT_SHOWN = 100
"""Characters of a name or a value that an error repeats."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file: no octal surprises, no repeated keys, no tags, no code.

    Raises:
        InvalidExperiment: for a file that is missing, too large, not UTF-8, not YAML, or not a mapping.
    """
    shown = _plain(str(path), 4 * TEXT_SHOWN)
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        text = content.decode("utf-8")
    except FileNotFoundError:
        raise InvalidExperiment(
            "no such file", field=shown, remedy="`ls pipelines` shows the experiments that ship"
        ) from None
    except UnicodeDecodeError as error:
        if len(content) <= SIZE_LIMIT:
            problem = f"is not UTF-8 (byte {error.start})"
            raise InvalidExperiment(problem, field=shown, remedy="Save it as UTF-8 text") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidExperiment(f"cannot be read ({reason})", field=shown, remedy="Give a text file") from None
    if len(content) > SIZE_LIMIT:
        raise InvalidExperiment(
            f"is larger than {SIZE_LIMIT // 1000} kB", field=shown, remedy="Give an experiment file"
        )
    tree = _parse(text, shown)
    if not isinstance(tree, dict):
        raise InvalidExperiment(
            "is not a mapping of fields to values", field=shown, remedy="Start from pipelines/quickstart.yaml"
        )
    return tree


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``section.field=value`` into its path and its YAML value."""
    name, equals, value = text.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise InvalidExperiment(
            "is not an override", field="override", value=_plain(text), remedy="Write section.field=value"
        )
    return path, _parse(value, f"override {_plain(name)}")


def assign(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set one value inside a tree, making sections on the way; what an alias shares with it stays as it was."""
    node = tree
    for depth, key in enumerate(path[:-1]):
        section = {} if node.get(key) is None else node[key]
        if not isinstance(section, dict):
            raise InvalidExperiment(
                f"cannot be set, because {_plain('.'.join(path[: depth + 1]))} is not a section",
                field=_plain(".".join(path)),
                remedy="Override a field of a section",
            )
        node[key] = dict(section)
        node = node[key]
    node[path[-1]] = value


def yaml_text(tree: dict[str, Any]) -> str:
    """A plain tree as YAML, fields in their declared order; reading it gives an equal tree."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(tree, stream)
    return stream.getvalue()


def check_values(tree: dict[str, Any]) -> None:
    """Refuse what no field could mean, before any field is looked at.

    Raises:
        InvalidExperiment: for numbers that are not finite or beyond 64 bits, keys that are not text, values that are
            neither text, number, truth value nor null, and trees without end.
    """
    for count, (field, value, depth) in enumerate(_walk(tree)):
        if count > NODE_LIMIT or depth > DEPTH_LIMIT:
            problem = "has too many values" if count > NODE_LIMIT else "is nested too deeply"
            raise InvalidExperiment(problem, field=field, remedy="Write an experiment of ordinary size")
        if problem := _impossible(value):
            raise InvalidExperiment(problem, field=field or "file", value=_shown(value), remedy=_PLAIN_VALUE)


def explain(error: ValidationError, root: type[BaseModel]) -> InvalidExperiment:
    """Turn a validation error into ours: one line per problem, each with its field, value and remedy."""
    problems = [_explain_one(dict(problem), root) for problem in error.errors(include_url=False)]
    if len(problems) == 1:
        return problems[0]
    lines = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
    if hidden := len(problems) - len(lines):
        lines.append(f"and {hidden} more problems")
    return InvalidExperiment("\n".join(lines))


def _parse(text: str, source: str) -> Any:
    if re.search(r"^%YAML (?!1\.2\s)", text, re.MULTILINE):
        raise InvalidExperiment("is not YAML 1.2: it says so itself", field=source, remedy="Remove its %YAML line")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", YAMLWarning)
            return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, YAMLWarning, *_LET_THROUGH) as error:
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0] or "unreadable"
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InvalidExperiment(
            f"is not YAML 1.2: {_plain(problem)}{place}", field=source, remedy="Mend it there"
        ) from None


_LET_THROUGH = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError)
"""Python's own errors, which the parser does not turn into its own for every strange file."""


def _walk(tree: Any) -> Iterator[tuple[str, Any, int]]:
    """Every key and value with its dotted place and depth; endless for a tree that contains itself."""
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        field, value, depth = waiting.pop()
        yield field, value, depth
        if isinstance(value, dict):
            yield from ((field, _Key(key), depth) for key in value if not isinstance(key, str))
            named = [(_plain(key), item) for key, item in value.items() if isinstance(key, str)]
        else:
            named = [(str(index), item) for index, item in enumerate(value)] if isinstance(value, list | tuple) else []
        waiting.extend((f"{field}.{name}" if field else name, item, depth + 1) for name, item in reversed(named))


_PLAIN_VALUE = "Give text, a number of ordinary size, true, false or null"


class _Key:
    """A key that is not text."""

    def __init__(self, key: object) -> None:
        self.key = key

    def __repr__(self) -> str:
        return repr(_shown(self.key))


def _impossible(value: Any) -> str:
    match value:
        case _Key():
            return "is a key that is not text"
        case float() if not math.isfinite(value):
            return "is not a finite number"
        case int() if not -(2**63) <= value < 2**63:
            return "is beyond 64 bits"
        case dt.date() | bytes() | set():
            return "is a date, bytes or a set, which no field takes"
    return ""


def _explain_one(problem: dict[str, Any], root: type[BaseModel]) -> InvalidExperiment:
    field, key, model, described = _locate(root, problem["loc"])
    context, value = problem.get("ctx", {}), _shown(problem["input"])
    meaning = " ".join((described.description or "").split()) if described else ""
    match problem["type"]:
        case "extra_forbidden":
            return _unknown(field, key, model.model_fields if model else ())
        case "missing":
            return InvalidExperiment("is missing", field=field, remedy=f"Add it: {meaning}" if meaning else "Add it")
        case "union_tag_invalid":
            return _unknown_kind(f"{field}.kind", str(context["tag"]), str(context["expected_tags"]))
        case "literal_error":
            return _unknown_kind(field, str(problem["input"]), str(context["expected"]))
        case "union_tag_not_found":
            return InvalidExperiment("has no kind", field=field, remedy="Add `kind:`; `proxygap list` shows them")
        case "value_error":
            return _from_sentence(field, str(context.get("error", problem["msg"])))
    message = _MESSAGES.get(problem["type"]) or problem["msg"][0].lower() + problem["msg"][1:]
    return InvalidExperiment(
        _plain(message, 3 * TEXT_SHOWN), field=field or "file", value=value, remedy=meaning or "See `proxygap schema`"
    )


_MESSAGES = {
    "bool_type": "should be true or false",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "model_attributes_type": "should be a section of fields",
    "model_type": "should be a section of fields",
    "string_type": "should be text",
    "too_short": "should have at least one entry",
    "tuple_type": "should be a list",
}
"""In the words of an experiment file, by pydantic's type of problem."""


def _from_sentence(field: str, sentence: str) -> InvalidExperiment:
    """Our own validators write ``problem; remedy``, and ``field: problem`` where several fields are involved."""
    if not field and ": " in sentence:
        field, _, sentence = sentence.partition(": ")
    told, _, remedy = _plain(sentence, 6 * TEXT_SHOWN).partition("; ")
    return InvalidExperiment(told, field=field or "file", remedy=remedy[:1].upper() + remedy[1:])


def _unknown(field: str, key: str, known: Iterable[str]) -> InvalidExperiment:
    names = list(known)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    remedy = f"Did you mean {nearest[0]!r}?" if nearest else f"Known here: {', '.join(names)}"
    return InvalidExperiment("is not a known key", field=field, remedy=remedy)


def _unknown_kind(field: str, tag: str, known: str) -> InvalidExperiment:
    names = [name.strip(" '") for name in known.replace(" or ", ",").split(",")]
    nearest = difflib.get_close_matches(tag, names, n=1)
    guess = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return InvalidExperiment("is not known", field=field, value=_shown(tag), remedy=f"{guess}Known: {', '.join(names)}")


def _locate(
    root: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[str, str, type[BaseModel] | None, FieldInfo | None]:
    """What pydantic's location means: dotted field, last key, the settings class that holds it, its description."""
    options: list[type[BaseModel]] = [root]
    names: list[str] = []
    model: type[BaseModel] | None = None
    described: FieldInfo | None = None
    for part in location:
        if chosen := [option for option in options if len(options) > 1 and _kind(option) == part]:
            options = chosen  # the tag of a union, which is no key of the file
            continue
        names.append(_plain(str(part)))
        if isinstance(part, int):
            continue  # an item of a list is described by the list
        model = options[0] if len(options) == 1 else None
        described = model.model_fields.get(part) if model else None
        options = _models_in(described.annotation) if described else []
    return ".".join(names), names[-1] if names else "", model, described


def _kind(model: type[BaseModel]) -> str:
    field = model.model_fields.get("kind")
    return str(field.default) if field else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _plain(text: str, limit: int = TEXT_SHOWN) -> str:
    """One printable line of bounded length."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


class _Abridged(str):
    """The beginning of a long value; shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shown(value: Any) -> Any:
    """The value where its text is short, the beginning of its text where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list that contains itself
        return _Abridged(f"({type(value).__name__} without end)")
    if isinstance(value, tuple):
        return _shown(list(value))
    return value if len(text) <= TEXT_SHOWN else _Abridged(_plain(text))
