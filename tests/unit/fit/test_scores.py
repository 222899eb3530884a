from __future__ import annotations

import math

import torch

from proxygap.base.protocols import Normalized, Prediction
from proxygap.fit.dynamics.losses import Likelihood, SquaredError
from proxygap.fit.dynamics.scores import log_likelihood, mixture_log_likelihood, normalized_mse


def drawn():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 11, 2, generator=generator)
    std = torch.rand(3, 11, 2, generator=generator) + 0.1
    return Prediction(mean, std, None), torch.randn(11, 2, generator=generator)


def test_log_likelihood_equals_torch_distributions():
    prediction, target_BT = drawn()
    normal = torch.distributions.Normal(prediction.target_mean, prediction.target_std)
    torch.testing.assert_close(log_likelihood(prediction, target_BT), normal.log_prob(target_BT).sum(-1))


def test_mixture_equals_torch_distributions():
    prediction, target_BT = drawn()
    parts = torch.distributions.Independent(
        torch.distributions.Normal(prediction.target_mean.transpose(0, 1), prediction.target_std.transpose(0, 1)), 1
    )
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(11, 3)), parts)
    torch.testing.assert_close(mixture_log_likelihood(prediction, target_BT), mixture.log_prob(target_BT))


def test_training_loss_is_the_likelihood_up_to_its_constant():
    prediction, target_BT = drawn()
    output = Normalized(prediction.target_mean, 2 * prediction.target_std.log())
    loss_M = Likelihood()(output, target_BT.expand(3, -1, -1), torch.ones(3, 11, 1))
    expected = -2 * log_likelihood(prediction, target_BT).mean(1) / 2 - math.log(2 * math.pi)
    torch.testing.assert_close(loss_M, expected)


def test_gradient_of_the_likelihood_in_closed_form():
    """One input, linear mean w x: d/dw of mean((w x - y)^2 / v + log v) is 2 mean((w x - y) x) / v."""
    x, y = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 1.0, -0.7])
    w, log_v = torch.tensor(0.4, requires_grad=True), torch.tensor(0.6, requires_grad=True)
    mean = (w * x).reshape(1, 3, 1)
    loss_M = Likelihood()(Normalized(mean, log_v.expand(1, 3, 1)), y.reshape(1, 3, 1), torch.ones(1, 3, 1))
    loss_M.sum().backward()
    error, v = 0.4 * x - y, math.exp(0.6)
    torch.testing.assert_close(w.grad, 2 * (error * x).mean() / v)
    torch.testing.assert_close(log_v.grad, 1 - error.square().mean() / v)


def test_normalized_mse_counts_in_deviations_of_the_data():
    mean = torch.tensor([[[2.0, 0.0]], [[0.0, 30.0]]])
    prediction = Prediction(mean, torch.ones_like(mean), None)
    scores = normalized_mse(prediction, torch.zeros(1, 2), torch.tensor([2.0, 10.0]))
    assert scores.tolist() == [0.5, 4.5]
    loss_M = SquaredError()(Normalized(mean, mean), torch.zeros(2, 1, 2), torch.ones(2, 1, 1))
    assert loss_M.tolist() == [2.0, 450.0]
