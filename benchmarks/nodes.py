"""Several Ray nodes on this machine: raylets of their own, each with its object store, labeled ``node: <number>``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def several_nodes(
    count: int, cpus: int = 4, store_mb: int = 300, resources: dict[str, float] | None = None
) -> Iterator[list[Any]]:
    """A cluster of ``count`` nodes; this process drives from node 0. Yields their node ids."""
    options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": store_mb * 2**20, "resources": resources or {}}
    cluster = Cluster(
        initialize_head=True, head_node_args={**options, "include_dashboard": False, "labels": {"node": "0"}}
    )
    try:
        ray.init(address=cluster.address, namespace="bench", logging_level="error", log_to_driver=False)
        for number in range(1, count):
            cluster.add_node(**options, labels={"node": str(number)}, wait=False)
        cluster.wait_for_nodes()
        yield [node["NodeID"] for node in sorted(ray.nodes(), key=lambda node: int(node["Labels"]["node"]))]
    finally:
        ray.shutdown()
        cluster.shutdown()
