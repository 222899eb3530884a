"""Where hosts go: what they ask for, whether any cluster state could give it, and the reservation itself.

A request that can never be met is refused before anything starts. All tests here are necessary conditions, so a
feasible request is never refused; what they cannot see (resources that exist but are busy) ends in a timeout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from proxygap.base.errors import HostFailed, InfeasibleResources
from proxygap.serve.growth import GROWTH_S, addable_nodes
from proxygap.serve.nodes import (
    NODE_ID,
    SLACK,
    Bundle,
    Node,
    check_labels,
    check_names,
    listed,
    listed_labels,
    ray_selector,
    summed,
)
from proxygap.serve.settings import Hosting
from proxygap.serve.shortage import NONE, Shortage, shortage

__all__ = [
    "Bundle",
    "Node",
    "bundle",
    "check_feasible",
    "check_request",
    "cluster_nodes",
    "driver_node",
    "live_nodes",
    "label_selectors",
    "local_gpus",
    "local_totals",
    "placement_group_of",
    "reserve",
    "scheduling",
    "shortage",
]

_FIELDS = {"CPU": "cpus", "GPU": "gpus", "labels": "labels", "node": "strategy"}


def bundle(hosting: Hosting) -> Bundle:
    """What one host reserves. A host that asks for nothing reserves one byte of memory, so that it can be placed."""
    asked = {"CPU": hosting.cpus, "GPU": hosting.gpus, **hosting.resources}
    if hosting.accelerator_type is not None:
        asked[f"accelerator_type:{hosting.accelerator_type}"] = 0.001  # Ray's own mark of a node's accelerator
    resources = {name: amount for name, amount in asked.items() if amount > 0} or {"memory": 1.0}
    return Bundle(resources, hosting.labels)


def check_request(hosting: Hosting, field: str) -> None:
    """Refuse labels that are no selectors, and custom resources by names that are Ray's own.

    Raises:
        InvalidExperiment: naming the field below ``field``.
    """
    check_labels(hosting.labels, f"{field}.labels")
    check_names(hosting.resources, f"{field}.resources")


def check_feasible(
    hosting: Hosting,
    *,
    field: str,
    hosts: int | None = None,
    nodes: Sequence[Node] | None = None,
    reserved: Mapping[str, float] | None = None,
) -> None:
    """Refuse hosts that the cluster can never hold, within a second and before any of them is started.

    Args:
        hosting: what is asked for.
        field: dotted field of ``hosting`` in the experiment, e.g. ``serve.dynamics``.
        hosts: how many hosts; default: ``hosting.hosts``.
        nodes: default: the live nodes of the connected cluster, or this machine.
        reserved: what others hold for the whole run (a trial's own bundle), taken off the cluster's total.

    Raises:
        InfeasibleResources: naming the missing resource or label, what is asked, what there is, and the remedy.
        InvalidExperiment: labels that are no selectors.
    """
    count = hosting.hosts if hosts is None else hosts
    if count == 0:
        return
    check_request(hosting, field)
    nodes = cluster_nodes() if nodes is None else nodes
    bundles = [bundle(hosting)] * count
    found = shortage(bundles, hosting.strategy, nodes)
    if found == NONE and reserved:
        found = _shortage_beside(bundles, reserved, nodes)
    if found != NONE:
        raise _infeasible(found, hosting, field, nodes)


def _shortage_beside(bundles: Sequence[Bundle], reserved: Mapping[str, float], nodes: Sequence[Node]) -> Shortage:
    total, capacity = summed(each.resources for each in bundles), summed(node.resources for node in nodes)
    for name, amount in total.items():
        held = reserved.get(name, 0.0)
        if capacity.get(name, 0.0) + SLACK < amount + held:
            have = capacity.get(name, 0.0)
            return name, f"the hosts ask for {name} {amount:g}, the run itself holds {held:g}, the cluster has {have:g}"
    return NONE


def _infeasible(found: Shortage, hosting: Hosting, field: str, nodes: Sequence[Node]) -> InfeasibleResources:
    name, sentence = found
    if name.startswith("accelerator_type:"):
        option, need = "accelerator_type", f"a node with {name}"
    elif name in hosting.resources:
        option, need = "resources", f"a node with {name}"
    else:
        option, need = _FIELDS.get(name, "hosts"), {"node": "nodes"}.get(name, f"a node with {name}")
    if name == "labels":
        need = f"a node with {listed_labels(hosting.labels)}"
    lower = "" if name == "labels" else f"lower {field}.hosts, "
    return InfeasibleResources(
        f"{sentence} ({_shown(nodes)})",
        field=f"{field}.{option}",
        value=getattr(hosting, option),
        remedy=f"change {field}.{option}, {lower}or add {need}",
    )


def _shown(nodes: Sequence[Node]) -> str:
    hidden = ("node:", "object_store", "memory")
    total = summed(node.resources for node in nodes)
    shown = {name: amount for name, amount in total.items() if not name.startswith(hidden)}
    return f"nodes: {len(nodes)}; in total {listed(shown) or 'nothing'}"


def cluster_nodes() -> list[Node]:
    """Nodes of the connected cluster, live ones and those that it may add; this machine when Ray is not connected."""
    import ray

    return [*live_nodes(), *addable_nodes()] if ray.is_initialized() else [Node(local_totals())]


def live_nodes() -> list[Node]:
    """Nodes that the connected cluster has now."""
    import ray

    return [Node(dict(node["Resources"]), dict(node["Labels"])) for node in ray.nodes() if node["Alive"]]


def driver_node() -> Node | None:
    """The node of this process; None while Ray is not connected."""
    import ray

    if not ray.is_initialized():
        return None
    here = ray.get_runtime_context().get_node_id()
    return next((node for node in live_nodes() if node.labels.get(NODE_ID) == here), None)


def local_totals() -> dict[str, float]:
    """What a Ray started on this machine would offer: CPUs, GPUs and their type. Starts nothing."""
    totals = {"CPU": float(os.cpu_count() or 1), "memory": float(2**30)}
    if gpus := local_gpus():
        totals["GPU"] = float(gpus)
        if kind := _gpu_manager().get_current_node_accelerator_type():
            totals[f"accelerator_type:{kind}"] = 1.0
    return totals


def local_gpus() -> int:
    """GPUs that this machine has, found as Ray finds them."""
    manager = _gpu_manager()
    return manager.get_current_node_num_accelerators() if manager is not None else 0


def _gpu_manager() -> Any:
    from ray._private.accelerators import get_accelerator_manager_for_resource  # ray.init asks the same function

    return get_accelerator_manager_for_resource("GPU")


def placement_group_of(bundles: Sequence[Bundle], strategy: str, name: str = "") -> Any:
    """Begin to reserve bundles, each on a node with its labels."""
    from ray.util import placement_group

    resources = [dict(each.resources) for each in bundles]
    return placement_group(resources, strategy=strategy, name=name, bundle_label_selector=label_selectors(bundles))


def label_selectors(bundles: Sequence[Bundle]) -> list[dict[str, str]] | None:
    """What Ray takes as ``bundle_label_selector``; None where no bundle asks for a label."""
    found = [ray_selector(each.labels) for each in bundles]
    return found if any(found) else None


def reserve(hosting: Hosting, hosts: int, *, name: str, field: str, timeout_s: float) -> Any:
    """A placement group with one bundle per host, ready for use; nothing stays reserved on failure.

    Raises:
        InfeasibleResources: at once where the cluster can never hold the hosts; after ``timeout_s`` where it is busy,
            or after `GROWTH_S` where it first has to add nodes.
        HostFailed: another pool of this name is alive.
    """
    import ray
    from ray.util import remove_placement_group

    check_feasible(hosting, field=field, hosts=hosts)
    try:
        group = placement_group_of([bundle(hosting)] * hosts, hosting.strategy, name)
    except ray.exceptions.RaySystemError as error:
        if "already exists" not in str(error):
            raise
        remedy = "close the other pool first, or run under another name"
        raise HostFailed("another pool of this name is alive", field=field, value=name, remedy=remedy) from error
    if shortage([bundle(hosting)] * hosts, hosting.strategy, live_nodes()) != NONE:
        timeout_s = max(timeout_s, GROWTH_S)
    if not group.wait(timeout_s):
        remove_placement_group(group)
        free = {key: amount for key, amount in ray.available_resources().items() if key in ("CPU", "GPU")}
        raise InfeasibleResources(
            f"the cluster could hold {hosts} x ({bundle(hosting)}) but is busy: after {timeout_s:g} s "
            f"it has {listed(free) or 'no CPU'} free",
            field=f"{field}.hosts",
            value=hosts,
            remedy="wait for other runs to end, lower the request, or add nodes",
        )
    return group


def scheduling(group: Any, index: int) -> Any:
    """The scheduling strategy that puts host ``index`` on its own bundle, and its children anywhere."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(
        placement_group=group, placement_group_bundle_index=index, placement_group_capture_child_tasks=False
    )
