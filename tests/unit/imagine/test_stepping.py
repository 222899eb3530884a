from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import gennorm, kstest

from proxygap.base.protocols import Prediction
from proxygap.imagine.stepping import noise_like, sampled


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 4.0, 10.0])
def test_samples_have_the_shape_the_mean_and_the_deviation_that_were_predicted(shape):
    rows = 40_000
    prediction = Prediction(torch.full((rows, 1), 3.0), torch.full((rows, 1), 0.5), None, torch.full((rows, 1), shape))
    target_B = sampled(prediction, noise_like(prediction, torch.Size((rows, 1)), draw()))[:, 0].double().numpy()
    alpha = 0.5 * math.exp(0.5 * (math.lgamma(1 / shape) - math.lgamma(3 / shape)))
    law = gennorm(shape, loc=3.0, scale=alpha)
    assert law.std() == pytest.approx(0.5)
    assert kstest(target_B, law.cdf).pvalue > 0.01
    assert np.abs(target_B - 3.0).mean() == pytest.approx(law.expect(lambda x: abs(x - 3.0)), rel=0.02)


def test_a_gaussian_prediction_takes_plain_normals():
    prediction = Prediction(torch.ones(5, 2), torch.full((5, 2), 2.0), None)
    noise_BT = noise_like(prediction, torch.Size((5, 2)), draw())
    assert torch.equal(noise_BT, torch.randn(5, 2, generator=draw()))
    assert torch.equal(sampled(prediction, noise_BT), 1.0 + 2.0 * noise_BT)


def test_rows_that_share_noise_share_luck_whatever_their_shapes():
    shape_BT = torch.tensor([[0.6, 2.0], [0.6, 8.0], [3.0, 2.0]])
    prediction = Prediction(torch.zeros(3, 2), torch.ones(3, 2), None, shape_BT)
    target_BT = sampled(prediction, noise_like(prediction, torch.Size((1, 2)), draw()))
    assert target_BT.shape == (3, 2)
    assert target_BT[0, 0] == target_BT[1, 0]
    assert target_BT[0, 1] == target_BT[2, 1]
    assert bool((target_BT.sign() == target_BT[:1].sign()).all())
