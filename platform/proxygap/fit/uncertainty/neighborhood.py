"""A sample of the training data, and what its nearness tells: the data's density, and the noise of the targets.

Shape legend: N rows of the sample, B rows asked about, I inputs, T targets, H bandwidths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from proxygap.base.protocols import Arrays
from proxygap.fit.uncertainty.errors import scale_of

LEAST_LOG_DENSITY = -50.0
"""Log-densities are cut off below (as in the released code of Lahlou et al. 2023): far is far."""
_BANDWIDTHS = torch.logspace(-1.5, 0.5, 12)
_CHUNK = 2000


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """Inputs in units of their deviation (float32), and the noise variance seen around each row."""

    center_I: torch.Tensor
    scale_I: torch.Tensor
    sample_NI: torch.Tensor
    noise_N: torch.Tensor
    bandwidth: float

    @staticmethod
    def of(input_NI: torch.Tensor, residual_NT: torch.Tensor) -> Neighborhood:
        """From a sample's inputs and the model's residuals there (scaled), at least 3 rows.

        The noise of a row is half the squared difference of its residual and its nearest neighbor's, averaged over
        targets: the bias of a smooth model is alike in both and cancels, noise does not (Rice 1984, for residuals).
        """
        center_I, scale_I = input_NI.mean(dim=0), scale_of(input_NI)
        sample_NI = (input_NI - center_I) / scale_I
        distance_NN = torch.cdist(sample_NI, sample_NI, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(
            math.inf
        )
        nearest_N = distance_NN.argmin(dim=1)
        noise_N = 0.5 * (residual_NT - residual_NT[nearest_N]).square().mean(dim=-1)
        return Neighborhood(center_I, scale_I, sample_NI, noise_N, _best_bandwidth(distance_NN, sample_NI.shape[1]))

    def log_density(self, input_BI: torch.Tensor) -> torch.Tensor:
        """Log-density of the training inputs by Gaussian kernels, nats in units of their deviations, (B,)."""
        parts = [_log_kernels(d, self.bandwidth, self.sample_NI.shape[1]) for d in self._distances(input_BI)]
        return torch.cat(parts).clamp(min=LEAST_LOG_DENSITY)

    def noise(self, input_BI: torch.Tensor, neighbors: int) -> torch.Tensor:
        """Noise variance of the targets around each row: mean over its nearest rows of the sample, (B,)."""
        count = min(neighbors, len(self.sample_NI))
        parts = [self.noise_N[d.topk(count, largest=False).indices].mean(dim=-1) for d in self._distances(input_BI)]
        return torch.cat(parts)

    def normalized(self, input_BI: torch.Tensor) -> torch.Tensor:
        """Inputs in the sample's units."""
        return (input_BI - self.center_I) / self.scale_I

    def arrays(self) -> Arrays:
        """Everything but the bandwidth."""
        names = ("center_I", "scale_I", "sample_NI", "noise_N")
        return {name: getattr(self, name).numpy().copy() for name in names}

    def _distances(self, input_BI: torch.Tensor) -> list[torch.Tensor]:
        """Chunks (B, N)."""
        rows = torch.split(self.normalized(input_BI), _CHUNK)
        return [torch.cdist(r, self.sample_NI, compute_mode="donot_use_mm_for_euclid_dist") for r in rows]


def _log_kernels(distance_BN: torch.Tensor, bandwidth: float, inputs: int) -> torch.Tensor:
    """Log of the mean of Gaussian kernels; a distance of infinity is no kernel, but counts in the mean."""
    exponent_B = (-0.5 * (distance_BN / bandwidth).square()).logsumexp(dim=-1)
    return exponent_B - math.log(distance_BN.shape[1]) - inputs * math.log(bandwidth * math.sqrt(2 * math.pi))


def _best_bandwidth(distance_NN: torch.Tensor, inputs: int) -> float:
    """Of `_BANDWIDTHS`, the one under which each row is likeliest by all others' kernels (leave-one-out)."""
    scores_H = torch.stack([_log_kernels(distance_NN, float(h), inputs).mean() for h in _BANDWIDTHS])
    return float(_BANDWIDTHS[scores_H.argmax()])
