"""Whether a cluster could ever hold what is submitted, before it is: its nodes, and those that it may still add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxygap.base.errors import InfeasibleResources
from proxygap.loops.resources import check_resources
from proxygap.serve.placement import Node
from proxygap.submit.settings import Cluster, NodeGroup
from proxygap.submit.work import Work


def check_work(work: Work, cluster: Cluster, states: Sequence[dict[str, Any]]) -> None:
    """Refuse what the cluster can never hold.

    Args:
        work: what is submitted.
        cluster: its groups say which nodes may be added.
        states: of its live nodes, as the State API tells them.

    Raises:
        InfeasibleResources: with the arithmetic and the remedy, as for a run on this machine.
    """
    nodes = possible_nodes(cluster, states)
    if not any(node.resources.get("CPU", 0.0) >= cluster.entrypoint_cpus for node in nodes):
        remedy = "Lower it, or leave it out"
        problem = "no node has so many CPUs"
        raise InfeasibleResources(problem, field="entrypoint_cpus", value=cluster.entrypoint_cpus, remedy=remedy)
    if work.sweep is not None:
        from proxygap.sweep.resources import check_sweep  # loads Tune

        check_sweep(work.sweep, nodes)
        return
    for experiment in work.experiments.values():
        check_resources(experiment, nodes)


def possible_nodes(cluster: Cluster, states: Sequence[dict[str, Any]]) -> list[Node]:
    """The live nodes, and as many of each group as there may be beyond its least."""
    alive = [Node(dict(state["resources_total"]), dict(state.get("labels") or {})) for state in states]
    added = [node_of(group) for group in cluster.groups.values() for _ in range(group.most - group.least)]
    return [*alive, *added]


def node_of(group: NodeGroup) -> Node:
    """What a node of a group offers, by Ray's names."""
    resources = {"CPU": float(group.cpus), "memory": group.memory_gib * 2**30, **group.resources}
    if group.gpus:
        resources["GPU"] = float(group.gpus)
    if group.accelerator_type is not None:
        resources[f"accelerator_type:{group.accelerator_type}"] = 1.0
    return Node(resources, dict(group.labels))
