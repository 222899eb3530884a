"""Feasibility on plain lists of nodes, worked out by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import InfeasibleResources, InvalidExperiment
from proxygap.serve.growth import VARIABLE, addable_nodes, addable_text
from proxygap.serve.nodes import matches, ray_selector
from proxygap.serve.placement import Bundle, Node, bundle, check_feasible, local_totals, shortage
from proxygap.serve.settings import Hosting

NODE = {"CPU": 4.0, "memory": 1e9}
GPU_NODE = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0, "memory": 1e9}


def plain(bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> Any:
    return [Bundle(each) for each in bundles], [Node(each) for each in nodes]


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
    bundles, nodes = plain(bundles, nodes)
    name, sentence = shortage(bundles, strategy, nodes)
    assert name == resource, sentence
    assert bool(sentence) == bool(resource)


def _placeable(bundles: list[Bundle], strategy: str, nodes: list[Node]) -> bool:
    """Every assignment tried: the slow second implementation."""
    for places in itertools.product(range(len(nodes)), repeat=len(bundles)):
        if strategy == "STRICT_PACK" and len(set(places)) > 1:
            continue
        if strategy == "STRICT_SPREAD" and len(set(places)) < len(places):
            continue
        if any(_missing(each, nodes[place]) for each, place in zip(bundles, places, strict=True)):
            continue
        if all(
            _holds(node, [b for b, place in zip(bundles, places, strict=True) if place == n])
            for n, node in enumerate(nodes)
        ):
            return True
    return False


def _missing(each: Bundle, node: Node) -> bool:
    return any(node.labels.get(key) != value for key, value in each.labels.items())


def _holds(node: Node, bundles: list[Bundle]) -> bool:
    return all(sum(b.resources.get(key, 0.0) for b in bundles) <= node.resources[key] for key in node.resources)


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_hosts_of_one_kind_are_refused_exactly_when_no_assignment_exists(strategy: str) -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        nodes = [_random_node(rng) for _ in range(rng.integers(1, 4))]
        asked = {"CPU": float(rng.integers(1, 4)), "GPU": float(rng.integers(1, 3))}
        if rng.random() < 0.5:
            del asked["GPU"]
        bundles = [Bundle(asked, {} if rng.random() < 0.5 else {"pool": "ab"[rng.integers(2)]})] * int(
            rng.integers(1, 5)
        )
        feasible = _placeable(bundles, strategy, nodes)
        assert (shortage(bundles, strategy, nodes)[0] == "") == feasible, (bundles, nodes)
        seen.add((feasible, bool(bundles[0].labels)))
    assert len(seen) == 4


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
def test_mixed_pools_that_can_be_placed_are_never_refused(strategy: str) -> None:
    rng, seen = np.random.default_rng(1), set()
    for _ in range(200):
        nodes = [_random_node(rng) for _ in range(rng.integers(1, 4))]
        bundles = [
            Bundle({"CPU": float(rng.integers(1, 3))}, {} if rng.random() < 0.4 else {"pool": "ab"[rng.integers(2)]})
            for _ in range(rng.integers(1, 5))
        ]
        feasible, refused = _placeable(bundles, strategy, nodes), bool(shortage(bundles, strategy, nodes)[1])
        assert not (feasible and refused), (bundles, nodes)
        seen.add((feasible, refused))
    assert {(True, False), (False, True)} <= seen


def _random_node(rng: np.random.Generator) -> Node:
    labels = [{}, {"pool": "a"}, {"pool": "b"}][rng.integers(3)]
    return Node({"CPU": float(rng.integers(0, 6)), "GPU": float(rng.integers(0, 3))}, labels)


@pytest.mark.parametrize(
    ("selector", "taken"),
    [
        ("a", {"a"}),
        ("!a", {"b", "c", None}),
        ("in(a,b)", {"a", "b"}),
        ("in( a , b )", {"a", "b"}),
        ("!in(a,b)", {"c", None}),
        ("in(c)", {"c"}),
    ],
)
def test_selectors_mean_what_they_mean_to_ray(selector: str, taken: set[str | None]) -> None:
    nodes = {value: Node({"CPU": 1.0}, {} if value is None else {"pool": value}) for value in ("a", "b", "c", None)}
    assert {value for value, node in nodes.items() if matches({"pool": selector}, node)} == taken
    assert " " not in ray_selector({"pool": selector})["pool"]


@pytest.mark.parametrize("text", ["", "!", "in()", "in(a,)", "in(a", "!!a", "-a", "a b", "(a)", "a" * 64, "!(a,b)"])
def test_what_is_no_selector_is_refused_with_its_forms(text: str) -> None:
    with pytest.raises(InvalidExperiment, match=r"serve\.reward\.labels\.pool = .*no selector.*in\(a,b\)"):
        check_feasible(Hosting(hosts=1, labels={"pool": text}), field="serve.reward", nodes=[Node(NODE)])


def test_labels_that_no_node_has_together_are_named_with_their_values() -> None:
    nodes = [Node(NODE, {"pool": "reward", "zone": "b"}), Node(NODE, {"pool": "policy", "zone": "a"}), Node(NODE)]
    asked = Hosting(hosts=1, labels={"pool": "reward", "zone": "a"})
    with pytest.raises(InfeasibleResources) as caught:
        check_feasible(asked, field="serve.reward", nodes=nodes)
    assert (
        "no single node has pool=reward and zone=a: of 3, pool is reward on 1, policy on 1; of 3, zone is b on 1"
        in str(caught.value)
    )
    assert caught.value.field == "serve.reward.labels"


def test_strict_placement_counts_fitting_nodes_only() -> None:
    pool, other = Node(NODE, {"pool": "a"}), Node({"CPU": 64.0}, {"pool": "b"})
    spread = Hosting(hosts=2, labels={"pool": "a"}, strategy="STRICT_SPREAD")
    check_feasible(spread, field="serve.reward", nodes=[pool, other, pool])
    with pytest.raises(InfeasibleResources, match="STRICT_SPREAD asks for 2 nodes, one per host, and only 1 would do"):
        check_feasible(spread, field="serve.reward", nodes=[pool, other, other])
    packed = Hosting(hosts=3, cpus=2.0, labels={"pool": "a"}, strategy="STRICT_PACK")
    with pytest.raises(
        InfeasibleResources, match="STRICT_PACK asks for one node with CPU 6 on pool=a and there is none"
    ):
        check_feasible(packed, field="serve.reward", nodes=[pool, pool, other])


def test_nodes_that_may_be_added_are_read_as_they_were_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, plain = Node({"CPU": 8.0, "GPU": 1.0}, {"pool": "a"}), Node({"CPU": 2.0})
    monkeypatch.setenv(VARIABLE, addable_text([(pool, 2), (plain, 1), (pool, 0)]))
    assert addable_nodes() == [pool, pool, plain]
    for text in (
        "{",
        "[1]",
        '[{"resources": {"CPU": 1}}]',
        '{"a": 1}',
        '[{"resources": [], "labels": {}, "count": 1}]',
    ):
        monkeypatch.setenv(VARIABLE, text)
        with pytest.raises(InvalidExperiment, match=f"{VARIABLE} = .*does not describe nodes.*or unset it"):
            addable_nodes()
    monkeypatch.delenv(VARIABLE)
    assert addable_nodes() == []


def test_a_thousand_hosts_on_as_many_nodes_are_checked_in_no_time() -> None:
    hosting, nodes = Hosting(hosts=1024, strategy="STRICT_SPREAD"), [Node(NODE, {"pool": "a"})] * 1023
    with pytest.raises(InfeasibleResources, match="only 1023 would do"):
        check_feasible(hosting, field="serve.reward", nodes=nodes)


def test_a_bundle_holds_what_is_asked_and_is_never_empty() -> None:
    assert bundle(Hosting(cpus=0.5)) == Bundle({"CPU": 0.5})
    asked = Hosting(cpus=0.0, gpus=1.0, accelerator_type="H100", labels={"pool": "a"}, resources={"hbm": 2.0})
    assert bundle(asked) == Bundle({"GPU": 1.0, "hbm": 2.0, "accelerator_type:H100": 0.001}, {"pool": "a"})
    assert bundle(Hosting(cpus=0.0)) == Bundle({"memory": 1.0})


def test_the_refusal_names_field_value_and_remedy() -> None:
    with pytest.raises(InfeasibleResources) as caught:
        check_feasible(Hosting(hosts=2, gpus=1.0), field="serve.dynamics", nodes=[Node(NODE)])
    assert str(caught.value) == (
        "serve.dynamics.gpus = 1.0: a host asks for GPU 1 and no node has more than 0 (nodes: 1; in total CPU 4). "
        "change serve.dynamics.gpus, lower serve.dynamics.hosts, or add a node with GPU"
    )


def test_what_the_run_itself_holds_is_counted() -> None:
    hosting = Hosting(hosts=2, cpus=2.0)
    check_feasible(hosting, field="serve.dynamics", nodes=[Node(NODE)])
    with pytest.raises(InfeasibleResources, match="the run itself holds 1"):
        check_feasible(hosting, field="serve.dynamics", nodes=[Node(NODE)], reserved={"CPU": 1.0})


def test_no_hosts_ask_for_nothing() -> None:
    check_feasible(Hosting(hosts=0, gpus=8.0), field="serve.dynamics", nodes=[])


def test_this_machine_has_a_cpu() -> None:
    assert local_totals()["CPU"] >= 1
    with pytest.raises(InfeasibleResources, match="CPU"):
        check_feasible(Hosting(hosts=1, cpus=1e6), field="serve.dynamics", nodes=[Node(local_totals())])
