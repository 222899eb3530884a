"""Every dynamics model and loss, against the clauses of `proxygap.testing.dynamics`."""

from __future__ import annotations

import pytest
import torch

from proxygap.base.protocols import DynamicsModel, HostedModel, Stateful
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.losses import Likelihood, SquaredError
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.testing.dynamics import LinearDynamics, check_dynamics_loss, check_dynamics_model, linear_transitions


def gaussian(loss: Likelihood | SquaredError, batches: str, learned: bool) -> DynamicsModel:
    settings = GaussianEnsembleSettings(
        members=3, hidden=(17,), batch_size=20, max_epochs=4, patience=2, loss=loss, batches=batches
    )
    return settings.build(obs_size=3, action_size=2, learn_reward=learned, learn_termination=learned, seed=5)


def linear(terminal_at: float | None) -> DynamicsModel:
    return LinearDynamics(torch.ones(5, 4), torch.arange(8.0).reshape(2, 4), std=0.1, terminal_at=terminal_at)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: gaussian(Likelihood(), "bootstrap", True), id="likelihood"),
        pytest.param(lambda: gaussian(Likelihood(), "shared", False), id="likelihood-shared-laws-known"),
        pytest.param(lambda: gaussian(SquaredError(), "bootstrap", True), id="mse"),
        pytest.param(lambda: linear(None), id="linear"),
        pytest.param(lambda: linear(0.0), id="linear-terminating"),
    ],
)
def test_dynamics_model(build):
    check_dynamics_model(build, linear_transitions(generator(0, "data"), 90))


@pytest.mark.parametrize("loss", [Likelihood(), SquaredError()], ids=lambda loss: loss.kind)
def test_dynamics_loss(loss):
    check_dynamics_loss(loss)


def test_the_suite_notices_a_model_that_draws_from_the_global_generator():
    class Careless(LinearDynamics):
        def predict(self, obs_BO, action_BA):
            torch.rand(1)
            return super().predict(obs_BO, action_BA)

    with pytest.raises(AssertionError):
        check_dynamics_model(
            lambda: Careless(torch.ones(5, 4), torch.zeros(2, 4)), linear_transitions(generator(0, "data"), 90)
        )


def test_ensemble_can_be_hosted():
    model = gaussian(Likelihood(), "bootstrap", True)
    assert isinstance(model, Stateful)
    hosted: HostedModel = model
    assert hosted.batchable("predict")
    assert hosted.batchable("predict_rows")
    assert not hosted.batchable("fit")
