"""A study: one file whose ``variants`` each change a few fields of the same experiment, to be compared on equal seeds.

::

    name: overoptimization
    ...
    variants:
      single: {judge: {aggregate: {kind: single}}}
      worst_case: {judge: {aggregate: {kind: worst_case}}}

Each variant is an experiment of its own, named ``overoptimization.single`` and so on; the first one is the baseline.
Nothing here loads torch or Ray.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxygap.base.config import canonical_hash
from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment, refuse_sweep, validate
from proxygap.yaml_file import assign, parse_override, read_yaml

VARIANTS_LIMIT = 64
"""Variants of one file; beyond that a sweep is meant."""
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")


@dataclass(frozen=True, slots=True)
class Study:
    """Experiments of one file, by variant; a file without variants is a study of one, under the empty name."""

    name: str
    question: str
    experiments: Mapping[str, Experiment]

    @property
    def compared(self) -> bool:
        """Whether there is anything to compare."""
        return len(self.experiments) > 1

    @property
    def single(self) -> Experiment:
        """The only experiment. Raises `InvalidExperiment` where there are several."""
        if self.compared:
            names = list(self.experiments)
            raise InvalidExperiment(
                "the file describes several experiments, and one is wanted",
                field="variants",
                value=", ".join(names),
                remedy=f"Choose one, e.g. --variant {names[0]}",
            )
        (experiment,) = self.experiments.values()
        return experiment

    @property
    def page_folder(self) -> Path:
        """Where the comparison goes: beside the variants' folders, distinct for distinct studies."""
        experiments = list(self.experiments.values())
        identity = canonical_hash([experiment.identity for experiment in experiments])
        return Path(experiments[0].record.folder) / f"{self.name}-{identity[:8]}-comparison"


def load_study(path: str | Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Study:
    """Read, override and validate an experiment file with or without variants.

    Args:
        path: a YAML 1.2 file.
        overrides: dotted assignments, applied before the variants.
        only: names of the variants to keep; none keeps all.

    Raises:
        InvalidExperiment: naming field, value and remedy; of a variant's fields with the variant's name.
    """
    tree = read_yaml(Path(path))
    refuse_sweep(tree)
    for text in overrides:
        assign(tree, *parse_override(text))
    variants = _variants(tree.pop("variants", None), only)
    if not variants:
        experiment = validate(tree)
        return Study(experiment.name, experiment.question, {"": experiment})
    return Study(
        str(tree.get("name")),
        str(tree.get("question")),
        {name: _experiment(tree, name, changes) for name, changes in variants.items()},
    )


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``: sections merge field by field, and a part of another ``kind`` replaces the old one."""
    result = dict(copy.deepcopy(dict(base)))
    for key, change in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(change, dict) and change.get("kind") in (None, old.get("kind")):
            result[key] = merged(old, change)
        else:
            result[key] = copy.deepcopy(change)
    return result


def _experiment(tree: Mapping[str, Any], name: str, changes: Mapping[str, Any]) -> Experiment:
    whole = merged(tree, changes)
    whole["name"] = f"{tree.get('name')}.{name}"
    record = whole.get("record") or {}
    if isinstance(record, dict):  # all variants in one MLflow experiment, unless the file says otherwise
        whole["record"] = {**record, "tracking_experiment": record.get("tracking_experiment") or str(tree.get("name"))}
    try:
        return validate(whole)
    except InvalidExperiment as error:
        raise InvalidExperiment(
            f"{error.problem}", field=f"variants.{name}: {error.field}", value=error.value, remedy=error.remedy
        ) from None


def _variants(found: Any, only: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    if found is None:
        if only:
            raise InvalidExperiment("the file has no variants", field="--variant", value=only[0], remedy="Leave it out")
        return {}
    if not isinstance(found, dict) or not found or len(found) > VARIANTS_LIMIT:
        raise InvalidExperiment(
            f"must map 1 to {VARIANTS_LIMIT} names to the fields that they change",
            field="variants",
            remedy="Write e.g. variants: {mean: {}, worst_case: {judge: {aggregate: {kind: worst_case}}}}",
        )
    for name, changes in found.items():
        if not isinstance(name, str) or not _NAME.match(name):
            remedy = "Use letters, digits, dash and underscore, at most 40"
            raise InvalidExperiment("is no name of a variant", field="variants", value=str(name)[:60], remedy=remedy)
        if not isinstance(changes, dict | None):
            remedy = "Write the fields that it changes, or {} for none"
            raise InvalidExperiment("is not a mapping of fields to values", field=f"variants.{name}", remedy=remedy)
    for name in only:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(found)}"
            raise InvalidExperiment("no such variant", field="--variant", value=name[:60], remedy=remedy)
    return {name: changes or {} for name, changes in found.items() if not only or name in only}
