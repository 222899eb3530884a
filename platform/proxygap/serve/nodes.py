"""What a node has, and what an actor asks of one: amounts of resources, and labels by Ray's selectors.

A selector is a value, ``in(a,b)`` for one of several, or either of them behind ``!`` for anything else: a node without
the label as well. Ray takes ``in(a, b)`` and then looks for a value that begins with a space; `Selector` drops spaces.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from proxygap.base.errors import InvalidExperiment

NODE_ID = "ray.io/node-id"
"""Label that Ray itself gives to every node."""
SLACK = 1e-6

_VALUE = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"(!?)(?:({_VALUE})|in\( *({_VALUE}(?: *, *{_VALUE})*) *\))")
_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_VALUE}(?:\.{_VALUE})*/)?{_VALUE}")
_SHOWN = 6
_NOT_CUSTOM = {
    "CPU": "Ask for CPUs in the field that is named for them",
    "GPU": "Ask for GPUs in the field that is named for them",
    "memory": "Memory is not reserved; use labels to choose large nodes",
    "object_store_memory": "It is not reserved; use labels to choose large nodes",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a cluster: its total resources by Ray's names, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one actor reserves on one node: resources by Ray's names, and selectors of the node's labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Resources and labels in words."""
        return listed(self.resources) + (f" on {listed_labels(self.labels)}" if self.labels else "")

    def fits(self, node: Node) -> bool:
        """Whether a node that is empty could hold it."""
        return matches(self.labels, node) and enough(self.resources, node.resources)


@dataclass(frozen=True, slots=True)
class Selector:
    """One of ``values``, or with ``negated`` none of them."""

    values: tuple[str, ...]
    negated: bool = False

    @classmethod
    def read(cls, text: str) -> Selector | None:
        """The selector that a text stands for; None where it stands for none."""
        found = _SELECTOR.fullmatch(text)
        if found is None:
            return None
        negation, one, several = found.groups()
        values = (one,) if one else tuple(value.strip() for value in several.split(","))
        return cls(values, bool(negation))

    def __str__(self) -> str:
        """As Ray reads it, without spaces."""
        text = self.values[0] if len(self.values) == 1 else f"in({','.join(self.values)})"
        return "!" * self.negated + text

    def takes(self, value: str | None) -> bool:
        """Whether a node with this value, or without the label, is one of those meant."""
        return (value in self.values) != self.negated


def selectors(labels: Mapping[str, str]) -> dict[str, Selector]:
    """The selectors of labels that `check_labels` has let through."""
    found = {key: Selector.read(text) for key, text in labels.items()}
    return {key: each for key, each in found.items() if each is not None}


def ray_selector(labels: Mapping[str, str]) -> dict[str, str]:
    """What Ray takes as ``label_selector``."""
    return {key: str(each) for key, each in selectors(labels).items()}


def check_labels(labels: Mapping[str, str], name: str) -> None:
    """Refuse labels that are no selectors, before Ray is asked.

    Args:
        labels: selectors by key.
        name: dotted field of the labels in the experiment.

    Raises:
        InvalidExperiment: naming the key or the selector.
    """
    for key, text in labels.items():
        if not _KEY.fullmatch(key):
            raise InvalidExperiment(
                "a key of a label is letters, digits and . _ - inside, at most 63, with or without a domain/ before it",
                field=name,
                value=key,
                remedy="Name a label that nodes were started with, e.g. pool or ray.io/accelerator-type",
            )
        if Selector.read(text) is None:
            raise InvalidExperiment(
                "no selector of labels",
                field=f"{name}.{key}",
                value=text,
                remedy="Write a value, !value, in(a,b) or !in(a,b); values are letters, digits and . _ - inside",
            )


def check_names(resources: Mapping[str, float], name: str) -> None:
    """Refuse custom resources that have a field, or a meaning to Ray, of their own. Raises InvalidExperiment."""
    for resource in resources:
        if resource in _NOT_CUSTOM or resource.startswith("node:"):
            raise InvalidExperiment(
                "not a custom resource",
                field=f"{name}.{resource}",
                value=resources[resource],
                remedy=_NOT_CUSTOM.get(resource, "Use labels to name a node"),
            )


def matches(labels: Mapping[str, str], node: Node) -> bool:
    """Whether a node has the labels."""
    return all(selector.takes(node.labels.get(key)) for key, selector in selectors(labels).items())


def unlabeled(labels: Mapping[str, str], nodes: Sequence[Node]) -> str:
    """Why no node has the labels, and which values there are; empty where one has them."""
    if not labels or any(matches(labels, node) for node in nodes):
        return ""
    alone = [key for key in labels if not any(matches({key: labels[key]}, node) for node in nodes)]
    missing = {key: labels[key] for key in alone or labels}
    known = "; ".join(_known(key, nodes) for key in missing)
    return f"no {'' if alone else 'single '}node has {listed_labels(missing)}: {known}"


def _known(key: str, nodes: Sequence[Node]) -> str:
    counts = Counter(node.labels[key] for node in nodes if key in node.labels)
    if not counts:
        return f"none of {len(nodes)} has a label {key}"
    shown = [f"{value} on {count}" for value, count in counts.most_common(_SHOWN)]
    more = [f"{len(counts) - _SHOWN} more values"] if len(counts) > _SHOWN else []
    return f"of {len(nodes)}, {key} is {', '.join(shown + more)}"


def enough(asked: Mapping[str, float], there: Mapping[str, float]) -> bool:
    """Whether every amount is there."""
    return all(there.get(name, 0.0) + SLACK >= amount for name, amount in asked.items())


def summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Amounts added up by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def listed(amounts: Mapping[str, float]) -> str:
    """Amounts in words."""
    return ", ".join(f"{name} {amount:g}" for name, amount in amounts.items())


def listed_labels(labels: Mapping[str, str]) -> str:
    """Labels in words."""
    return " and ".join(f"{key}={text}" for key, text in labels.items())
