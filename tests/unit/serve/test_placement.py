"""Feasibility on plain lists of nodes, worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import InfeasibleResources
from proxygap.serve.placement import bundle, check_feasible, local_totals, shortage
from proxygap.serve.settings import Hosting

NODE = {"CPU": 4.0, "memory": 1e9}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0, "memory": 1e9}


@pytest.mark.parametrize(
    ("bundles", "strategy", "nodes", "resource"),
    [
        ([{"CPU": 4.0}], "PACK", [NODE], ""),
        ([{"CPU": 2.0}] * 4, "PACK", [NODE, NODE], ""),
        ([{"CPU": 5.0}], "PACK", [NODE, NODE], "CPU"),  # nine CPUs, but no node of five
        ([{"CPU": 3.0}] * 3, "PACK", [NODE] * 2, "CPU"),  # more than there is
        ([{"CPU": 2.5}] * 3, "PACK", [NODE] * 2, "CPU"),  # 7.5 of 8, but one fits on each node
        ([{"CPU": 1.0, "GPU": 1.0}], "SPREAD", [NODE], "GPU"),
        ([{"CPU": 8.0, "GPU": 1.0}], "SPREAD", [NODE, GPU_NODE], ""),
        ([{"CPU": 6.0, "GPU": 1.0}], "PACK", [{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], "CPU"),  # never together
        ([{"GPU": 0.5}] * 4, "PACK", [GPU_NODE], ""),
        ([{"GPU": 0.5}] * 5, "PACK", [GPU_NODE], "GPU"),
        ([{"GPU": 1.0, "accelerator_type:H100": 0.001}] * 2, "PACK", [GPU_NODE], ""),
        ([{"accelerator_type:A100": 0.001}], "PACK", [GPU_NODE], "accelerator_type:A100"),
        ([{"CPU": 2.0}] * 2, "STRICT_PACK", [NODE], ""),
        ([{"CPU": 3.0}] * 2, "STRICT_PACK", [NODE, NODE], "node"),
        ([{"CPU": 1.0}] * 2, "STRICT_SPREAD", [NODE], "node"),
        ([{"CPU": 1.0}] * 2, "STRICT_SPREAD", [NODE, NODE], ""),
        ([{"CPU": 1.0}, {"GPU": 1.0}], "STRICT_SPREAD", [GPU_NODE, NODE], ""),  # needs the second choice for the first
        ([{"GPU": 1.0}] * 2, "STRICT_SPREAD", [GPU_NODE, NODE], "node"),
        ([{"CPU": 1.0}], "PACK", [], "CPU"),
    ],
)
def test_shortage(bundles: Any, strategy: str, nodes: Any, resource: str) -> None:
    name, sentence = shortage(bundles, strategy, nodes)
    assert name == resource, sentence
    assert bool(sentence) == bool(resource)


def _placeable(bundles: list[dict[str, float]], strategy: str, nodes: list[dict[str, float]]) -> bool:
    """Every assignment tried: the slow second implementation."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        if strategy == "STRICT_PACK" and len(set(places)) > 1:
            continue
        if strategy == "STRICT_SPREAD" and len(set(places)) < len(places):
            continue
        used = [
            {key: sum(b.get(key, 0.0) for b, place in zip(bundles, places, strict=True) if place == n) for key in node}
            for n, node in enumerate(nodes)
        ]
        if all(used[n][key] <= node[key] for n, node in enumerate(nodes) for key in node):
            return True
    return False


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_hosts_of_one_kind_are_refused_exactly_when_no_assignment_exists(strategy: str) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        nodes = [
            {"CPU": float(rng.integers(0, 6)), "GPU": float(rng.integers(0, 3))} for _ in range(rng.integers(1, 4))
        ]
        asked = {"CPU": float(rng.integers(1, 4)), "GPU": float(rng.integers(1, 3))}
        if rng.random() < 0.5:
            del asked["GPU"]
        bundles = [asked] * int(rng.integers(1, 5))
        feasible = _placeable(bundles, strategy, nodes)
        assert (shortage(bundles, strategy, nodes)[0] == "") == feasible, (bundles, nodes)
        seen.add(feasible)
    assert seen == {True, False}


def test_a_bundle_holds_what_is_asked_and_is_never_empty() -> None:
    assert bundle(Hosting(cpus=0.5)) == {"CPU": 0.5}
    asked = Hosting(cpus=0.0, gpus=1.0, accelerator_type="H100")
    assert bundle(asked) == {"GPU": 1.0, "accelerator_type:H100": 0.001}
    assert bundle(Hosting(cpus=0.0)) == {"memory": 1.0}


def test_the_refusal_names_field_value_and_remedy() -> None:
    with pytest.raises(InfeasibleResources) as caught:
        check_feasible(Hosting(hosts=2, gpus=1.0), field="serve.dynamics", nodes=[NODE])
    assert str(caught.value) == (
        "serve.dynamics.gpus = 1.0: a host asks for GPU 1 and no node has more than 0 (nodes: 1; in total CPU 4). "
        "change serve.dynamics.gpus, lower serve.dynamics.hosts, or add a node with GPU"
    )


def test_what_the_run_itself_holds_is_counted() -> None:
    hosting = Hosting(hosts=2, cpus=2.0)
    check_feasible(hosting, field="serve.dynamics", nodes=[NODE])
    with pytest.raises(InfeasibleResources, match="the run itself holds 1"):
        check_feasible(hosting, field="serve.dynamics", nodes=[NODE], reserved={"CPU": 1.0})


def test_no_hosts_ask_for_nothing() -> None:
    check_feasible(Hosting(hosts=0, gpus=8.0), field="serve.dynamics", nodes=[])


def test_this_machine_has_a_cpu() -> None:
    assert local_totals()["CPU"] >= 1
    with pytest.raises(InfeasibleResources, match="CPU"):
        check_feasible(Hosting(hosts=1, cpus=1e6), field="serve.dynamics", nodes=[local_totals()])
