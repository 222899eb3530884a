"""Noise over the horizon, of deviation 1 unless said otherwise; drawn once for all problems.

Shape legend: N sequences, H horizon, A action size, F frequencies (H // 2 + 1).
"""

from __future__ import annotations

import math

import torch

TRUNCATION = 2.0
"""Deviations beyond which the normal of the cross-entropy method is cut (PETS, released code)."""


def white(count: int, horizon: int, action_size: int, generator: torch.Generator) -> torch.Tensor:
    """Independent standard normals, shape (N, H, A)."""
    return torch.randn(count, horizon, action_size, generator=generator, device=generator.device)


def truncated(count: int, horizon: int, action_size: int, generator: torch.Generator) -> torch.Tensor:
    """Standard normals conditioned on lying within two deviations of 0 (their own deviation is 0.88), (N, H, A).

    By the inverse of the distribution function: no draw is rejected.
    """
    uniform_NHA = torch.rand(count, horizon, action_size, generator=generator, device=generator.device)
    share = math.erf(TRUNCATION / math.sqrt(2.0))
    normal_NHA = math.sqrt(2.0) * torch.erfinv(share * (2.0 * uniform_NHA - 1.0))
    return normal_NHA.clamp(-TRUNCATION, TRUNCATION)


def colored(count: int, horizon: int, action_size: int, exponent: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise whose power falls as ``frequency ** -exponent`` along the horizon, shape (N, H, A).

    Timmer and Koenig 1995, as Pinneri et al. 2020, section 3.1, use it: independent Fourier components scaled by the
    square root of the power, the mean taking the power of the lowest frequency. Scaled so that each entry has deviation
    1, the mean's share included (the package colorednoise leaves that share out, and its noise is somewhat larger).
    """
    amplitude_F = _amplitudes(horizon, exponent).to(generator.device)
    part_NAF2 = torch.randn(count, action_size, len(amplitude_F), 2, generator=generator, device=generator.device)
    noise_NAH = torch.fft.irfft(amplitude_F * torch.view_as_complex(part_NAF2), n=horizon, dim=-1)
    noise_NHA: torch.Tensor = noise_NAH.transpose(1, 2).contiguous()
    return noise_NHA


def _amplitudes(horizon: int, exponent: float) -> torch.Tensor:
    """Deviations of the real (and of the imaginary) parts, (F,), that give every entry of the noise variance 1.

    An inner frequency adds ``4 s^2 / H^2`` to the variance; the mean, and for an even horizon the highest frequency,
    are real: they have twice the variance of one part, and add ``2 s^2 / H^2``.
    """
    frequency_F = torch.fft.rfftfreq(horizon).clamp(min=1.0 / horizon)
    amplitude_F = frequency_F ** (-exponent / 2.0)
    factor_F = torch.ones_like(amplitude_F)
    factor_F[0] = math.sqrt(2.0)
    if horizon % 2 == 0:
        factor_F[-1] = math.sqrt(2.0)
    share_F = torch.where(factor_F > 1.0, 2.0, 4.0) * amplitude_F.square()
    scaled_F: torch.Tensor = factor_F * amplitude_F * horizon / share_F.sum().sqrt()
    return scaled_F


def smoothed(noise_NHA: torch.Tensor, smoothing: float) -> torch.Tensor:
    """``n_t = (1 - smoothing) u_t + smoothing n_(t-1)``, ``n_(-1) = 0`` (PDDM; Nagabandi et al. 2019, Eq. 3).

    Its deviation is below that of ``u``: at most ``sqrt((1 - smoothing) / (1 + smoothing))`` of it, reached late.
    """
    step_H = torch.arange(noise_NHA.shape[1], device=noise_NHA.device)
    lag_HH = step_H[:, None] - step_H[None, :]
    kernel_HH = torch.where(lag_HH >= 0, (1.0 - smoothing) * smoothing ** lag_HH.clamp(min=0), 0.0)
    return torch.einsum("tk,nka->nta", kernel_HH.to(noise_NHA.dtype), noise_NHA)
