"""Every reward model, against the clauses of `proxygap.testing.reward`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.protocols import Stateful
from proxygap.base.seeds import generator
from proxygap.collect.tasks.arms import Arms
from proxygap.fit.reward.items import preference_arrays
from proxygap.fit.reward.losses import Margin, Regression, RegressionThenScaled, ScaledBradleyTerry
from proxygap.fit.reward.settings import (
    CorrelatedProxies,
    Gold,
    HuggingFaceNetwork,
    MlpReward,
    RewardTraining,
    TinyNetwork,
    TransformerReward,
)
from proxygap.testing.reward import (
    LinearTruth,
    check_given_reward_model,
    check_hosted_reward_model,
    check_reward_model,
)

SHORT = RewardTraining(epochs=2, batch_size=20)
FITTED = [
    MlpReward(members=3, hidden=(17,), training=SHORT),
    MlpReward(members=2, hidden=(9, 8), frozen_layers=1, diversity="pretrain", loss=Margin(), training=SHORT),
    MlpReward(members=2, hidden=(9,), loss=RegressionThenScaled(), training=SHORT),
    TransformerReward(members=3, training=SHORT),
    TransformerReward(
        members=2,
        network=TinyNetwork(layers=2),
        pretrain_steps=2,
        diversity="pretrain",
        loss=ScaledBradleyTerry(),
        training=RewardTraining(epochs=3, patience=1, bootstrap=True),
    ),
    TransformerReward(
        members=2, network=HuggingFaceNetwork(layers=1, width=16, heads=2), loss=Regression(), training=SHORT
    ),
]


def named(settings):
    return f"{settings.kind}-{getattr(getattr(settings, 'network', None), 'kind', 'features')}-{settings.loss.kind}"


@pytest.fixture
def truth():
    return LinearTruth.of(generator(0, "truth"))


@pytest.mark.parametrize("settings", FITTED, ids=named)
def test_fitted_reward_model(settings, truth):
    data = truth.preferences(generator(1, "data"), 90, truth.token_gold)
    check_reward_model(lambda: settings.build(truth.spec, seed=5), data)


@pytest.mark.parametrize("settings", FITTED, ids=named)
def test_fitted_reward_model_can_be_hosted(settings, truth):
    data = truth.preferences(generator(1, "data"), 60, truth.token_gold)
    assert isinstance(settings.build(truth.spec, seed=5), Stateful)
    check_hosted_reward_model(lambda: settings.build(truth.spec, seed=5), preference_arrays(data), data.chosen)


@pytest.mark.parametrize("settings", [CorrelatedProxies(members=3, shared=0.5), Gold()], ids=lambda s: s.kind)
def test_given_reward_model(settings):
    task = Arms(arms=50, truth_seed=0)
    arms = np.arange(50)
    items = {"prompt": 0 * arms, "prompt_token": 0 * arms[:, None], "token": arms[:, None], "length": 0 * arms + 1}
    check_given_reward_model(lambda: settings.given(task, 1), items)


def test_the_suite_notices_a_model_that_draws_from_the_global_generator(truth):
    class Careless:
        def __init__(self):
            self._model = MlpReward(members=2, training=SHORT).build(truth.spec, seed=0)

        def __getattr__(self, name):
            return getattr(self._model, name)

        def score(self, items):
            torch.rand(1)
            return self._model.score(items)

    with pytest.raises(AssertionError):
        check_given_reward_model(Careless, truth.items(generator(0, "items"), 30))
