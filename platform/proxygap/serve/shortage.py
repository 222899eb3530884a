"""Whether bundles could ever be placed on nodes: necessary conditions, so that what is feasible is never refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxygap.serve.nodes import SLACK, Bundle, Node, enough, listed, listed_labels, matches, summed, unlabeled

Shortage = tuple[str, str]
"""What lacks (a resource, ``labels``, ``node``, or nothing), and the sentence that says so."""
NONE: Shortage = ("", "")


@dataclass(frozen=True, slots=True)
class _Group:
    """Equal bundles, and the positions of the nodes with their labels."""

    bundle: Bundle
    count: int
    places: frozenset[int]

    def total(self) -> dict[str, float]:
        return {name: self.count * amount for name, amount in self.bundle.resources.items()}


def shortage(bundles: Sequence[Bundle], strategy: str, nodes: Sequence[Node]) -> Shortage:
    """Why ``bundles`` can never be placed on ``nodes``.

    Args:
        bundles: one per host.
        strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD.
        nodes: every node that is alive.
    """
    groups = _grouped(bundles, nodes)
    for group in groups:
        if (found := _alone(group, nodes)) != NONE:
            return found
    for group in groups:
        if (found := _together(group, groups, nodes)) != NONE:
            return found
    return _strategy_shortage(groups, strategy, nodes)


def _grouped(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> list[_Group]:
    counts = Counter((tuple(sorted(b.resources.items())), tuple(sorted(b.labels.items()))) for b in bundles)
    groups = []
    for (resources, labels), count in counts.items():
        each = Bundle(dict(resources), dict(labels))
        places = frozenset(index for index, node in enumerate(nodes) if matches(each.labels, node))
        groups.append(_Group(each, count, places))
    return groups


def _alone(group: _Group, nodes: Sequence[Node]) -> Shortage:
    """One bundle of the group on an empty cluster."""
    asked, labels = group.bundle.resources, group.bundle.labels
    if lacking := unlabeled(labels, nodes):
        return "labels", f"a host asks for {listed_labels(labels)} and {lacking}"
    there = [nodes[index].resources for index in group.places]
    with_labels = f" with {listed_labels(labels)}" if labels else ""
    for name, amount in asked.items():
        most = max((resources.get(name, 0.0) for resources in there), default=0.0)
        if most + SLACK < amount:
            return name, f"a host asks for {name} {amount:g} and no node{with_labels} has more than {most:g}"
    if not any(enough(asked, resources) for resources in there):
        return next(iter(asked)), f"no single node{with_labels} has {listed(asked)} together"
    return NONE


def _together(group: _Group, groups: Sequence[_Group], nodes: Sequence[Node]) -> Shortage:
    """All bundles that can go nowhere but to the nodes of the group, against what these have."""
    total = summed(each.total() for each in groups if each.places <= group.places)
    capacity = summed(nodes[index].resources for index in group.places)
    labels = group.bundle.labels
    where = f"the nodes with {listed_labels(labels)} have" if labels else "the cluster has"
    for name, amount in total.items():
        have = capacity.get(name, 0.0)
        if have + SLACK < amount and not name.startswith("accelerator_type:"):
            return name, f"the hosts ask for {name} {amount:g} together and {where} {have:g}"
    return NONE


def _strategy_shortage(groups: Sequence[_Group], strategy: str, nodes: Sequence[Node]) -> Shortage:
    if strategy == "STRICT_PACK" and not _on_one(groups, nodes):
        whole = Bundle(summed(group.total() for group in groups), _all_labels(groups))
        return "node", f"STRICT_PACK asks for one node with {whole} and there is none"
    count = sum(group.count for group in groups)
    if strategy == "STRICT_SPREAD" and (apart := _most_apart(groups, nodes)) < count:
        return "node", f"STRICT_SPREAD asks for {count} nodes, one per host, and only {apart} would do"
    for group in groups:
        room = sum(_copies(group.bundle.resources, nodes[index].resources) for index in group.places)
        if room < group.count:
            name = next(iter(group.bundle.resources))
            return name, f"{group.count} hosts with {group.bundle} each are asked for and only {room} fit"
    return NONE


def _on_one(groups: Sequence[_Group], nodes: Sequence[Node]) -> bool:
    total, places = summed(group.total() for group in groups), set(range(len(nodes)))
    return any(enough(total, nodes[index].resources) for index in places.intersection(*(g.places for g in groups)))


def _all_labels(groups: Sequence[_Group]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for group in groups:
        for key, text in group.bundle.labels.items():
            found.setdefault(key, []).append(text)
    return {key: " and ".join(dict.fromkeys(texts)) for key, texts in found.items()}


def _copies(asked: Mapping[str, float], there: Mapping[str, float]) -> int:
    return min(int(there.get(name, 0.0) / amount + SLACK) for name, amount in asked.items())


def _most_apart(groups: Sequence[_Group], nodes: Sequence[Node]) -> int:
    """Most bundles that can have a node of their own: maximum bipartite matching (Kuhn's augmenting paths)."""
    fitting = [[index for index in group.places if group.bundle.fits(nodes[index])] for group in groups]
    if len(groups) == 1:
        return min(groups[0].count, len(fitting[0]))
    options = [choices for group, choices in zip(groups, fitting, strict=True) for _ in range(group.count)]
    owner: dict[int, int] = {}

    def place(index: int, seen: set[int]) -> bool:
        for position in sorted(options[index], key=lambda position: position in owner):  # free ones first
            if position not in seen:
                seen.add(position)
                if position not in owner or place(owner[position], seen):
                    owner[position] = index
                    return True
        return False

    return sum(place(index, set()) for index in range(len(options)))
