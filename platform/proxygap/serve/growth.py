"""Nodes that a cluster does not have yet, but that its autoscaler may add while a run waits for them.

Ray does not tell a driver how far its cluster may grow. Whoever submits a run knows the groups of nodes and says so in
the environment of the driver.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from proxygap.base.errors import InvalidExperiment
from proxygap.serve.nodes import Node

VARIABLE = "PROXYGAP_ADDABLE_NODES"
GROWTH_S = 1200.0
"""Longest wait for a reservation that needs nodes which are yet to be started."""


def addable_text(groups: Iterable[tuple[Node, int]]) -> str:
    """The value of `VARIABLE` for groups of nodes, each with how many of it may be added."""
    told = [{"resources": dict(n.resources), "labels": dict(n.labels), "count": count} for n, count in groups if count]
    return json.dumps(told, sort_keys=True)


def addable_nodes() -> list[Node]:
    """What the environment says may be added, one entry per node. Raises InvalidExperiment for another text."""
    text = os.environ.get(VARIABLE, "").strip() or "[]"
    try:
        return [
            Node(
                {str(name): float(amount) for name, amount in group["resources"].items()},
                {str(key): str(value) for key, value in group["labels"].items()},
            )
            for group in json.loads(text)
            for _ in range(group["count"])
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidExperiment(
            "does not describe nodes",
            field=VARIABLE,
            value=text[:80],
            remedy='Write [{"resources": {"CPU": 8}, "labels": {"pool": "a"}, "count": 2}], or unset it',
        ) from error
