"""A small network that predicts a positive number, the expected error, from features.

Shape legend: N examples, F features, B batch.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from proxygap.base.protocols import Arrays
from proxygap.base.seeds import torch_generator
from proxygap.fit.uncertainty.settings import DeupSettings

_LEAST = 1e-6
"""Least predicted error, in units of the mean error."""


class Predictor:
    """Features to expected error: softplus above a multilayer perceptron, in units of the examples' mean error."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        self._weights = weights

    def __call__(self, features_NF: torch.Tensor) -> torch.Tensor:
        """Expected error, (N,), positive."""
        weights = self._weights
        with torch.no_grad():
            x = (features_NF - weights["center"]) / weights["scale"]
            return _forward(weights, x) * weights["unit"]

    def arrays(self) -> Arrays:
        """Weights, units of the features, unit of the error."""
        return {name: tensor.numpy().copy() for name, tensor in self._weights.items()}

    @staticmethod
    def trained(settings: DeupSettings, features_NF: torch.Tensor, error_N: torch.Tensor, seed: int) -> Predictor:
        """Fitted to examples from scratch; ``seed`` draws the initial weights and the batches."""
        rng = torch_generator(seed, "weights")
        center_F, scale_F = features_NF.mean(dim=0), features_NF.std(dim=0, correction=0)
        constant_F = scale_F <= 1e-6 * features_NF.abs().amax(dim=0).clamp(min=1.0)
        scale_F = torch.where(constant_F, torch.ones_like(scale_F), scale_F)
        unit = error_N.mean().clamp(min=1e-12)
        x_NF, y_N = (features_NF - center_F) / scale_F, error_N / unit
        weights = _initial((features_NF.shape[1], *settings.hidden, 1), rng)
        _descend(settings, weights, x_NF, y_N, torch_generator(seed, "batches"))
        kept = {name: tensor.detach() for name, tensor in weights.items()}
        return Predictor({**kept, "center": center_F, "scale": scale_F, "unit": unit})


def _initial(sizes: tuple[int, ...], rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Uniform as in torch.nn.Linear."""
    weights = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = fan_in**-0.5
        for name, shape in (("weight", (fan_in, fan_out)), ("bias", (fan_out,))):
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            weights[f"{name}_{layer}"] = drawn.requires_grad_()
    return weights


def _forward(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    last = sum(name.startswith("weight") for name in weights) - 1
    for layer in range(last):
        x = torch.nn.functional.silu(torch.addmm(weights[f"bias_{layer}"], x, weights[f"weight_{layer}"]))
    raw = torch.addmm(weights[f"bias_{last}"], x, weights[f"weight_{last}"])
    return _LEAST + torch.nn.functional.softplus(raw).squeeze(-1)


def _descend(
    settings: DeupSettings,
    weights: dict[str, torch.Tensor],
    x_NF: torch.Tensor,
    y_N: torch.Tensor,
    rng: torch.Generator,
) -> None:
    params = list(weights.values())
    adam = torch.optim.AdamW(params, lr=settings.learning_rate, weight_decay=settings.weight_decay, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, settings.updates)
    rows_UB = torch.randint(len(y_N), (settings.updates, settings.batch_size), generator=rng)
    for rows_B in rows_UB:
        predicted_B, error_B = _forward(weights, x_NF[rows_B]), y_N[rows_B]
        if settings.loss == "squared":  # Lahlou et al. 2023, section 3
            loss = (predicted_B - error_B).square().mean()
        else:  # twice the Gaussian likelihood of a residual with this variance; least at the conditional mean
            loss = (error_B / predicted_B + predicted_B.log()).mean()
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = gradient
        adam.step()
        schedule.step()
