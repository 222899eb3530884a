"""A node is lost with what ran on it: hosts come back on another one, and seeds are taken up there from storage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from proxygap.loops.run import run
from tests.actors.cluster import names, several_nodes
from tests.chaos import aftermath
from tests.chaos.aftermath import check_all_free, seed_alone
from tests.chaos.conftest import Tell
from tests.chaos.killer import Killer, actors, events, ray_totals, seeded, written
from tests.chaos.table import Row
from tests.chaos.workloads import CONTROL, experiment, hosted

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]
SEED = 5
WATCHFUL = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""Ray declares a silent node dead after 2 s instead of its half a minute; a test has less time than a run."""
WORKER: dict[str, Any] = {"num_cpus": 1, "labels": {"pool": "models"}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with several_nodes(head={"num_cpus": 1, "_system_config": WATCHFUL}, one=WORKER, two=WORKER) as nodes:
        yield nodes
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clean(cluster: Cluster, runs: Path) -> dict[int, list[dict[str, str]]]:
    """What undisturbed seeds measure in this very process."""
    workload = experiment(CONTROL, runs / "clean", seeds=(0, 1))
    return {seed: aftermath.readings(seed_alone(workload, seed)) for seed in (0, 1)}


def node_of(class_name: str, name: str) -> str:
    """Id of the node where an actor lives."""
    (found,) = actors(class_name, name)
    return str(found["Address"]["NodeID"])


def lose(cluster: Cluster, node_id: str) -> None:
    """SIGKILL of a raylet and of all that it had started; a new node of the same kind joins."""
    (victim,) = [node for node in cluster.list_all_nodes() if node.node_id == node_id]
    cluster.remove_node(victim, allow_graceful=False)


def test_hosts_of_a_lost_node_come_back_on_another(
    cluster: Cluster, runs: Path, clean: dict[int, list[dict[str, str]]], tell: Tell
) -> None:
    total, was = ray_totals(), ""

    def blow() -> None:
        nonlocal was
        was = node_of("HostActor", "/dynamics-")
        lose(cluster, was)

    strike = seeded("worker node of a host", SEED, range(80, 160), blow=blow)
    killer = Killer(strike)
    serve = hosted("dynamics", labels={"pool": "models"}, cpus=1.0)
    began = time.monotonic()
    rows = seed_alone(experiment(CONTROL, runs / "hosts", serve=serve), on_progress=killer)
    took = time.monotonic() - began
    killer.check()
    assert was not in names()
    assert aftermath.readings(rows) == clean[0]
    assert len(events(rows, "host_restarted")) + len(events(rows, "recovered")) == 1
    check_all_free({**total, "CPU": total["CPU"] - 1})
    tell(Row(strike.victim, (strike.dealt_with_s(rows),), True, True, 0.0, took))


def test_a_seed_of_a_lost_node_is_taken_up_on_another_from_storage(
    cluster: Cluster, runs: Path, tmp_path: Path, clean: dict[int, list[dict[str, str]]], tell: Tell
) -> None:
    """Each worker has room for one seed, so that the lost one waits until the other has finished."""
    cluster.add_node(**{**WORKER, "labels": {**WORKER["labels"], "name": "three"}})
    cluster.wait_for_nodes()
    strike = seeded("worker node of a seed", SEED, range(2, 5))
    strike.blow = lambda: lose(cluster, node_of("SeedWorker", "/seed-0"))
    strike.begin(written(tmp_path / "runs", 0, strike.step))
    record = {
        "folder": str(tmp_path / "runs"),
        "storage": str(tmp_path / "storage"),
    }
    compute = {"parallel_seeds": 2, "cpus_per_seed": 1.0, "labels": {"pool": "models"}}
    began = time.monotonic()
    summary = run(experiment(CONTROL, runs, record=record, compute=compute, seeds=(0, 1)))
    took = time.monotonic() - began
    found = {seed: aftermath.finished(summary, seed) for seed in (0, 1)}
    strike.end()
    assert {seed: aftermath.readings(rows) for seed, rows in found.items()} == clean
    assert [each["attempt"] for each in events(found[0], "recovered")] == [1]
    assert not events(found[1], "recovered")
    check_all_free(ray_totals())
    tell(Row(strike.victim, (strike.dealt_with_s(found[0]),), True, True, 0.0, took))
