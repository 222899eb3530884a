"""Scoring through hosts on another node against hosts on the same node: batches of 1024 rows of 1 kB.

Two raylets with object stores of their own on one machine; a batch (1 MB) crosses from store to store over loopback, as
it would cross a network that is not the bottleneck. The reward ensemble is an MLP of 5 members on 256 features. Both
pools hold equal models, and are asked in turns by the same process; answers are compared first. Wall clock, since
waiting is what a distant host costs. The second row asks two batches at a time from two threads, which hides the way.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from measure import Ratio, report
from nodes import several_nodes
from proxygap.base.language import ItemSpec
from proxygap.base.protocols import RewardModel
from proxygap.fit.reward.settings import MlpReward
from proxygap.serve.reward import HostedReward, build_reward
from proxygap.serve.settings import Hosting

BATCH, FEATURES, CALLS, ROUNDS, AT_LEAST = 1024, 256, 10, 12, 0.8


def model(node: int) -> RewardModel:
    return build_reward(
        MlpReward(members=5, hidden=(256, 256)),
        Hosting(hosts=1, cpus=0.5, labels={"node": str(node)}),
        spec=ItemSpec(features=FEATURES),
        task=None,
        seed=0,
        run_name=f"bench-{node}",
        on_event=lambda *_: None,
    )


def one_by_one(scored: RewardModel, items: dict[str, Any]) -> None:
    for _ in range(CALLS):
        scored.score(items)


def two_at_a_time(scored: RewardModel, items: dict[str, Any]) -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: scored.score(items), range(CALLS)))


def main() -> bool:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    items = {"feature": rng.standard_normal((BATCH, 1, FEATURES), dtype=np.float32)}
    assert items["feature"].nbytes == BATCH * 1024
    with several_nodes(2) as ids:
        near, far = model(0), model(1)
        assert isinstance(near, HostedReward)
        assert isinstance(far, HostedReward)
        assert [near.health()[0].node_id, far.health()[0].node_id] == ids, "each host is where it was asked to be"
        assert torch.equal(near.score(items), far.score(items))
        ways: dict[str, tuple[Callable[..., None], RewardModel]] = {
            "same node": (one_by_one, near),
            "another node": (one_by_one, far),
            "same node, two at a time": (two_at_a_time, near),
            "another node, two at a time": (two_at_a_time, far),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name in list(ways) if number % 2 else list(reversed(ways)):
                ask, scored = ways[name]
                started = time.perf_counter()
                ask(scored, items)
                if number:
                    found[name].append(CALLS * BATCH / (time.perf_counter() - started))
        near.close()
        far.close()
    claims = [
        Ratio("another node", "same node", AT_LEAST),
        Ratio("another node, two at a time", "same node, two at a time", AT_LEAST),
    ]
    details = {"batch": BATCH, "bytes_per_row": 4 * FEATURES, "members": 5}
    return report("remote_scoring", unit="rows/s", samples=found, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
