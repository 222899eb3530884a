"""Variants of one file: what each changes, what they share, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.study import load_study, merged

BASE = """
name: arms
question: Which aggregate keeps the gold?
task: {kind: arms, arms: 100}
proxy: {kind: correlated_proxies, members: 3}
judge: {aggregate: {kind: mean}}
loop: {kind: best_of_n, real_steps: 16}
outcomes: [gold_reward]
seeds: [0, 1]
"""
VARIANTS = """
variants:
  mean:
  worst: {judge: {aggregate: {kind: worst_case}}}
  uncertain: {judge: {aggregate: {kind: uncertainty_weighted, penalty: 0.25}}, seeds: [3]}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_each_variant_is_an_experiment_of_its_own(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, BASE + VARIANTS))
    assert study.compared
    assert [e.name for e in study.experiments.values()] == ["arms.mean", "arms.worst", "arms.uncertain"]
    kinds = [e.judge.aggregate.kind for e in study.experiments.values()]
    assert kinds == ["mean", "worst_case", "uncertainty_weighted"]
    assert study.experiments["uncertain"].seeds == (3,)
    assert {e.record.tracking_experiment for e in study.experiments.values()} == {"arms"}


def test_a_file_without_variants_is_a_study_of_one(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, BASE))
    assert not study.compared
    assert study.experiments[""].name == "arms"


def test_overrides_reach_every_variant_and_only_selects(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, BASE + VARIANTS), ["task.arms=50"], ["worst"])
    assert list(study.experiments) == ["worst"]
    assert study.experiments["worst"].task.arms == 50  # type: ignore[union-attr]


def test_the_page_moves_with_what_is_compared(tmp_path: Path) -> None:
    path = write(tmp_path, BASE + VARIANTS)
    folders = {load_study(path, only=only).page_folder for only in ([], ["mean", "worst"], ["worst", "mean"])}
    assert len(folders) == 2, "the order of names on the command line is not the order of the file"
    assert load_study(path, ["task.arms=50"]).page_folder not in folders


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"a": {"kind": "y"}}, {"a": {"kind": "y"}, "b": 1}, id="another kind replaces"),
        pytest.param({"a": {"p": 2}}, {"a": {"kind": "x", "p": 2}, "b": 1}, id="a field is merged"),
        pytest.param({"a": {"kind": "x", "q": 3}}, {"a": {"kind": "x", "p": 1, "q": 3}, "b": 1}, id="the same kind"),
        pytest.param({"b": None}, {"a": {"kind": "x", "p": 1}, "b": None}, id="null"),
    ],
)
def test_merging(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    base = {"a": {"kind": "x", "p": 1}, "b": 1}
    assert merged(base, changes) == expected
    assert base == {"a": {"kind": "x", "p": 1}, "b": 1}


@pytest.mark.parametrize(
    ("variants", "only", "field", "words"),
    [
        pytest.param("variants: [a, b]", [], "variants", "must map", id="list"),
        pytest.param("variants: {}", [], "variants", "must map", id="empty"),
        pytest.param("variants: {'a b': {}}", [], "variants", "is no name", id="name"),
        pytest.param("variants: {a: 3}", [], "variants.a", "not a mapping", id="value"),
        pytest.param("variants: {a: {judge: {aggregate: {kind: worst}}}}", [], "variants.a: judge", "worst", id="kind"),
        pytest.param("variants: {worst: {}}", ["worts"], "--variant", "Did you mean 'worst'", id="selection"),
        pytest.param("", ["worst"], "--variant", "has no variants", id="none"),
    ],
)
def test_what_is_refused_names_the_variant(
    tmp_path: Path, variants: str, only: list[str], field: str, words: str
) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        load_study(write(tmp_path, BASE + variants), only=only)
    assert caught.value.field.startswith(field)
    assert words in str(caught.value)
