"""What every planner must satisfy, whatever it plans in.

Shape legend: B problems, N candidates, H horizon, A action size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from proxygap.base.protocols import Plan, PlanMemory, Planner

Returns = Callable[[torch.Tensor], torch.Tensor]
"""Sequences (B, N, H, A) to returns (B, N)."""

ACTIONS = 2
"""Action size of the suite's problems."""


def check_planner(planner: Planner) -> None:
    """Every clause."""
    check_shapes(planner)
    check_purity(planner)
    check_improvement(planner)
    check_company(planner)
    check_not_finite_is_never_elite(planner)
    check_nothing_finite(planner)
    check_time_passes(planner)


def goals(problems: int, horizon: int, seed: int = 0) -> torch.Tensor:
    """The best sequence of each problem, (B, H, A), inside of plus or minus 0.6."""
    drawn = torch.rand(problems, horizon, ACTIONS, generator=torch.Generator().manual_seed(seed))
    return 1.2 * drawn - 0.6


def closeness(goal_BHA: torch.Tensor) -> Returns:
    """Returns that are 0 at the goal of each problem and fall with the squared distance: all negative elsewhere."""
    return lambda sequence_BNHA: -(sequence_BNHA - goal_BHA[:, None]).square().sum(dim=(2, 3))


def planned(planner: Planner, returns: Returns, problems: int, plans: int = 1) -> tuple[Plan, PlanMemory]:
    """The last of several plans, each with the memory of the one before, as it is."""
    memory, generator = planner.init(problems, ACTIONS), torch.Generator().manual_seed(0)
    plan, memory = planner.plan(memory, returns, generator)
    for _ in range(plans - 1):
        plan, memory = planner.plan(memory, returns, generator)
    return plan, memory


def check_shapes(planner: Planner) -> None:
    """Shapes of answers and candidates, actions within [-1, 1], the first of them to be taken, candidates counted."""
    seen: list[torch.Tensor] = []
    goal_BHA = goals(3, planner.horizon)

    def returns(sequence_BNHA: torch.Tensor) -> torch.Tensor:
        seen.append(sequence_BNHA.clone())
        return closeness(goal_BHA)(sequence_BNHA)

    plan, memory = planned(planner, returns, 3)
    assert plan.sequence_BHA.shape == (3, planner.horizon, ACTIONS)
    assert torch.equal(plan.action_BA, plan.sequence_BHA[:, 0])
    assert plan.return_B.shape == (3,)
    assert plan.evaluated == sum(candidate_BNHA.shape[1] for candidate_BNHA in seen)
    for sequence in (plan.sequence_BHA, *seen):
        assert sequence.dtype == torch.float32
        assert float(sequence.abs().max()) <= 1.0
    assert all(len(tensor) == 3 for tensor in memory.tensors.values()), "problems come first"


def check_purity(planner: Planner) -> None:
    """Equal memory and noise give an equal plan; memory in, and the global generators, stay as they were."""
    returns = closeness(goals(2, planner.horizon))
    _, memory = planned(planner, returns, 2)
    kept = {name: tensor.clone() for name, tensor in memory.tensors.items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    plans = [planner.plan(memory, returns, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(plans[0].sequence_BHA, plans[1].sequence_BHA)
    assert not torch.equal(plans[0].sequence_BHA, plans[2].sequence_BHA), "the caller's noise decides"
    assert all(torch.equal(tensor, kept[name]) for name, tensor in memory.tensors.items())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[index]  # noqa: NPY002


def check_improvement(planner: Planner) -> None:
    """A plan is better than doing nothing, and plans that go on from it do not lose that."""
    goal_BHA = goals(4, planner.horizon)
    returns = closeness(goal_BHA)
    still_B = returns(torch.zeros_like(goal_BHA)[:, None])[:, 0]
    for plans in (1, 8):
        plan, _ = planned(planner, returns, 4, plans)
        reached_B = returns(plan.sequence_BHA[:, None])[:, 0]
        assert bool((reached_B > still_B).all()), f"after {plans} plans: {reached_B.tolist()}, still {still_B.tolist()}"
        assert bool((plan.return_B <= 0.0).all()), "no promise above the best there is"


def check_company(planner: Planner) -> None:
    """A problem's plan and memory are those it has alone, whatever is planned beside it."""
    goal_BHA = goals(3, planner.horizon)
    together, memory = planned(planner, closeness(goal_BHA), 3, plans=2)
    alone, alone_memory = planned(planner, closeness(goal_BHA[1:2]), 1, plans=2)
    torch.testing.assert_close(together.sequence_BHA[1:2], alone.sequence_BHA)
    torch.testing.assert_close(together.return_B[1:2], alone.return_B)
    for name, tensor in memory.take(torch.tensor([1])).tensors.items():
        torch.testing.assert_close(tensor, alone_memory.tensors[name])


def check_not_finite_is_never_elite(planner: Planner) -> None:
    """Half of all candidates return NaN or infinity, and the rest is worse than -100: only the rest counts."""

    def returns(sequence_BNHA: torch.Tensor) -> torch.Tensor:
        first_BN = sequence_BNHA[:, :, 0, 0]
        broken_BN = torch.where(sequence_BNHA[:, :, 0, 1] > 0.0, torch.nan, torch.inf)
        return torch.where(first_BN > 0.0, broken_BN, -100.0 - first_BN)

    plan, _ = planned(planner, returns, 2, plans=3)
    assert bool((plan.action_BA[:, 0] <= 0.0).all()), "an action that only candidates without a return took"
    assert bool((plan.return_B <= -99.0).all()), "a promise made of returns that are not finite"


def check_nothing_finite(planner: Planner) -> None:
    """Where no return is finite, memory stays, the promise is NaN, chance decides nothing; others go on."""
    goal_BHA = goals(2, planner.horizon)

    def returns(sequence_BNHA: torch.Tensor) -> torch.Tensor:
        return_BN = closeness(goal_BHA)(sequence_BNHA)
        return torch.cat([return_BN[:1], torch.full_like(return_BN[1:], torch.nan)])

    _, memory = planned(planner, closeness(goal_BHA), 2)
    (plan, after), (other, _) = (planner.plan(memory, returns, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert plan.return_B.isnan().tolist() == [False, True]
    assert torch.equal(plan.sequence_BHA[1], other.sequence_BHA[1])
    assert bool(plan.sequence_BHA.isfinite().all())
    for name, tensor in after.tensors.items():
        assert torch.equal(tensor[1], memory.tensors[name][1]), f"{name} forgot the plan of before"
    fine, _ = planner.plan(memory, closeness(goal_BHA), torch.Generator().manual_seed(1))
    torch.testing.assert_close(plan.sequence_BHA[0], fine.sequence_BHA[0])


def check_time_passes(planner: Planner) -> None:
    """Steps that pass are dropped, nothing is changed in place, and a problem that begins anew knows nothing."""
    goal_BHA = goals(2, planner.horizon)
    _, memory = planned(planner, closeness(goal_BHA), 2)
    kept = {name: tensor.clone() for name, tensor in memory.tensors.items()}
    moved = planner.later(memory, 1)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in memory.tensors.items())
    for name, tensor in moved.tensors.items():
        if tensor.dtype == torch.float32:
            assert torch.equal(tensor[..., :-1, :], kept[name][..., 1:, :]), f"{name} did not move on"
    begun = moved.put(torch.tensor([1]), planner.init(1, ACTIONS))
    fresh = planner.init(2, ACTIONS)
    for name, tensor in begun.tensors.items():
        assert torch.equal(tensor[1], fresh.tensors[name][1])
        assert torch.equal(tensor[0], moved.tensors[name][0])
