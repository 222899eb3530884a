"""Every dynamics model and loss, against the clauses of `proxygap.testing.dynamics`."""

from __future__ import annotations

import pytest
import torch

from proxygap import registry
from proxygap.base.protocols import DynamicsModel, FitContext, HostedModel, Stateful
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.generalized_gaussian import GeneralizedGaussian
from proxygap.fit.dynamics.losses import Likelihood, MultiStep, SquaredError
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings, Loss
from proxygap.fit.dynamics.weights import ExpertDistance, ValueGradient
from proxygap.testing.dynamics import LinearDynamics, check_dynamics_loss, check_dynamics_model, linear_transitions

LOSSES: list[Loss] = [
    Likelihood(),
    SquaredError(),
    SquaredError(scale="raw"),
    MultiStep(steps=3, discount=0.9),
    MultiStep(steps=2, base=Likelihood()),
    ExpertDistance(),
    ExpertDistance(strength=0.5, length=3.0),
    ValueGradient(),
    ValueGradient(clip="released_code"),
    GeneralizedGaussian(),
]
DATA = linear_transitions(generator(0, "data"), 90)
CONTEXT = FitContext(value_gradient=lambda obs_BO: 2.0 * obs_BO, expert=linear_transitions(generator(1, "data"), 40))


def name(loss: Loss) -> str:
    return "-".join([loss.kind, *(str(value) for value in loss.model_dump(exclude={"kind"}).values())])


def gaussian(loss: Loss, batches: str, learned: bool) -> DynamicsModel:
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
        *(
            pytest.param(lambda loss=loss: gaussian(loss, "bootstrap", True), id=loss.kind)
            for loss in (SquaredError(scale="raw"), MultiStep(steps=2), ValueGradient(), GeneralizedGaussian())
        ),
        pytest.param(lambda: linear(None), id="linear"),
        pytest.param(lambda: linear(0.0), id="linear-terminating"),
    ],
)
def test_dynamics_model(build):
    check_dynamics_model(build, DATA)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_dynamics_loss(loss):
    check_dynamics_loss(loss, CONTEXT, DATA)


def test_every_registered_loss_is_checked_and_can_be_chosen():
    kinds = {part.kind for part in registry.parts("dynamics loss")}
    assert kinds == {loss.kind for loss in LOSSES}
    for loss in LOSSES:
        assert GaussianEnsembleSettings.model_validate({"loss": loss.model_dump()}).loss == loss


def test_the_suite_notices_a_model_that_draws_from_the_global_generator():
    class Careless(LinearDynamics):
        def predict(self, obs_BO, action_BA):
            torch.rand(1)
            return super().predict(obs_BO, action_BA)

    with pytest.raises(AssertionError):
        check_dynamics_model(lambda: Careless(torch.ones(5, 4), torch.zeros(2, 4)), DATA)


def test_ensemble_can_be_hosted():
    model = gaussian(Likelihood(), "bootstrap", True)
    assert isinstance(model, Stateful)
    hosted: HostedModel = model
    assert hosted.batchable("predict")
    assert hosted.batchable("predict_rows")
    assert not hosted.batchable("fit")
