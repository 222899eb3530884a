"""The workloads of the long runs: minutes of work, so that many kills fall into each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.actors.cluster import several_nodes
from tests.chaos.killer import VICTIMS, NobodyThere, actors, kill, pid_of
from tests.chaos.long.siege import Blow, Front
from tests.chaos.workloads import CONTROL, LANGUAGE, hosted

LONG_CONTROL = {**CONTROL, "loop": {**CONTROL["loop"], "real_steps": 2000}, "probe": {**CONTROL["probe"], "every": 100}}
LONG_LANGUAGE = {
    **LANGUAGE,
    "loop": {**LANGUAGE["loop"], "real_steps": 2400},
    "probe": {**LANGUAGE["probe"], "every": 80},
}
ENDLESS = {"max_restarts": -1}
STUBBORN = {"max_failures": 100}
WATCHFUL = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
WORKERS = 3
WORKER: dict[str, Any] = {"num_cpus": 1, "labels": {"pool": "models"}}


def blow(victim: str) -> Blow:
    """SIGKILL of whoever has that part."""
    return lambda: kill(VICTIMS[victim]())


def blows(*victims: str) -> dict[str, Blow]:
    """SIGKILL of each."""
    return {victim: blow(victim) for victim in victims}


def on_one_node() -> list[Front]:
    """Fronts that share a Ray of four logical CPUs."""
    runners = {"env_runners": 2, "cpus_per_runner": 0.5}
    both_seeds = {"parallel_seeds": 2, "cpus_per_seed": 0.5, **STUBBORN}
    any_seed = {f"seed {seed}": (lambda name=f"/seed-{seed}": kill(pid_of("SeedWorker", name)())) for seed in (0, 1)}
    return [
        Front("dynamics", LONG_CONTROL, {"serve": hosted("dynamics", hosts=2, **ENDLESS)}, blows("dynamics host")),
        Front(
            "rewards",
            LONG_LANGUAGE,
            {"serve": hosted("reward", "reference", **ENDLESS)},
            blows("reward host", "reference host"),
        ),
        Front("runners", LONG_CONTROL, {"collect": runners, "compute": STUBBORN}, blows("env runner"), equal=False),
        Front("answers", LONG_LANGUAGE, {"collect": runners, "compute": STUBBORN}, blows("answer runner"), equal=False),
        Front("learner", LONG_CONTROL, {"optimize": {"learners": 1}, "compute": STUBBORN}, blows("learner")),
        Front("seeds", LONG_CONTROL, {"compute": both_seeds}, any_seed, seeds=(0, 1)),
    ]


@contextmanager
def on_many_nodes(rng: random.Random) -> Iterator[list[Front]]:
    """A head and three workers; a worker that is killed is replaced by a new one."""
    head = {"num_cpus": 1, "_system_config": WATCHFUL}
    with several_nodes(head=head, one=WORKER, two=WORKER, three=WORKER) as cluster:
        serve = hosted("dynamics", cpus=1.0, labels={"pool": "models"}, deadline_s=300.0, **ENDLESS)
        seeds = {"parallel_seeds": 2, "cpus_per_seed": 1.0, "labels": {"pool": "models"}, **STUBBORN}
        node = {"worker node": lambda: _replace_one(cluster, rng)}
        yield [
            Front("hosts on nodes", LONG_CONTROL, {"serve": serve, "compute": STUBBORN}, node),
            Front(
                "seeds on nodes", LONG_CONTROL, {"compute": seeds}, node, seeds=(0, 1), record={"storage": "{folder}-s"}
            ),
        ]


def _replace_one(cluster: Cluster, rng: random.Random) -> None:
    """SIGKILL of a worker's raylet that has work to do; then new nodes join until there are `WORKERS` again."""
    here = ray.get_runtime_context().get_node_id()
    busy = sorted({each["Address"]["NodeID"] for each in actors() if each["State"] == "ALIVE"} - {here})
    chosen = rng.choice(busy) if busy else ""
    struck = [node for node in cluster.list_all_nodes() if node.node_id == chosen]
    for victim in struck:
        cluster.remove_node(victim, allow_graceful=False)
    for _ in range(WORKERS + 1 - sum(node["Alive"] for node in ray.nodes())):
        cluster.add_node(**{**WORKER, "labels": {**WORKER["labels"], "name": f"new-{rng.random():.9f}"}})
    if not struck:
        raise NobodyThere("no worker has anything to do")
