"""Imagined steps per CPU second: ours and mbrl-lib's, taking turns, one thread each.

A stochastic step of Hopper's sizes (11 + 3 inputs, the reward learned, 4x200) from every row of a batch, each row by
one of five elites of seven, with termination by the task's law: arrays in, arrays out, as MBPO calls it. The peer's is
`ModelEnv.reset` and `step`; ours is `branched_rollouts` with horizon 1.

A lower precision counts only where nothing is lost by it, so a model is fitted to real steps of the cart-pole, and
error after 1, 5 and 15 steps and likelihood on fresh ones are compared in both. "bound" is no more than the matrix
products at the same shapes. Before anything is timed, equal weights must give equal predictions on both sides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from draw import kept
from fitted import STILL, TASK, Precision, price_of_bfloat16
from measure import Found, Ratio, cpu_rates, fresh_peak_mib, seconds_table, turns
from peers.cost import cost_of
from peers.models import build, exported, largest_difference, random_transitions
from peers.worker import Peer, peer_peak_mib
from proxygap.base.seeds import torch_generator
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.imagine.rollouts import branched_rollouts

SIZES: dict[str, Any] = {"obs": 11, "action": 3, "members": 7, "elites": 5, "hidden": [200] * 4}
BATCHES, REPEATS, MARGIN = (1_000, 10_000, 100_000), 5, 0.01
CALLS = {1_000: 40, 10_000: 4, 100_000: 1}


class Given:
    """A policy that acts as it was told, so that no policy is timed."""

    def __init__(self, action_BA: np.ndarray) -> None:
        self._action_BA = torch.from_numpy(action_BA)

    def act(self, obs_BO: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:  # noqa: ARG002
        return self._action_BA

    def value(self, obs_BO: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def inputs(batch: int) -> dict[str, np.ndarray]:
    rows = random_transitions(SIZES["obs"], SIZES["action"], batch)
    return {"obs": rows.obs_BO, "action": rows.action_BA}


def ours(batch: int, precision: Precision) -> Callable[[], object]:
    model, task, rows = build(SIZES), GymnasiumTask(id="Hopper-v5"), inputs(batch)
    policy, generator = Given(rows["action"]), torch_generator(0, "bench")
    return partial(
        branched_rollouts, model, policy, task, rows["obs"], 1, generator, batch_size=batch, precision=precision
    )


def bound(batch: int, dtype: torch.dtype) -> Callable[[], object]:
    """The matrix products of one step of a batch dealt to five elites."""
    widths = list(pairwise((14, *SIZES["hidden"], 24)))
    weights = [torch.randn(5, *shape).to(dtype) for shape in widths]
    rows = [torch.randn(5, batch // 5, fan_in).to(dtype) for fan_in, _ in widths]
    outputs = [torch.empty(5, batch // 5, fan_out, dtype=dtype) for _, fan_out in widths]

    def run() -> None:
        for each in zip(rows, weights, outputs, strict=True):
            torch.bmm(*each[:2], out=each[2])

    return run


def several(call: Callable[[], object], times: int) -> Callable[[], object]:
    return lambda: [call() for _ in range(times)]


def names(batch: int) -> list[str]:
    kinds = ("mbrl-lib", "ours, float32", "ours, bfloat16", "bound, float32", "bound, bfloat16")
    return [f"{kind}, {batch:,} rows" for kind in kinds]


def main() -> bool:
    torch.set_num_threads(1)
    subjects, work, claims, peaks = {}, {}, [], {}
    with Peer() as peer:
        difference = largest_difference(peer, SIZES)
        assert difference < 1e-5, f"equal weights differ by {difference} in the mean"
        weights = exported(build(SIZES))
        path = peer.arrays("weights", **weights)
        for batch in BATCHES:
            times, rows = CALLS[batch], peer.arrays(f"rows-{batch}", **inputs(batch))
            given = {"sizes": SIZES, "times": times}
            peer.build(f"{batch}", "imagination", weights=path, inputs=rows, **given)
            calls = (
                ours(batch, "float32"),
                ours(batch, "bfloat16"),
                bound(batch, torch.float32),
                bound(batch, torch.bfloat16),
            )
            timed = [partial(cost_of, several(call, times)) for call in calls]
            subjects |= dict(zip(names(batch), (partial(peer.run, f"{batch}"), *timed), strict=True))
            work |= dict.fromkeys(names(batch), batch * times)
            if batch < 100_000:
                claims.append(Ratio(names(batch)[2], names(batch)[0], 2.5))
            peaks[f"{batch:,} rows"] = {
                "ours, float32": round(fresh_peak_mib(ours, batch, "float32")),
                "ours, bfloat16": round(fresh_peak_mib(ours, batch, "bfloat16")),
                "mbrl-lib": round(
                    peer_peak_mib("imagination", {"weights": weights, "inputs": inputs(batch)}, sizes=SIZES, times=1)
                ),
            }
        costs = turns(subjects, REPEATS)
    price = price_of_bfloat16(TASK)
    for name, value in price.items():
        if "error" in name:
            claims.append(Found(f"{name}, upper end", value["high"], at_most=1 + MARGIN))
        else:
            claims.append(Found(f"{name}, lower end", value["low"], at_least=-MARGIN))
    rates = cpu_rates(costs, work)
    details = {
        "largest_difference_of_equal_weights": difference,
        "price_of_bfloat16": price,
        "price_of_bfloat16_where_nothing_is_random": price_of_bfloat16(STILL),
        "of_float32": {
            f"{batch:,} rows": {
                "ours / mbrl-lib": round(max(rates[names(batch)[1]]) / max(rates[names(batch)[0]]), 2),
                "most that float32 allows": round(max(rates[names(batch)[3]]) / max(rates[names(batch)[0]]), 2),
            }
            for batch in BATCHES
        },
        "least_and_median_seconds": seconds_table(costs),
        "rows_of_a_call": {name: int(value) for name, value in work.items()},
        "peak_mib_beyond_imports": peaks,
    }
    return kept("imagination", unit="imagined steps per CPU second", samples=rates, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
