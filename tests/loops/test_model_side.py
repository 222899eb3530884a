"""What loops share of their dynamics model: refits weighed by what the loop knows, and what is measured of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from proxygap.base.records import Transitions
from proxygap.collect.replay import Replay
from proxygap.experiment import validate
from proxygap.loops.mbpo import value_gradient
from proxygap.loops.model_side import ModelSide, effective_share
from proxygap.optimize.sac_module import SacModule

SMALL: dict[str, Any] = {
    "name": "small",
    "question": "What is weighed?",
    "task": {"kind": "continuous_cartpole"},
    "outcomes": ["return"],
    "collect": {"random_steps": 100},
    "fit": {"members": 2, "hidden": [8], "max_epochs": 2},
    "loop": {"kind": "pets", "real_steps": 1000},
}
GRID = {"kind": "grid", "points": 2, "half_width": [0.1]}


def cartpole_rows(count: int) -> Transitions:
    task = validate(SMALL).control_task
    rng = np.random.default_rng(0)
    obs_BO = torch.from_numpy(rng.uniform(-0.2, 0.2, (count, 4)).astype(np.float32))
    action_BA = torch.from_numpy(rng.uniform(-1, 1, (count, 1)).astype(np.float32))
    next_obs_BO = task.next_obs(obs_BO, action_BA)
    return Transitions(
        obs_BO=obs_BO.numpy(),
        action_BA=action_BA.numpy(),
        next_obs_BO=next_obs_BO.numpy(),
        outcome_reward_B=task.reward(obs_BO, action_BA, next_obs_BO).numpy(),
        component_reward_BR=np.empty((count, 0), np.float32),
        terminated_B=np.zeros(count, np.bool_),
        truncated_B=np.zeros(count, np.bool_),
        episode_B=np.zeros(count, np.int64),
        step_B=np.arange(count, dtype=np.int64),
    )


def side_of(tmp_path: Any, **changes: Any) -> tuple[ModelSide, list[tuple[str, Any]]]:
    experiment = validate({**SMALL, "record": {"folder": str(tmp_path)}, **changes})
    replay, told = Replay(1000, 4, 1), list[tuple[str, Any]]()
    replay.add(cartpole_rows(120))
    return ModelSide(experiment, 0, replay, lambda kind, detail: told.append((kind, detail))), told


def measured(side: ModelSide) -> dict[str, float]:
    return {m.key: m.value for m in side.objectives(cartpole_rows(40))}


def test_refits_are_due_when_random_steps_end_and_then_at_every_multiple(tmp_path: Any) -> None:
    side, told = side_of(tmp_path)
    assert not side.refit_due(90, 30)
    assert side.refit_due(100, 30)
    assert side.refit() > 0
    assert told == [("fitted", {"version": 1, "elites": list(side.model.elites)})]
    assert [step for step in range(100, 160) if side.refit_due(step, 30)] == [120, 150]


def test_a_plain_likelihood_weighs_nothing(tmp_path: Any) -> None:
    side, _ = side_of(tmp_path)
    side.refit()
    found = measured(side)
    assert "model/weight_ess" not in found
    assert "objective/expert_mse" not in found


def test_an_expert_decides_the_weights_and_is_scored_on(tmp_path: Any) -> None:
    side, told = side_of(tmp_path, fit={**SMALL["fit"], "loss": {"kind": "expert_distance"}}, expert=GRID)
    assert [kind for kind, _ in told] == ["dataset"]
    side.refit()
    found = measured(side)
    assert 0.0 < found["model/weight_ess"] < 0.999
    assert {"objective/expert_log_likelihood", "objective/expert_mse"} <= found.keys()
    again, _ = side_of(tmp_path, fit={**SMALL["fit"], "loss": {"kind": "expert_distance"}}, expert=GRID)
    again.load_parts(side.parts())
    assert measured(again) == found


def test_without_critics_the_law_gives_the_value(tmp_path: Any) -> None:
    side, _ = side_of(tmp_path, fit={**SMALL["fit"], "loss": {"kind": "value_gradient"}})
    side.refit()
    assert 0.0 < measured(side)["model/weight_ess"] < 0.999


def test_estimates_of_its_error_follow_the_fits_and_are_measured(tmp_path: Any) -> None:
    wanted = [{"kind": "disagreement"}, {"kind": "deup", "updates": 30, "hidden": [8]}]
    side, _ = side_of(tmp_path, uncertainty=wanted)
    assert not any(name.startswith("model/uncertainty") for name in measured(side))
    side.refit()
    found = measured(side)
    assert {f"model/uncertainty_spearman/{kind}" for kind in ("disagreement", "deup")} <= found.keys()
    again, _ = side_of(tmp_path, uncertainty=wanted)
    again.load_parts(side.parts())
    assert measured(again) == found
    side.refit()  # no row is new: nothing is observed a second time, and both go on alike
    again.refit()
    assert measured(again) == measured(side)


def test_the_effective_share_by_hand() -> None:
    assert effective_share(np.ones((5, 3), np.float32)) == pytest.approx(1.0)
    assert effective_share(np.array([[1.0], [3.0]], np.float32)) == pytest.approx(16 / 10 / 2)


def test_the_critics_gradient_is_that_of_finite_differences() -> None:
    spaces = {"observation_space": gym.spaces.Box(-1, 1, (3,)), "action_space": gym.spaces.Box(-1, 1, (2,))}
    settings = {"hidden": (8, 8), "initial_temperature": 1.0, "seed": 0}
    module = SacModule(**spaces, model_config=settings).double()
    with torch.no_grad():  # else critics and targets are equal
        for parameter in module.targets.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    obs_BO = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)).double()

    def value_CB(points_BO: torch.Tensor) -> torch.Tensor:
        action_BA = module.act(points_BO)
        return torch.cat([critics(points_BO, action_BA) for critics in (module.critics, module.targets)]).detach()

    step = 1e-6 * torch.eye(3).double()
    slope_CBO = torch.stack([(value_CB(obs_BO + d) - value_CB(obs_BO - d)) / 2e-6 for d in step], dim=-1)
    gradient_BO = value_gradient(module, obs_BO)
    torch.testing.assert_close(gradient_BO, slope_CBO.square().mean(dim=0).sqrt(), rtol=1e-5, atol=1e-7)
    assert not gradient_BO.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
