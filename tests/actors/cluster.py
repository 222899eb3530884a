"""A cluster of several raylets on this machine, with labels and with GPUs that are numbers only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster

H100 = {"accelerator_type:H100": 1.0}
STORE = {"object_store_memory": 120 * 2**20}


@contextlib.contextmanager
def several_nodes(**nodes: Mapping[str, Any]) -> Iterator[Cluster]:
    """Start one raylet per name, labeled ``name``, and join the first, which is the head.

    Args:
        **nodes: arguments of ``Cluster.add_node`` by name, ``labels`` among them.
    """
    (head, first), *others = nodes.items()
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True))
        # Ray writes there which cluster was started last, and that must mislead no one else
        undo.enter_context(mock.patch.dict(os.environ, {"RAY_TMPDIR": folder}))
        bare = {"include_dashboard": False, "dashboard_port": 0}
        cluster = Cluster(initialize_head=True, head_node_args={**bare, **node(head, first)})
        undo.callback(cluster.shutdown)
        for name, options in others:
            cluster.add_node(wait=False, **node(name, options))
        cluster.wait_for_nodes()
        undo.callback(ray.shutdown)
        ray.init(address=cluster.address, namespace="proxygap-tests", log_to_driver=False, logging_level="error")
        yield cluster


def node(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``Cluster.add_node``."""
    return {**STORE, **options, "labels": {**options.get("labels", {}), "name": name}}


def names() -> dict[str, str]:
    """Names of the nodes that are alive, by node id."""
    return {node["NodeID"]: node["Labels"]["name"] for node in ray.nodes() if node["Alive"]}
