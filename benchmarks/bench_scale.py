"""What the platform loses as nodes are added: 1, 2, 4 and 8 raylets on this machine, weak and strong scaling.

This machine has two cores, so eight nodes' computing cannot be had here. What the nodes do is therefore waiting: a host
sleeps for as long as its rows would take on a GPU, an environment sleeps at each step. What is left, and measured, is
what the platform adds: sending, scheduling, gathering, in one driver. An efficiency is the time of one node over the
time of n (weak: work grows with n), or over n times it (strong: the same work). It is a lower bound for nodes with
cores of their own, because here driver, raylets and workers share two. Only weak scaling is a claim: how far strong
scaling goes is a matter of how small the shares become, and is told.

Bytes of a step by edge, and the times of single operations that docs/scale.md calculates with, stand in the details.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from measure import Ratio, report
from nodes import several_nodes
from proxygap.experiment import validate
from proxygap.serve.pool import HostPool
from proxygap.serve.settings import Hosting
from proxygap.testing.hosted import affine_recipe

NODES = (1, 2, 4, 8)
ROWS, FEATURES, ROW_S, REPEATS = 2048, 64, 0.4 / 2048, 7
STEPS = 96


def timed(work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    work()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def hosts(nodes: int) -> dict[str, list[float]]:
    """One host per node. Weak: each gets all rows; strong: the rows are dealt among them."""
    hosting = Hosting(hosts=nodes, cpus=1, strategy="STRICT_SPREAD")
    pool = HostPool([affine_recipe(2.0)] * nodes, hosting, "scale", lambda *_: None, option="serve.reward")
    x_BF = np.random.default_rng(0).standard_normal((ROWS, FEATURES), dtype=np.float32)
    assert len({health.node_id for health in pool.health()}) == nodes

    def ask(rows: int) -> None:
        parts = [{"x_BF": x_BF[:rows]} for _ in range(nodes)]
        pool.call_all("apply", parts, {"seconds": rows * ROW_S}, 60.0)

    try:
        return {"weak": timed(lambda: ask(ROWS)), "strong": timed(lambda: ask(ROWS // nodes))}
    finally:
        pool.close()


def experiment(runners: int, steps: int) -> Any:
    """PPO with runners on nodes of their own."""
    return validate(
        {
            "name": f"scale-{runners}-{steps}",
            "question": "How fast?",
            "task": {"kind": "gymnasium", "id": "slow_pendulum:SlowPendulum-v0"},
            "outcomes": ["return"],
            "collect": {"env_runners": runners},
            "optimize": {"kind": "ppo", "epochs": 1, "minibatch_size": 1024, "hidden": [16]},
            "loop": {
                "kind": "ppo",
                "steps_per_sample": steps,
                "steps_per_iteration": steps * runners,
                "real_steps": 1000 * steps * runners,
            },
            "probe": {"every": 1000 * steps * runners},
            "compute": {"runner_resources": {"slot": 1.0}},
        }
    )


def runners(nodes: int) -> dict[str, list[float]]:
    """One environment runner per node. Weak: each takes all steps of an iteration; strong: they share them."""
    found = {}
    for name, steps in (("weak", STEPS), ("strong", STEPS // nodes)):
        loop = experiment(nodes, steps).loop.start(experiment(nodes, steps), 0)
        try:
            loop.train()
            found[name] = timed(loop.train, REPEATS)
        finally:
            loop.stop()
    return found


def operations() -> dict[str, float]:
    """Seconds of what one driver does per step, on a quiet connection."""
    state = np.zeros(25_000_000, np.uint8)
    actors = [ray.remote(num_cpus=0.01)(_Nothing).remote() for _ in range(8)]
    ray.get([actor.call.remote() for actor in actors])

    def calls() -> None:
        ray.get([actors[index % 8].call.remote() for index in range(400)])

    def starts() -> None:
        born = ray.remote(num_cpus=0.01)(_Nothing).remote()
        ray.get(born.call.remote())
        ray.kill(born)

    return {
        "actor_call_s": median(timed(calls, 3)) / 400,
        "actor_start_s": median(timed(starts, 3)),
        "put_s_per_gb": median(timed(lambda: ray.put(state), 5)) / 0.025,
    }


class _Nothing:
    def call(self) -> int:
        return 0


def main() -> bool:
    torch.set_num_threads(1)
    times: dict[str, dict[int, list[float]]] = {}
    details: dict[str, Any] = {}
    for nodes in NODES:
        with several_nodes(nodes, cpus=2, resources={"slot": 1.0}):
            for what, measure in (("hosts", hosts), ("env runners", runners)):
                for kind, seconds in measure(nodes).items():
                    times.setdefault(f"{what}, {kind}", {})[nodes] = seconds
            if nodes == 1:
                details["operations"] = {name: float(f"{value:.4g}") for name, value in operations().items()}
    samples, claims = {}, []
    for name, by_nodes in times.items():
        for nodes, seconds in by_nodes.items():
            share = nodes if name.endswith("strong") else 1
            samples[f"{name}, {nodes}"] = [1 / (share * value) for value in seconds]
        if name.endswith("weak"):
            claims.append(Ratio(f"{name}, 8", f"{name}, 1", 0.5))
    details["efficiency"] = {
        name: {nodes: round(median(samples[f"{name}, {nodes}"]) / median(samples[f"{name}, 1"]), 3) for nodes in NODES}
        for name in times
    }
    details["host_rows"], details["host_bytes"] = ROWS, ROWS * FEATURES * 4
    return report("scale", unit="1/s per node", samples=samples, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
