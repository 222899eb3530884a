"""The likelihood of a model that says a shape is that of its generalized Gaussian: Laplace at 1, Gaussian at 2."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import gennorm

from proxygap.base.protocols import Prediction
from proxygap.base.seeds import generator
from proxygap.probe.objective import log_likelihood
from proxygap.testing.dynamics import LinearDynamics, linear_transitions

STD = 0.7


class Shaped(LinearDynamics):
    """The linear model with a shape of its own for every member."""

    def __init__(self, shapes: list[float] | None) -> None:
        super().__init__(torch.full((5, 3), 0.1), torch.tensor([[0.0] * 3, [0.5] * 3]), std=STD)
        self._shapes = shapes

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        plain = super().predict(obs_BO, action_BA)
        shape_MBT = None
        if self._shapes is not None:
            shape_MBT = torch.tensor(self._shapes)[:, None, None].expand_as(plain.target_mean)
        return Prediction(plain.target_mean, plain.target_std, None, shape_MBT)


DATA = linear_transitions(generator(0, "data"), 40)


def test_a_shape_of_two_is_no_shape():
    given, expected = (log_likelihood(Shaped(shapes), DATA) for shapes in ([2.0, 2.0], None))
    assert [m.value for m in given] == pytest.approx([m.value for m in expected], rel=1e-9)


def test_shapes_equal_an_independent_density():
    shapes, model = [1.0, 3.5], Shaped([1.0, 3.5])
    prediction = model.predict(torch.from_numpy(DATA.obs_BO), torch.from_numpy(DATA.action_BA))
    change_BO = DATA.next_obs_BO.astype(float) - DATA.obs_BO
    rows = []
    for member, shape in enumerate(shapes):
        alpha = STD * math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
        density = gennorm(shape, loc=prediction.target_mean[member].numpy().astype(float), scale=alpha)
        rows.append(torch.from_numpy(density.logpdf(change_BO).sum(axis=1)))
    per_member_MB = torch.stack(rows)
    mixture, mean = log_likelihood(model, DATA)
    assert mean.value == pytest.approx(float(per_member_MB.mean()), rel=1e-6)
    assert mixture.value == pytest.approx(float((per_member_MB.logsumexp(0) - math.log(2)).mean()), rel=1e-6)
