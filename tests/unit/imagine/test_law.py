from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.cartpole_env import advance
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.imagine.law import LawModel
from proxygap.testing.tasks import rollout


def test_the_law_of_the_cart_pole_is_its_simulator():
    task = ContinuousCartPole(force_limit=4.0)
    rng = np.random.default_rng(0)
    obs_BO = rng.uniform([-2.4, -3, -0.5, -3], [2.4, 3, 0.5, 3], (500, 4))
    action_BA = rng.uniform(-1, 1, (500, 1))
    stated_BO = task.next_obs(torch.from_numpy(obs_BO), torch.from_numpy(action_BA)).numpy()
    exact_BO = [advance(*obs_O, 4.0 * float(action_A[0])) for obs_O, action_A in zip(obs_BO, action_BA, strict=True)]
    np.testing.assert_allclose(stated_BO, exact_BO, rtol=1e-13, atol=1e-13)


def test_the_law_reaches_where_the_environment_goes():
    task = ContinuousCartPole(start_spread=0.2)
    rows = rollout(task, 300)
    obs_BO, action_BA = torch.from_numpy(rows.obs_BO), torch.from_numpy(rows.action_BA)
    step = LawModel(task).step_members((0,), obs_BO[None], action_BA[None])
    np.testing.assert_allclose(rows.obs_BO + step.target_mean[0].numpy(), rows.next_obs_BO, rtol=1e-5, atol=1e-6)
    assert step.target_std.shape == step.target_mean.shape
    assert not step.target_std.any()
    assert step.termination_logit is None


def test_the_law_can_be_differentiated():
    obs_BO = torch.tensor([[0.1, 0.2, 0.05, -0.1]], dtype=torch.float64, requires_grad=True)
    action_BA = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ContinuousCartPole().next_obs, (obs_BO, action_BA))


def test_a_task_without_a_law_is_refused():
    task = GymnasiumTask(id="Pendulum-v1")
    with pytest.raises(InvalidExperiment, match="law of motion"):
        LawModel(task)
    assert not task.known_dynamics
    with pytest.raises(TypeError, match="not known"):
        task.next_obs(torch.zeros(1, 3), torch.zeros(1, 1))
