"""Whatever an experiment file holds, it either validates or ends with one clear `InvalidExperiment`."""

from __future__ import annotations

import copy
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment, load_experiment, validate
from proxygap.yaml_file import yaml_text

GOOD: dict[str, Any] = {
    "name": "fuzz",
    "question": "Does anything else than the two answers come out?",
    "task": {"kind": "gymnasium", "id": "InvertedPendulum-v5"},
    "outcomes": ["return"],
    "loop": {"kind": "mbpo", "real_steps": 3000},
    "fit": {"kind": "gaussian_ensemble", "loss": {"kind": "mse"}},
    "imagine": {"horizon": {"start": 1, "end": 5, "from_step": 0, "to_step": 100}},
    "seeds": [0, 1],
}
SCHEMA = Experiment.model_json_schema()
EXAMPLES = int(os.environ.get("PROXYGAP_FUZZ", "0"))
"""Examples per test, new ones every time; by default the same few hundred, so that the tests repeat themselves."""
FUZZ = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def judge(tree: dict[str, Any]) -> str:
    """The message of the refusal, or nothing; every other ending fails the test."""
    try:
        experiment = validate(tree)
    except InvalidExperiment as error:
        return clear(error)
    again = validate(experiment.model_dump(mode="json"))
    assert again == experiment
    assert again.identity == experiment.identity
    assert len({experiment.run_key(seed) for seed in experiment.seeds}) == len(experiment.seeds)
    return ""


def clear(error: InvalidExperiment) -> str:
    """What every refusal owes its reader."""
    message = str(error)
    assert 0 < len(message) < 2000
    assert error.exit_code == 3
    assert all(": " in line or line.endswith("more problems") for line in message.splitlines()), message
    assert all(line.isprintable() for line in message.splitlines()), message
    message.encode("utf-8")
    return message


