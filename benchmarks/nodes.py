"""Several Ray nodes on this machine: raylets of their own, each with its object store, labeled ``node: <number>``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextlib.contextmanager
def several_nodes(count: int, cpus: int = 4, store_mb: int = 300) -> Iterator[list[Any]]:
    """A cluster of ``count`` nodes; this process drives from node 0. Yields their node ids."""
    options = {"num_cpus": cpus, "object_store_memory": store_mb * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**options, "labels": {"node": "0"}})
    try:
        ray.init(address=cluster.address, namespace="bench", logging_level="error", log_to_driver=False)
        options.pop("include_dashboard")
        for number in range(1, count):
            cluster.add_node(**options, labels={"node": str(number)}, wait=False)
        cluster.wait_for_nodes()
        yield [node["NodeID"] for node in sorted(ray.nodes(), key=lambda node: int(node["Labels"]["node"]))]
    finally:
        ray.shutdown()
        cluster.shutdown()
