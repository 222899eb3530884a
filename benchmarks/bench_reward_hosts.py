"""Items scored by a reward ensemble of 5, batch 256: through one and two hosts, and in process.

The main row is a transformer of a realistic small size (2 layers, width 64, 33 tokens). The second is an MLP that takes
half a millisecond, where a call itself weighs most; beside it stands what the shortest possible Ray call with the same
arrays costs, which no host can beat. One torch thread in every process; calls take turns. What counts is CPU time, of
the caller and of its busiest host (hosts work at the same time), so that other programs on the machine touch all alike;
wall clock and the sum over all hosts stand in the details. The allocator of the C library is told to keep freed memory
in all processes: left alone, it gives large blocks back after every call and clears them again, which costs the main
thread of a process more than the worker thread of a host, and would flatter the hosts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from measure import Ratio, report
from proxygap.base.language import ItemSpec
from proxygap.base.protocols import RewardModel
from proxygap.fit.reward.settings import MlpReward, TinyNetwork, TransformerReward
from proxygap.serve.reward import HostedReward, build_reward
from proxygap.serve.settings import Hosting

BATCH, MEMBERS, AT_LEAST = 256, 5, 0.9
SPEC = ItemSpec(vocabulary=64, pad_token=0, prompt_length=9, max_tokens=24, features=16)
SETTINGS: dict[str, Any] = {
    "transformer": TransformerReward(members=MEMBERS, network=TinyNetwork(layers=2, width=64, feedforward=256)),
    "mlp": MlpReward(members=MEMBERS, hidden=(64, 64)),
}
CALLS = {"transformer": 2, "mlp": 20}
ROUNDS = {"transformer": 12, "mlp": 20}
READS = {"transformer": ("prompt_token", "token", "length"), "mlp": ("feature",)}
Items = dict[str, np.ndarray[Any, Any]]


def items(names: tuple[str, ...]) -> Items:
    rng = np.random.default_rng(0)
    columns: Items = {
        "prompt_token": rng.integers(1, 64, (BATCH, 9)),
        "token": rng.integers(1, 64, (BATCH, 24)),
        "length": np.full(BATCH, 24),
        "feature": rng.standard_normal((BATCH, 1, 16), dtype=np.float32),
    }
    return {name: columns[name] for name in names}


@ray.remote
class Echo:
    """The shortest call with the same arrays: scores that are already there."""

    def __init__(self) -> None:
        self._scores = np.zeros((BATCH, MEMBERS), np.float32)

    async def score(self, arrays: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        del arrays
        return self._scores

    async def pid(self) -> int:
        return os.getpid()


def cpu_s(pid: int) -> float:
    """CPU seconds so far of all threads of a process."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


@dataclass
class Cost:
    """Seconds per call: CPU of the caller and the busiest host, CPU of all, wall clock."""

    chain: float
    cpu: float
    wall: float


@dataclass
class Subject:
    """Something that answers for one batch, and the processes that work for it."""

    ask: Callable[[], object]
    hosts: list[int]

    def timed(self, calls: int) -> Cost:
        pids = [os.getpid(), *self.hosts]
        before, started = [cpu_s(pid) for pid in pids], time.perf_counter()
        for _ in range(calls):
            self.ask()
        wall = time.perf_counter() - started
        caller, *hosts = (cpu_s(pid) - cpu for pid, cpu in zip(pids, before, strict=True))
        return Cost((caller + max(hosts, default=0.0)) / calls, (caller + sum(hosts)) / calls, wall / calls)


def timed(subjects: Mapping[str, Subject], rounds: int, calls: int) -> dict[str, list[Cost]]:
    """The cost of each subject in every round, in an order that turns around; two rounds warm up."""
    found: dict[str, list[Cost]] = {name: [] for name in subjects}
    for number in range(rounds + 2):
        for name in list(subjects) if number % 2 else list(reversed(subjects)):
            sample = subjects[name].timed(calls)
            if number > 1:
                found[name].append(sample)
    return found


def measure(kind: str) -> dict[str, list[Cost]]:
    columns = items(READS[kind])

    def built(hosts: int) -> RewardModel:
        return build_reward(
            SETTINGS[kind],
            Hosting(hosts=hosts, cpus=0.5),
            spec=SPEC,
            task=None,
            seed=0,
            run_name=f"bench-{kind}-{hosts}",
            on_event=lambda *_: None,
        )

    models = {f"{kind}, {place}": built(hosts) for hosts, place in enumerate(("in process", "1 host", "2 hosts"))}
    hosted = {name: model for name, model in models.items() if isinstance(model, HostedReward)}
    answers = [model.score(columns) for model in models.values()]
    assert all(torch.equal(answers[0], answer) for answer in answers), "hosts must give the numbers of the twin"
    pids = {name: [each.pid for each in model.health()] for name, model in hosted.items()}
    subjects = {
        name: Subject(lambda model=model: model.score(columns), pids.get(name, [])) for name, model in models.items()
    }
    echo = Echo.remote()
    subjects[f"{kind}, empty Ray call"] = Subject(
        lambda: ray.get(echo.score.remote(columns)), [ray.get(echo.pid.remote())]
    )
    try:
        return timed(subjects, ROUNDS[kind], CALLS[kind])
    finally:
        for model in hosted.values():
            model.close()
        ray.kill(echo)


ALIKE = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
}
"""Environment of this process, and so of the hosts that it starts; the allocator reads it at the start only."""


def main() -> bool:
    if any(os.environ.get(name) != value for name, value in ALIKE.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALIKE})
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    found: dict[str, list[Cost]] = {}
    try:
        for kind in SETTINGS:
            found |= measure(kind)
    finally:
        ray.shutdown()
    claims = [
        Ratio(f"{kind}, {hosts}", f"{kind}, in process", AT_LEAST)
        for kind, hosts in (("transformer", "1 host"), ("transformer", "2 hosts"))
    ]
    samples = {name: [BATCH / cost.chain for cost in each] for name, each in found.items()}
    details = {
        "batch": BATCH,
        "members": MEMBERS,
        "best_wall_ms": {name: round(1000 * min(cost.wall for cost in each), 3) for name, each in found.items()},
        "cpu_ms_of_all": {name: round(1000 * median(cost.cpu for cost in each), 3) for name, each in found.items()},
    }
    return report("reward_hosts", unit="items/CPU s", samples=samples, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
