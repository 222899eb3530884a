"""Hosts give the numbers of the in-process twin, whatever their number and whatever happens to them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused
from proxygap.base.records import Transitions
from proxygap.fit.dynamics.ensemble import GaussianEnsemble
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.serve.dynamics import HostedDynamics, build_dynamics
from proxygap.serve.settings import Hosting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]

SIZES: dict[str, Any] = {"obs_size": 3, "action_size": 1, "learn_reward": True, "learn_termination": True, "seed": 7}
SETTINGS = GaussianEnsembleSettings(members=5, hidden=(16, 16), max_epochs=6, batch_size=32)
Model = GaussianEnsemble | HostedDynamics
Make = Callable[[int], Model]


def transitions(rows: int, seed: int = 0) -> Transitions:
    rng = np.random.default_rng(seed)
    obs, action = rng.normal(size=(rows, 3)).astype(np.float32), rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    noise = rng.normal(scale=0.05, size=(rows, 3)).astype(np.float32)
    return Transitions(
        obs_BO=obs,
        action_BA=action,
        next_obs_BO=obs + 0.3 * action + 0.1 * obs[:, ::-1] + noise,
        outcome_reward_B=obs.sum(axis=1),
        component_reward_BR=np.empty((rows, 0), np.float32),
        terminated_B=obs[:, 0] > 1.0,
        truncated_B=np.zeros(rows, np.bool_),
        episode_B=np.zeros(rows, np.int64),
        step_B=np.arange(rows, dtype=np.int64),
    )


DATA = transitions(300)
OBS, ACTION = torch.from_numpy(DATA.obs_BO[:17]), torch.from_numpy(DATA.action_BA[:17])
MEMBER = torch.arange(17) % 5


@pytest.fixture
def make(events: Any) -> Iterator[Make]:
    models: list[Model] = []

    def build(hosts: int) -> Model:
        hosting = Hosting(hosts=hosts, cpus=1.0)
        models.append(build_dynamics(SETTINGS, hosting, **SIZES, run_name="run", on_event=events))
        return models[-1]

    yield build
    for model in models:
        if isinstance(model, HostedDynamics):
            model.close()


def predictions(model: Model) -> list[torch.Tensor]:
    answers = [model.predict(OBS, ACTION), model.predict_rows(MEMBER, OBS, ACTION)]
    return [getattr(each, name) for each in answers for name in ("target_mean", "target_std", "termination_logit")]


def assert_twins(one: Model, other: Model) -> None:
    for mine, theirs in zip(predictions(one), predictions(other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    ours, yours = one.state(), other.state()
    assert ours.structure == yours.structure
    assert sorted(ours.arrays) == sorted(yours.arrays)
    for name, array in ours.arrays.items():
        np.testing.assert_allclose(array, yours.arrays[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert (one.version, one.elites, one.members) == (other.version, other.elites, other.members)


@pytest.mark.parametrize("hosts", [1, pytest.param(2, marks=pytest.mark.long), 3])
def test_hosts_equal_the_twin(make: Make, hosts: int) -> None:
    twin, hosted = make(0), make(hosts)
    assert isinstance(twin, GaussianEnsemble)
    assert isinstance(hosted, HostedDynamics)
    assert_twins(twin, hosted)  # as built
    mine, theirs = twin.fit(DATA, 0), hosted.fit(DATA, 0)
    assert (mine.epochs_M, mine.elites, mine.updates) == (theirs.epochs_M, theirs.elites, theirs.updates)
    np.testing.assert_allclose(mine.held_out_log_likelihood_M, theirs.held_out_log_likelihood_M, rtol=1e-5)
    assert (mine.training_rows, mine.held_out_rows) == (theirs.training_rows, theirs.held_out_rows)
    assert_twins(twin, hosted)
    more = transitions(400, seed=1)
    weight_NT, budgets = np.random.default_rng(2).random((400, 4), dtype=np.float32), np.array([1, 2, 3, 4, 5])
    mine, theirs = (model.fit(more, 100, weight_NT, budgets) for model in (twin, hosted))
    assert mine.epochs_M == theirs.epochs_M
    assert all(epochs <= budget for epochs, budget in zip(mine.epochs_M, budgets, strict=True))
    assert_twins(twin, hosted)
    assert np.array_equal(hosted.held_out_loss_M, hosted.state().arrays["held_out_loss"])
    with pytest.raises(ValueError, match="budget of at least 1 epoch"):
        hosted.fit(more, 100, max_epochs_M=budgets[:3])
    assert hosted.predict_rows(MEMBER[:0], OBS[:0], ACTION[:0]).target_mean.shape == (0, 4)
    with pytest.raises(ValueError, match=r"members lie in 0\.\.4"):
        hosted.predict_rows(MEMBER + 3, OBS, ACTION)


def test_a_checkpoint_of_two_hosts_resumes_on_none_and_on_three(make: Make) -> None:
    two = make(2)
    two.fit(DATA, 0)
    state = two.state()
    assert isinstance(two, HostedDynamics)
    two.close()
    none, three = make(0), make(3)
    for resumed in (none, three):
        resumed.load_state(state)
        assert resumed.version == 1
    none.fit(DATA, 0)
    three.fit(DATA, 0)
    assert_twins(none, three)


def test_a_host_killed_during_a_fit_changes_nothing(make: Make, events: Any) -> None:
    twin, hosted = make(0), make(2)
    assert isinstance(hosted, HostedDynamics)
    for model in (twin, hosted):
        model.fit(DATA, 0)
    data = transitions(6000, seed=2)
    pid = hosted.health()[1].pid
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    hosted.fit(data, 300)
    killer.join()
    twin.fit(data, 300)
    assert [(kind, detail["host"]) for kind, detail in events] == [("host_restarted", "run/dynamics-1")]
    assert events[0][1]["method"] == "fit"
    assert_twins(twin, hosted)
    os.kill(hosted.health()[0].pid, signal.SIGKILL)
    assert_twins(twin, hosted)


def test_a_foreign_checkpoint_is_refused_by_the_hosts(make: Make) -> None:
    other = GaussianEnsembleSettings(members=5, hidden=(8,)).build(**SIZES)
    hosted = make(2)
    with pytest.raises(CheckpointRefused, match="hidden"):
        hosted.load_state(other.state())
