"""How long a killed host keeps its pool waiting: from SIGKILL to the next answer, beyond the load of its model.

The host owns a model of 50 MB; the load alone is timed on a host that is already there, by giving it the same state
again. The answer after the restart is compared with the one before. Rounds are kills of one host after the other.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import ray
import torch

from measure import Bound, report
from proxygap.base.language import ItemSpec
from proxygap.fit.reward.settings import MlpReward
from proxygap.serve.reward import HostedReward, build_reward
from proxygap.serve.settings import Hosting

ROUNDS, WIDTH, AT_MOST_S = 6, 1536, 10.0


def main() -> bool:
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        model = build_reward(
            MlpReward(members=5, hidden=(WIDTH, WIDTH)),
            Hosting(hosts=1, cpus=0.5, max_restarts=-1),
            spec=ItemSpec(features=64),
            task=None,
            seed=0,
            run_name="bench-recovery",
            on_event=lambda *_: None,
        )
        assert isinstance(model, HostedReward)
        items = {"feature": np.random.default_rng(0).standard_normal((256, 1, 64), dtype=np.float32)}
        state = model.state()
        model.load_state(state)
        expected = model.score(items)
        found: dict[str, list[float]] = {"answer after a kill": [], "load alone": [], "beyond the load": []}
        for _ in range(ROUNDS):
            started = time.perf_counter()
            model.load_state(state)
            load_s = time.perf_counter() - started
            os.kill(model.health()[0].pid, signal.SIGKILL)
            started = time.perf_counter()
            answer = model.score(items)
            down_s = time.perf_counter() - started
            assert torch.equal(answer, expected), "a host that came back gives the same numbers"
            for name, value in zip(found, (down_s, load_s, down_s - load_s), strict=True):
                found[name].append(value)
        model.close()
    finally:
        ray.shutdown()
    megabytes = sum(array.nbytes for array in state.arrays.values()) / 1e6
    claims = [Bound("beyond the load", AT_MOST_S)]
    return report("recovery", unit="s", samples=found, claims=claims, details={"megabytes": round(megabytes, 1)})


if __name__ == "__main__":
    sys.exit(not main())
