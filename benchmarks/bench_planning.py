"""Plans per CPU second inside one fitted model: ours and mbrl-lib's, taking turns, one thread each.

The cart-pole, seven members of 4x200, five elites, the reward learned, nothing terminates; 20 particles per candidate,
each stepped by an elite drawn anew at each step (TS1). Both sides hold the same fitted weights. CEM as the peer's PETS
has it: 350 candidates, 15 steps, 5 rounds. Then 8 states planned at once, which the peer does one after the other, at
the rate of one; and iCEM on a third of the model steps, whose plans must be as good: their return in the model, on
particles that no planner saw. What acting by them earns in the real task is told beside it.

bfloat16 counts only if its plans are as good, measured the same way. "bound" is no more than the matrix products of a
plan. Before anything is timed, equal weights must give equal predictions on both sides.
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
from fitted import TASK, Precision, fitted_cartpole, interval
from measure import Found, Ratio, cpu_rates, fresh_peak_mib, seconds_table, turns
from peers.cost import Cost, cost_of
from peers.models import build, exported, largest_difference
from peers.worker import Peer, peer_peak_mib
from proxygap.base.protocols import Plan, State
from proxygap.base.seeds import generator, torch_generator
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.fit.dynamics.ensemble import GaussianEnsemble
from proxygap.imagine.particles import ParticleReturns
from proxygap.imagine.planners.settings import CemPlanner, IcemPlanner, Planning
from proxygap.imagine.planning import PlanningPolicy

SIZES: dict[str, Any] = {"obs": 4, "action": 1, "members": 7, "elites": 5, "hidden": [200] * 4}
REPEATS, STARTS, THEIRS, MARGIN = 5, 12, 4, 0.01
CEM = CemPlanner()
PEER, EXACT, COARSE, FRUGAL = "mbrl-lib, CEM", "ours, CEM, float32", "ours, CEM, bfloat16", "ours, iCEM, bfloat16"
ICEM = IcemPlanner(candidates=180, rounds=4, elites=18)


class Told(ContinuousCartPole):
    """The cart-pole whose reward the planner has to predict, and that never ends: the peer's least set-up."""

    @property
    def known_reward(self) -> bool:
        return False

    def terminated(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.zeros(len(next_obs_BO), dtype=torch.bool)


def starts(count: int, seed: int = 0) -> np.ndarray:
    """States worth a plan: wide of upright, moving."""
    drawn = generator(seed, "bench/starts").uniform(-1.0, 1.0, (count, 4))
    return (drawn * [0.5, 0.5, 0.1, 0.5]).astype(np.float32)


def planning(planner: CemPlanner | IcemPlanner, precision: Precision, particles: int = 20) -> Planning:
    return Planning(planner=planner, propagation="ts1", precision=precision, particles=particles)


def planned(model: GaussianEnsemble, how: Planning, states: np.ndarray) -> Plan:
    """Plans of planners that begin, for all states at once."""
    draws = torch_generator(0, "bench/plan")
    returns = ParticleReturns(
        model, Told(), torch.from_numpy(states), planning=how, members=model.elites, generator=draws
    )
    return how.planner.plan(how.planner.init(len(states), 1), returns, draws)[0]


def sequences(model: GaussianEnsemble, how: Planning, states: np.ndarray) -> torch.Tensor:
    """Their sequences (B, H, A), eight states at a time."""
    return torch.cat(
        [planned(model, how, states[start : start + 8]).sequence_BHA for start in range(0, len(states), 8)]
    )


def scores(model: GaussianEnsemble, states: np.ndarray, sequence_BHA: torch.Tensor) -> np.ndarray:
    """Return of each plan in float32 on particles of its own, (B,)."""
    returns = ParticleReturns(
        model,
        Told(),
        torch.from_numpy(states),
        planning=planning(CEM, "float32", particles=200),
        members=model.elites,
        generator=torch_generator(0, "bench/judge"),
    )
    return returns(sequence_BHA[:, None])[:, 0].numpy()


def real_returns(model: GaussianEnsemble, how: Planning, episodes: int, steps: int) -> np.ndarray:
    """What acting by plans earns in the real task, (B,): the first steps of episodes from wide starts."""
    actor = PlanningPolicy(
        model, Told(), how.model_copy(update={"replan_every": 5}), members=model.elites, seed=0
    ).episodes(episodes)
    envs = [TASK.make_env() for _ in range(episodes)]
    obs_BO = np.stack([env.reset(seed=number)[0] for number, env in enumerate(envs)])
    earned_B, live = np.zeros(episodes), list(range(episodes))
    for _ in range(steps):
        if not live:
            break
        action_BA = actor.act(torch.from_numpy(obs_BO[live]), torch.tensor(live)).numpy()
        for place, action_A in zip(tuple(live), action_BA, strict=True):
            obs_BO[place], reward, terminated, _, _ = envs[place].step(action_A)
            earned_B[place] += reward
            if terminated:
                live.remove(place)
    return earned_B


def bound(planner: CemPlanner, dtype: torch.dtype, particles: int = 20) -> Callable[[], object]:
    """The matrix products of one plan."""
    widths, rows = list(pairwise((5, *SIZES["hidden"], 10))), planner.candidates * particles // 5
    weights = [torch.randn(5, *shape).to(dtype) for shape in widths]
    inputs = [torch.randn(5, rows, fan_in).to(dtype) for fan_in, _ in widths]
    outputs = [torch.empty(5, rows, fan_out, dtype=dtype) for _, fan_out in widths]

    def run() -> None:
        for _ in range(planner.rounds * planner.horizon):
            for each in zip(inputs, weights, outputs, strict=True):
                torch.bmm(*each[:2], out=each[2])

    return run


def told(planner: CemPlanner) -> dict[str, Any]:
    """What the peer is told of a search."""
    search = {"candidates": planner.candidates, "horizon": planner.horizon, "rounds": planner.rounds}
    return {"sizes": SIZES, "optimizer": "cem", "particles": 20} | search


def over(mine_B: np.ndarray, other_B: np.ndarray) -> dict[str, float]:
    """Mean difference over the same states as a share of the other's mean, with its interval."""
    scale = float(np.abs(other_B.mean()))
    return interval(lambda some: float((mine_B[some] - other_B[some]).mean()) / scale, len(mine_B))


def quality(peer: Peer, model: GaussianEnsemble, weights: str) -> dict[str, Any]:
    """Returns of plans from the same states: in the model beside CEM in float32, in the task beside CEM in bfloat16."""
    states = starts(STARTS, seed=1)
    ways = {
        EXACT: planning(CEM, "float32"),
        COARSE: planning(CEM, "bfloat16"),
        FRUGAL: planning(ICEM, "bfloat16"),
    }
    promised = {name: scores(model, states, sequences(model, how, states)) for name, how in ways.items()}
    some = peer.arrays("states", obs=states[:THEIRS])
    peer.build("quality", "planning", weights=weights, inputs=some, **told(CEM))
    theirs = torch.from_numpy(peer.answer("quality")["sequence"]).float()
    promised[PEER] = scores(model, states[:THEIRS], theirs)
    real = {name: real_returns(model, ways[name], episodes=6, steps=40) for name in (COARSE, FRUGAL)}
    return {
        kind: {
            "mean": {name: float(f"{each.mean():.5g}") for name, each in found.items()},
            f"share over {base}": {
                name: over(each, found[base][: len(each)]) for name, each in found.items() if name != base
            },
        }
        for kind, base, found in (
            ("planned return", EXACT, promised),
            ("real return of 40 steps, a plan for every 5", COARSE, real),
        )
    }


def speed(peer: Peer, model: GaussianEnsemble, weights: str) -> dict[str, tuple[Callable[[], Cost], int]]:
    """What takes turns, and how many plans a call of it makes."""
    one = peer.arrays("starts", obs=starts(1))
    peer.build("cem", "planning", weights=weights, inputs=one, **told(CEM))

    def ours(planner: CemPlanner | IcemPlanner, precision: Precision, count: int) -> Callable[[], Cost]:
        states = starts(count)
        return partial(cost_of, lambda: planned(model, planning(planner, precision), states))

    return {
        PEER: (partial(peer.run, "cem"), 1),
        EXACT: (ours(CEM, "float32", 1), 1),
        COARSE: (ours(CEM, "bfloat16", 1), 1),
        f"{COARSE}, 8 at once": (ours(CEM, "bfloat16", 8), 8),
        FRUGAL: (ours(ICEM, "bfloat16", 1), 1),
        "bound, float32": (partial(cost_of, bound(CEM, torch.float32)), 1),
        "bound, bfloat16": (partial(cost_of, bound(CEM, torch.bfloat16)), 1),
    }


def _planner_of(state: State, precision: Precision, count: int) -> Callable[[], object]:
    model = build(SIZES)
    model.load_state(state)
    return lambda: planned(model, planning(CEM, precision), starts(count))


def main() -> bool:
    torch.set_num_threads(1)
    model = fitted_cartpole(learn_reward=True)
    arrays = exported(model)
    with Peer() as peer:
        weights = peer.arrays("weights", **arrays)
        difference = largest_difference(peer, SIZES, model)
        assert difference < 1e-5, f"equal weights differ by {difference} in the mean"
        subjects = speed(peer, model, weights)
        costs = turns({name: call for name, (call, _) in subjects.items()}, REPEATS)
        found = quality(peer, model, weights)
    work = {name: count for name, (_, count) in subjects.items()}
    rates = cpu_rates(costs, work)
    steps = {
        name: planned(model, planning(planner, "bfloat16"), starts(1)).evaluated * planner.horizon * 20
        for name, planner in (("CEM", CEM), ("iCEM", ICEM))
    }
    state, inputs = model.state(), {"weights": arrays, "inputs": {"obs": starts(1)}}
    details = {
        "largest_difference_of_equal_weights": difference,
        "model_steps_of_a_plan": steps,
        **found,
        "least_and_median_seconds": seconds_table(costs),
        "plans_of_a_call": work,
        "most_that_float32_allows": round(max(rates["bound, float32"]) / max(rates[PEER]), 2),
        "peak_mib_beyond_imports": {
            PEER: round(peer_peak_mib("planning", inputs, **told(CEM))),
            EXACT: round(fresh_peak_mib(_planner_of, state, "float32", 1)),
            COARSE: round(fresh_peak_mib(_planner_of, state, "bfloat16", 1)),
            f"{COARSE}, 8 at once": round(fresh_peak_mib(_planner_of, state, "bfloat16", 8)),
        },
    }
    share = found["planned return"][f"share over {EXACT}"]
    claims = [
        Ratio(COARSE, PEER, 3.0),
        Ratio(f"{COARSE}, 8 at once", PEER, 5.0),
        Found("model steps of a plan, CEM / iCEM", steps["CEM"] / steps["iCEM"], at_least=3.0),
        Found(f"planned return, {COARSE} over float32, lower end", share[COARSE]["low"], at_least=-MARGIN),
        Found(f"planned return, {FRUGAL} over CEM, lower end", share[FRUGAL]["low"], at_least=-MARGIN),
    ]
    return kept("planning", unit="plans per CPU second", samples=rates, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
