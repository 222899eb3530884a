"""Every planner, against the clauses of `proxygap.testing.planners`."""

from __future__ import annotations

import pytest
import torch

from proxygap.base.protocols import Plan, PlanMemory, Planner
from proxygap.imagine.planners.settings import CemPlanner, IcemPlanner, MppiPlanner
from proxygap.testing import planners as suite


@pytest.mark.parametrize(
    "planner",
    [
        pytest.param(CemPlanner(horizon=4, candidates=60, rounds=3), id="cem"),
        pytest.param(CemPlanner(horizon=4, candidates=60, rounds=3, answer="best", momentum=0.0), id="cem-best"),
        pytest.param(CemPlanner(horizon=1, candidates=20, rounds=1, elite_share=0.01), id="cem-one-elite"),
        pytest.param(IcemPlanner(horizon=5, candidates=60, elites=6), id="icem"),
        pytest.param(IcemPlanner(horizon=1, candidates=30, elites=8, kept_share=0.0, rounds=1), id="icem-one-step"),
        pytest.param(MppiPlanner(horizon=4, candidates=80, temperature=0.2), id="mppi"),
        pytest.param(MppiPlanner(horizon=4, candidates=80, rounds=3, smoothing=0.0, temperature=0.05), id="mppi-white"),
    ],
)
def test_planner(planner: Planner) -> None:
    suite.check_planner(planner)


class Broken:
    """A true planner with one lie at a time."""

    def __init__(self, lie: str) -> None:
        self._planner, self._lie, self._last = CemPlanner(horizon=4, candidates=60, rounds=3), lie, None

    @property
    def horizon(self) -> int:
        return self._planner.horizon

    def init(self, problems: int, action_size: int) -> PlanMemory:
        return self._planner.init(problems, action_size)

    def plan(self, memory, returns, generator) -> tuple[Plan, PlanMemory]:
        if self._lie == "not a number is nearly 0":
            return self._planner.plan(memory, lambda sequence: returns(sequence).nan_to_num(-1e-10), generator)
        if self._lie == "noise of its own":
            return self._planner.plan(memory, returns, torch.default_generator)
        if self._lie == "remembers" and self._last is not None:
            memory = self._last
        plan, self._last = self._planner.plan(memory, returns, generator)
        return plan, self._last

    def later(self, memory: PlanMemory, steps: int) -> PlanMemory:
        return memory if self._lie == "time stands still" else self._planner.later(memory, steps)


@pytest.mark.parametrize(
    ("lie", "clause"),
    [
        ("not a number is nearly 0", suite.check_not_finite_is_never_elite),
        ("not a number is nearly 0", suite.check_nothing_finite),
        ("noise of its own", suite.check_purity),
        ("remembers", suite.check_purity),
        ("time stands still", suite.check_time_passes),
    ],
)
def test_the_suite_catches_a_planner_that_lies(lie, clause):
    with pytest.raises(AssertionError):
        clause(Broken(lie))
