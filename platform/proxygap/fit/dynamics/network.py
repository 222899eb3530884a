"""The networks of an ensemble: all members in one stack of weights, multiplied together.

Shape legend: M members held, B batch rows, I inputs (observation and action), T predicted targets, N rows of data.

Every stack is padded to whole vector registers (`LANES` floats per member): SIMD kernels treat the tail of a tensor
differently from its body, so that only then a member's numbers do not depend, bit for bit, on which other members
share its host. (With several threads a tensor is also cut where the threads meet: bits are promised for one thread.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.special import ndtr, ndtri

from proxygap.base.protocols import Normalized
from proxygap.base.seeds import generator

LANES = 32
"""Rows of a batch, and floats of a member's parameter, come in multiples of this."""

Weights = dict[str, torch.Tensor]
"""Flat name to tensor with the members first: ``weight_0``, ``bias_0``, ..., ``max_log_var``, ``min_log_var``."""

SHAPE_BOUNDS = (0.25, 10.0)
"""Softly kept bounds of a learned shape: below, tails have no useful variance; above, errors are as good as uniform."""
_GAUSSIAN = math.log(math.expm1(2.0 - SHAPE_BOUNDS[0]))
"""What makes the softplus of an output of 0 a Gaussian."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of one member: outputs are T means, T log-variances and, where learned, T shapes, a termination logit."""

    inputs: int
    targets: int
    hidden: tuple[int, ...]
    termination: bool
    shaped: bool = False

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Parameter name to the shape of one member's matrix."""
        widths = (self.inputs, *self.hidden, (2 + self.shaped) * self.targets + self.termination)
        shapes: dict[str, tuple[int, int]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            shapes |= {f"weight_{layer}": (fan_in, fan_out), f"bias_{layer}": (1, fan_out)}
        return shapes | {"max_log_var": (1, self.targets), "min_log_var": (1, self.targets)}


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Shift and scale to zero mean and unit deviation, per column."""

    mean: torch.Tensor
    std: torch.Tensor

    @staticmethod
    def of(rows: torch.Tensor) -> Normalizer:
        """Statistics of (N, columns), taken in float64; a column that does not vary keeps its scale (std 1)."""
        mean = rows.double().mean(dim=0)
        std = (rows.double() - mean).square().mean(dim=0).sqrt()
        constant = std <= 4 * torch.finfo(torch.float32).eps * rows.double().abs().amax(dim=0)
        return Normalizer(mean.float(), torch.where(constant, 1.0, std).float())

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalized rows."""
        return (rows - self.mean) / self.std


def initial_weights(sizes: Sizes, member_ids: Sequence[int], seed: int) -> Weights:
    """Fresh weights, each member's from its own generator, so that a shard draws what the whole would.

    Truncated normal of std ``1 / (2 sqrt(fan_in))``, zero biases, log-variance bounds 0.5 and -10, as PETS (Chua et al.
    2018, released code) and MBPO have them.
    """
    rngs = [generator(seed, f"dynamics/member/{member}/init") for member in member_ids]
    weights: Weights = {}
    for name, shape in sizes.shapes().items():
        if name.startswith("weight"):
            drawn = np.stack([_truncated_normal(rng, shape) for rng in rngs]) / (2.0 * math.sqrt(shape[0]))
            weights[name] = torch.from_numpy(drawn.astype(np.float32))
        else:
            fill = {"max_log_var": 0.5, "min_log_var": -10.0}.get(name, 0.0)
            weights[name] = torch.full((len(rngs), *shape), fill)
    return weights


def _truncated_normal(
    rng: np.random.Generator, shape: tuple[int, int]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """A standard normal cut at two deviations, by the inverse of its distribution function."""
    low = float(ndtr(-2.0))
    return np.asarray(ndtri(low + (1.0 - 2.0 * low) * rng.random(shape)))


def forward(weights: Weights, input_MBI: torch.Tensor, *, shaped: bool = False) -> Normalized:
    """All members at once: SiLU layers, then `heads`; ``shaped`` where a shape per target is learned."""
    hidden = input_MBI
    last = sum(name.startswith("weight") for name in weights) - 1
    for layer in range(last):
        hidden = torch.baddbmm(weights[f"bias_{layer}"], hidden, weights[f"weight_{layer}"])
        hidden = torch.nn.functional.silu(hidden, inplace=not torch.is_grad_enabled())
    out = torch.baddbmm(weights[f"bias_{last}"], hidden, weights[f"weight_{last}"])
    return heads(out, weights["max_log_var"], weights["min_log_var"], shaped=shaped)


def heads(out: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor, *, shaped: bool = False) -> Normalized:
    """The last layer's outputs told apart, log-variance softly bounded (PETS; Chua et al. 2018, appendix A.1)."""
    targets = upper.shape[-1]
    log_var = upper - torch.nn.functional.softplus(upper - out[..., targets : 2 * targets])
    log_var = lower + torch.nn.functional.softplus(log_var - lower)
    return told_apart(out[..., :targets], log_var, out[..., 2 * targets :], shaped=shaped)


def told_apart(mean: torch.Tensor, log_var: torch.Tensor, rest: torch.Tensor, *, shaped: bool) -> Normalized:
    """Means, bounded log-variances and what the ``rest`` of the outputs is: shapes, then a logit, where learned."""
    targets = mean.shape[-1]
    shape = bounded_shape(rest[..., :targets]) if shaped else None
    return Normalized(mean, log_var, rest[..., -1] if rest.shape[-1] > shaped * targets else None, shape)


def bounded_shape(out: torch.Tensor) -> torch.Tensor:
    """A shape within `SHAPE_BOUNDS`; an output of 0 is a Gaussian's."""
    low, high = SHAPE_BOUNDS
    positive = low + torch.nn.functional.softplus(out + _GAUSSIAN)
    return high - torch.nn.functional.softplus(high - positive)


def aligned(weights: Weights) -> Weights:
    """Copies in which each member's parameter starts on a cache line of its own and is padded to `LANES`.

    Kernels may round differently at another alignment, and memory that came from NumPy has no fixed one.
    """
    return {name: storage_view(padded_storage(weight), weight) for name, weight in weights.items()}


def padded_storage(weight: torch.Tensor) -> torch.Tensor:
    """A copy of (M, fan_in, fan_out) as (M, fan_in * fan_out and zeros up to a multiple of `LANES`)."""
    size = weight[0].numel()
    storage_MP = weight.new_zeros(len(weight), size + -size % LANES)
    storage_MP[:, :size] = weight.detach().reshape(len(weight), size)
    return storage_MP


def storage_view(storage_MP: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a `padded_storage` that holds the parameter, in the shape of ``like``."""
    return storage_MP.detach()[:, : like[0].numel()].view(like.shape)


def pad_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, ...) followed by zero rows up to a multiple of `LANES`."""
    missing = -len(rows) % LANES
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows


def row_weights(rows: int, device: torch.device | str) -> torch.Tensor:
    """Weights, padded as `pad_rows` pads, under which the mean over padded rows is the mean over the real ones."""
    padded = rows + -rows % LANES
    weights = torch.zeros(padded, device=device)
    weights[:rows] = padded / rows
    return weights
