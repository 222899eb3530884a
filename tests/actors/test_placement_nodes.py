"""Six raylets with pools: where hosts, seeds, runners and Learners land, node by node, and what travels there.

The GPUs are numbers that the nodes were started with; torch here is a build for CPUs, which the hosts report.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table, remove_placement_group

from proxygap.base.errors import InfeasibleResources
from proxygap.base.protocols import State
from proxygap.experiment import Experiment, validate
from proxygap.loops.resources import check_resources, seed_options
from proxygap.serve.growth import VARIABLE, addable_text
from proxygap.serve.nodes import Node
from proxygap.serve.pool import HostPool
from proxygap.serve.settings import Hosting
from proxygap.sweep.load import load_sweep
from proxygap.sweep.resources import check_sweep, trial_bundles
from proxygap.testing.hosted import affine_recipe
from tests.actors.cluster import H100, names, node, several_nodes
from tests.loops.command import SMALL
from tests.loops.test_language_loops import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

NODES: dict[str, dict[str, Any]] = {
    "head": {"num_cpus": 2},
    "dynamics-0": {"num_cpus": 1, "num_gpus": 1, "labels": {"pool": "dynamics"}, "resources": H100},
    "dynamics-1": {"num_cpus": 1, "num_gpus": 1, "labels": {"pool": "dynamics"}, "resources": H100},
    "reward": {"num_cpus": 2, "num_gpus": 2, "labels": {"pool": "reward"}, "resources": {"learner": 1.0}},
    "reference": {"num_cpus": 2, "labels": {"pool": "reference"}, "resources": {"simulator": 2.0}},
    "policy": {"num_cpus": 1, "labels": {"pool": "policy"}},
}
CONTROL = {
    **SMALL,
    "collect": {"random_steps": 60, "env_runners": 2, "cpus_per_runner": 1.0},
    "optimize": {"hidden": [256, 256], "batch_size": 32, "learners": 1},
    "compute": {
        "labels": {"pool": "policy"},
        "runner_resources": {"simulator": 1.0},
        "learner_resources": {"learner": 1.0},
    },
    "serve": {
        "dynamics": {
            "hosts": 2,
            "cpus": 0.5,
            "gpus": 0.5,
            "accelerator_type": "H100",
            "labels": {"pool": "dynamics"},
            "strategy": "SPREAD",
        }
    },
}
ANSWERS = {
    **{name: section for name, section in TINY.items() if section is not None},
    "compute": {"labels": {"pool": "policy"}},
    "serve": {
        "reward": {"hosts": 2, "cpus": 0.5, "gpus": 0.5, "labels": {"pool": "!in(dynamics, policy)"}},
        "reference": {"hosts": 1, "labels": {"pool": "reference"}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    with several_nodes(**NODES) as nodes:
        yield nodes


def stored(name: str) -> tuple[int, int]:
    """Objects that the store of a node has taken in so far, of its own workers and of other nodes, and their bytes."""
    node = next(node for node in ray.nodes() if node["Labels"]["name"] == name)
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False).store_stats
    return stats.cumulative_created_objects, stats.cumulative_created_bytes


def seed_process(experiment: Experiment, rounds: int) -> dict[str, Any]:
    """A run of one seed, as the process of a seed has it: where everything is while it stands."""
    loop: Any = experiment.loop.start(experiment, 0)
    try:
        for _ in range(rounds):
            loop.train()
        found = {"events": list(loop.events), "steps": loop.clocks.real_step, "places": places()}
        return {**found, "seed": here(), **(pushed(loop) if experiment.collect.env_runners else {})}
    finally:
        loop.stop()


def here() -> str:
    return names()[ray.get_runtime_context().get_node_id()]


def places() -> list[tuple[str, str]]:
    """Name, or the class of those without, and node of every actor that is alive."""
    known, alive = names(), ray._private.state.state.actor_table(None, None, "ALIVE").values()
    said = [(each["Name"] or each["ActorClassName"], each["Address"]["NodeID"]) for each in alive]
    return sorted((re.split(r"[/.]", name)[-1], known[node]) for name, node in said)


def pushed(loop: Any) -> dict[str, Any]:
    """What two runners on one other node cost that node when they are given the newest weights."""
    weights = sum(array.nbytes for name, array in loop.newest_module().state_dict().items())
    loop.bring_weights()
    before = stored("reference")
    loop.bring_weights()
    after = stored("reference")
    return {"weights": weights, "objects": after[0] - before[0], "bytes": after[1] - before[1]}


def run_there(sections: dict[str, Any], rounds: int) -> dict[str, Any]:
    experiment = validate(sections)
    process = ray.remote(seed_process).options(**seed_options(experiment, pinned=False))
    found: dict[str, Any] = ray.get(process.remote(experiment, rounds), timeout=200)
    return found


def test_a_run_of_control_is_placed_node_by_node() -> None:
    found = run_there(CONTROL, rounds=2)
    assert found["seed"] == "policy"
    hosts = [(name, node) for name, node in found["places"] if node.startswith("dynamics-")]
    assert {name for name, _ in hosts} == {node for _, node in hosts} == {"dynamics-0", "dynamics-1"}  # one on each
    assert [place for place in found["places"] if place not in hosts] == [
        ("StepRunner", "reference"),
        ("StepRunner", "reference"),
        ("_WrappedExecutable", "reward"),  # RLlib's shell around a remote Learner
    ]
    assert [kind for kind, detail in found["events"] if kind == "host_on_cpu"] == ["host_on_cpu"] * 2
    # two runners on one node, one transfer: not even when the weights are too large to travel inside of a call
    assert (found["objects"], found["bytes"] > 250_000) == (1, True)
    assert found["bytes"] <= 1.01 * found["weights"] + 10_000


def test_a_run_over_answers_has_pools_for_reward_and_reference() -> None:
    found = run_there(ANSWERS, rounds=1)
    assert found["seed"] == "policy"
    assert found["steps"] == 16
    assert found["places"] == [("reference-0", "reference"), ("reward-0", "reward"), ("reward-1", "reward")]


def placed(hosts: int, **options: Any) -> list[str]:
    pool = HostPool(
        [affine_recipe(2.0)] * hosts, Hosting(**options), "run/affine", lambda *_: None, option="serve.affine"
    )
    with contextlib.closing(pool):
        return sorted(names()[health.node_id] for health in pool.health())


POOL = {"labels": {"pool": "dynamics"}}


@pytest.mark.parametrize(
    ("hosts", "options", "nodes"),
    [
        (2, {**POOL, "cpus": 0.5, "strategy": "SPREAD"}, ["dynamics-0", "dynamics-1"]),
        (2, {**POOL, "cpus": 0.5, "strategy": "STRICT_SPREAD"}, ["dynamics-0", "dynamics-1"]),
        (4, {**POOL, "cpus": 0.5, "strategy": "PACK"}, ["dynamics-0"] * 2 + ["dynamics-1"] * 2),
        (2, {"cpus": 1.0, "strategy": "STRICT_PACK", "labels": {"pool": "in(policy, reward)"}}, ["reward"] * 2),
        (1, {"cpus": 1.0, "resources": {"simulator": 2.0}}, ["reference"]),
        (1, {"cpus": 0.0, "labels": {"name": "policy", "pool": "!head"}}, ["policy"]),
        (1, {"cpus": 2.0, "labels": {"pool": "!in(reward, reference)"}}, ["head"]),  # a node without the label as well
    ],
)
def test_hosts_are_placed_as_asked(hosts: int, options: dict[str, Any], nodes: list[str]) -> None:
    assert placed(hosts, **options) == nodes


def test_hosts_of_one_ensemble_share_a_node_where_they_must() -> None:
    (node,) = set(placed(2, **POOL, cpus=0.5, strategy="STRICT_PACK"))
    assert node.startswith("dynamics-")


@pytest.mark.parametrize(
    ("hosts", "options", "message"),
    [
        (1, {"labels": {"pool": "gold"}}, r"labels = .*no node has pool=gold: of 6, pool is dynamics on 2"),
        (3, {**POOL, "cpus": 0.1, "strategy": "STRICT_SPREAD"}, r"strategy = .*STRICT_SPREAD asks for 3 nodes.*only 2"),
        (
            2,
            {**POOL, "cpus": 0.6, "strategy": "STRICT_PACK"},
            r"STRICT_PACK asks for one node with CPU 1.2 on pool=",
        ),
        (1, {"labels": {"pool": "reward"}, "accelerator_type": "H100"}, r"no node with pool=reward has more than 0"),
    ],
)
def test_what_no_node_can_hold_is_refused_within_seconds(hosts: int, options: dict[str, Any], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(InfeasibleResources, match=message):
        placed(hosts, **options)
    assert time.monotonic() - began < 5.0


def test_a_state_travels_once_to_a_node_however_many_hosts_load_it() -> None:
    hosting = Hosting(cpus=0.25, labels={"pool": "reward"})
    pool = HostPool([affine_recipe(2.0)] * 4, hosting, "run/affine", lambda *_: None)
    with contextlib.closing(pool):
        state = State({"factor": np.array(3.0), "shift": np.zeros((1, 500_000))}, {"fits": 0})
        size, before = 4_000_000, stored("reward")
        pool.load_all(1, [state] * 4)
        after = stored("reward")
        pool.load_all(2, [State(dict(state.arrays), state.structure) for _ in range(4)])
        apart = stored("reward")
        assert after[0] - before[0] == 1
        assert size <= after[1] - before[1] < 1.01 * size
        assert apart[0] - after[0] == 4  # what it costs when they are not the same: so the measure tells
        x = {"x_BF": np.ones((1, 500_000))}
        answers = pool.call_all("apply", x)
        assert stored("reward")[1] - apart[1] < (1 + 4) * 1.01 * size  # the input once, four answers
        assert {float(answer["y_BF"].mean()) for answer in answers} == {3.0}


def test_a_pinned_seed_stays_with_its_driver_or_is_refused() -> None:
    experiment = validate({**SMALL, "compute": {"cpus_per_seed": 0.5, "labels": {"pool": "!policy"}}})
    kept = ray.remote(here).options(**seed_options(experiment, pinned=True))
    assert ray.get(kept.remote(), timeout=60) == "head"
    elsewhere = validate({**SMALL, "compute": {"labels": {"pool": "policy"}}})
    with pytest.raises(InfeasibleResources, match=r"compute.labels = .*driver's node.*set record.storage"):
        seed_options(elsewhere, pinned=True)
    with pytest.raises(InfeasibleResources, match=r"compute.labels = .*driver's node.*set record.storage"):
        check_resources(elsewhere)
    check_resources(validate({**SMALL, "compute": {"labels": {"pool": "policy"}}, "record": {"storage": "/tmp/there"}}))


def test_bundles_of_a_trial_lie_on_the_nodes_of_their_labels(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    space = {"imagine.rollouts_per_step": {"kind": "choice", "values": [5, 10]}}
    serve = {"dynamics": {"hosts": 2, "cpus": 0.5, "labels": {"pool": "dynamics"}, "strategy": "SPREAD"}}
    runners = {"collect": {"random_steps": 60, "env_runners": 1}, "compute": {"runner_resources": {"simulator": 1.0}}}
    file.write_text(json.dumps({**SMALL, **runners, "serve": serve, "sweep": {"space": space}}))
    loaded = load_sweep(file)
    check_sweep(loaded)
    group = trial_bundles(loaded.base, loaded.sweep).to_placement_group()
    try:
        assert group.wait(30)
        nodes = placement_group_table(group)["bundles_to_node_id"]
        found = [names()[nodes[index]] for index in range(4)]
        assert (found[:2], sorted(found[2:])) == (["head", "reference"], ["dynamics-0", "dynamics-1"])
    finally:
        remove_placement_group(group)


def test_hosts_wait_for_a_node_that_the_cluster_may_add(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Hosting(cpus=0.5, labels={"pool": "late"})
    with pytest.raises(InfeasibleResources, match="no node has pool=late"):
        HostPool([affine_recipe(2.0)], asked, "run/late", lambda *_: None)
    monkeypatch.setenv(VARIABLE, addable_text([(Node({"CPU": 1.0}, {"pool": "late"}), 1)]))
    with ThreadPoolExecutor(1) as beside:  # Ray starts nodes from the main thread only
        waiting = beside.submit(HostPool, [affine_recipe(2.0)], asked, "run/late", lambda *_: None, ready_timeout_s=0.1)
        time.sleep(1.0)
        assert not waiting.done()
        cluster.add_node(**node("late", {"num_cpus": 1, "labels": {"pool": "late"}}))
        with contextlib.closing(waiting.result(timeout=120)) as pool:
            assert [names()[health.node_id] for health in pool.health()] == ["late"]