def from_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema mostly allows; bounds are kept, relations between fields are not known to it."""
    if "$ref" in schema:
        return st.deferred(lambda: from_schema(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if options := schema.get("oneOf") or schema.get("anyOf"):
        return st.one_of([from_schema(option) for option in options])
    low, high = schema.get("minimum", schema.get("exclusiveMinimum", 0)), schema.get("maximum", 10**6)
    match schema.get("type"):
        case "object":
            fields, needed = schema.get("properties", {}), set(schema.get("required", ())) | {"kind"}
            required = {name: from_schema(field) for name, field in fields.items() if name in needed}
            optional = {name: from_schema(field) for name, field in fields.items() if name not in needed}
            return st.fixed_dictionaries(required, optional=optional)
        case "array":
            return st.lists(from_schema(schema.get("items", {})), max_size=4)
        case "integer":
            return st.integers(int(low), int(high))
        case "number":
            return st.floats(low, schema.get("exclusiveMaximum", high), allow_nan=False) | st.integers(1, 3)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    names = st.sampled_from(["return", "quickstart", "Hopper-v5", "Pendulum-v1", "episode_length"])
    return names | st.text(max_size=20)


STRINGS = ("", "\0", "\x1b[31m", "a\nb", "\ud800", "x" * 5000, "🧪", "1e5", "null", "../..", "a:b", ":", ".", "a.b")
NASTY: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.sampled_from([10**4000, -(10**4000), 2**63, 2**64 - 1, 0, -1])
    | st.floats()
    | st.text(st.characters(), max_size=30)
    | st.sampled_from(STRINGS)
    | st.binary(max_size=5)
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in items for place in [(*here, key), *places(value, (*here, key))]]


@st.composite
def mutated(draw: st.DrawFn, trees: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """A tree with up to three accidents: a value replaced, a key lost, renamed or added, a value wrapped."""
    tree = copy.deepcopy(draw(trees))
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            return tree
        *way, last = draw(st.sampled_from(found))
        node: Any = tree
        for key in way:
            node = node[key]
        match draw(st.sampled_from(["replace", "lose", "rename", "add", "wrap"])):
            case "lose":
                del node[last]
            case "rename" if isinstance(node, dict):
                node[draw(st.text(max_size=12) | st.sampled_from(["kind", "id", f"{last}s", 3, None]))] = node.pop(last)
            case "add" if isinstance(node, dict):
                node[draw(st.text(max_size=12))] = draw(NASTY)
            case "wrap":
                node[last] = draw(st.sampled_from([[node[last]], {"kind": node[last]}, {str(last): node[last]}]))
            case _:
                node[last] = draw(NASTY)
    return tree


@FUZZ
@given(from_schema(SCHEMA))
def test_trees_of_the_schema(tree: dict[str, Any]) -> None:
    judge(tree)


@FUZZ
@given(mutated(st.just(GOOD)))
def test_a_good_experiment_with_accidents(tree: dict[str, Any]) -> None:
    judge(tree)


@FUZZ
@given(mutated(from_schema(SCHEMA)))
def test_trees_of_the_schema_with_accidents(tree: dict[str, Any]) -> None:
    judge(tree)


@FUZZ
@given(st.dictionaries(st.sampled_from(sorted(SCHEMA["properties"])) | st.text(max_size=10), NASTY, max_size=6))
def test_trees_of_nothing_in_particular(tree: dict[str, Any]) -> None:
    assert judge(tree), "nothing of this is an experiment"


def _read(folder: Path, content: bytes, overrides: tuple[str, ...] = ()) -> str:
    path = folder / "experiment.yaml"
    path.write_bytes(content)
    try:
        load_experiment(path, overrides)
    except InvalidExperiment as error:
        return clear(error)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(content=st.binary(max_size=300))
def test_files_of_any_bytes(folder: Path, content: bytes) -> None:
    assert _read(folder, content)


PIECES = (
    *("name: ", "- ", "&a ", "*a", "!!python/name:os.system ", "!!binary ", "!!set ", "<<: ", "? ", "[", "]", "{", "}"),
    *("'", '"', "%YAML 1.1\n", "---\n", "...\n", "|\n", ">-\n", "\n", "  ", "0o17", "0x", ".nan", "1_0", "2001-01-01"),
)
LETTERS = st.sampled_from("ab01-:?&*!%@|>'\"[]{},#~. \n\t\\<=é")
YAMLISH = st.text(LETTERS, max_size=80) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@FUZZ
@given(content=YAMLISH)
def test_files_that_look_like_yaml(folder: Path, content: str) -> None:
    assert _read(folder, content.encode("utf-8", "replace"))


@FUZZ
@given(content=st.data())
def test_a_good_file_with_a_few_bytes_changed(folder: Path, content: st.DataObject) -> None:
    good = bytearray(yaml_text(GOOD).encode())
    for _ in range(content.draw(st.integers(1, 3))):
        at = content.draw(st.integers(0, len(good) - 1))
        good[at : at + content.draw(st.integers(0, 3))] = content.draw(st.binary(max_size=3) | st.just(b": "))
    _read(folder, bytes(good))


KEYS = st.sampled_from([".".join(map(str, place)) for place in places(GOOD)]) | st.text(max_size=20)
VALUES = YAMLISH | NASTY.map(repr) | st.sampled_from(["7", "null", "[]", "{}", "x", "[0, 0]", "1e-3", "true"])


@FUZZ
@given(overrides=st.lists(st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=20), min_size=1, max_size=3))
def test_overrides(folder: Path, overrides: list[str]) -> None:
    _read(folder, yaml_text(GOOD).encode(), tuple(overrides))


def _laughs() -> str:
    letters = "abcdefghijklmnop"
    lines = [f"{key}: &{key} [{', '.join([f'*{last}'] * 8)}]" for last, key in itertools.pairwise(letters)]
    return "\n".join(["a: &a [x, x, x]", *lines])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        pytest.param("a: &a [*a]", "nested too deeply", id="a list that contains itself"),
        pytest.param(_laughs(), "too many values", id="a billion laughs"),
        pytest.param("[" * 1500, "is not YAML", id="brackets without end"),
        pytest.param("x" * 70_000, "larger than 64 kB", id="too large"),
        pytest.param("seeds: [0x" + "f" * 5000 + "]", "beyond 64 bits", id="a number without end"),
        pytest.param("name: !!python/object/apply:os.getcwd []", "is not YAML", id="code"),
        pytest.param("name: a\nname: b", 'duplicate key "name"', id="a key twice"),
        pytest.param("%YAML 1.1\n---\nname: 010", "Remove its %YAML line", id="another YAML"),
        pytest.param("", "is not a mapping", id="nothing"),
        pytest.param("? - a:\n: 1", "is not YAML", id="a key that cannot be a key"),
    ],
)
def test_attacks_end_at_once(tmp_path: Path, content: str, told: str) -> None:
    assert told in _read(tmp_path, content.encode())


def test_the_good_experiment_is_good(tmp_path: Path) -> None:
    assert judge(GOOD) == ""
    assert _read(tmp_path, yaml_text(GOOD).encode()) == ""
    assert validate(json.loads(json.dumps(GOOD))) == validate(GOOD)


def test_trees_of_the_schema_often_validate() -> None:
    """The generator reaches deep: without trees that validate, the fuzz would test the first check only."""
    good = [0]

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(from_schema(SCHEMA))
    def count(tree: dict[str, Any]) -> None:
        relations = {"loop": {**tree["loop"], "real_steps": 10**6, "steps_per_sample": 1}, "collect": {}, "seeds": [0]}
        settled = {**tree, **relations, "name": "a", "outcomes": ["return"], "task": GOOD["task"], "probe": {}}
        good[0] += judge(settled) == ""

    count()
    assert good[0] > 20
