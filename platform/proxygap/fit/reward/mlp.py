"""MLP on the features of each step, summed over the steps: all members as one stack of matrices.

Shape legend: M members, R rows (items), H steps, F features, W width of a layer.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Items, ItemSpec
from proxygap.fit.dynamics.network import LANES
from proxygap.fit.reward.items import feature_column
from proxygap.fit.reward.networks import Columns, Initial, Layout, Leaf, head_scores, stacked_leaves


class MlpNetwork:
    """SiLU layers and a linear head; an item's score is the sum over its steps (Christiano et al. 2017, Eq. 1).

    Weights start normal with variance 1 / fan_in, biases at 0. Raises InvalidExperiment for items without features.
    """

    def __init__(self, spec: ItemSpec, hidden: tuple[int, ...], frozen_layers: int) -> None:
        if spec.features == 0:
            raise InvalidExperiment(
                "the task's items have no features",
                field="fit.kind",
                value="mlp_reward",
                remedy="use transformer_reward, or a task whose items have features",
            )
        self._spec, self._last = spec, len(hidden)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (fan_in, fan_out) in enumerate(pairwise((spec.features, *hidden, 1))):
            shapes |= {f"weight_{layer}": (fan_in, fan_out), f"bias_{layer}": (1, fan_out)}
        self.layout = Layout(shapes)
        self.frozen = frozenset(f"{kind}_{layer}" for kind in ("weight", "bias") for layer in range(frozen_layers))
        self.head = frozenset({f"weight_{self._last}", f"bias_{self._last}"})
        self.normalized = spec.features

    def widest(self, rows: int) -> int:
        """The widest layer, for items of one step."""
        return rows * max(shape[1] for shape in self.layout.shapes.values())

    def initial(self, rng: np.random.Generator) -> Initial:
        """Fresh weights of one member."""
        return {
            name: (rng.normal(size=shape) / np.sqrt(shape[0]) if name.startswith("weight") else np.zeros(shape)).astype(
                np.float32
            )
            for name, shape in self.layout.shapes.items()
        }

    def columns(self, items: Items) -> dict[str, torch.Tensor]:
        """``feature`` (B, H, F)."""
        return {"feature": feature_column(items, self._spec)}

    def bind(self, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None = None) -> _MlpScorer:
        """Scores by these weights."""
        views, leaves = stacked_leaves(self.layout, flat_MP, grad_MP, self.frozen)
        layers = [(views[f"weight_{layer}"], views[f"bias_{layer}"]) for layer in range(self._last + 1)]
        return _MlpScorer(layers, leaves)


class _MlpScorer:
    """`MlpNetwork` bound to weights."""

    def __init__(self, layers: list[tuple[torch.Tensor, torch.Tensor]], leaves: list[Leaf]) -> None:
        self._layers, self.leaves = layers, leaves

    def __call__(self, columns: Columns) -> torch.Tensor:
        """Raw scores (M, R) of normalized features (M, R, H, F)."""
        feature_MRHF = columns["feature"]
        members, rows, steps, _ = feature_MRHF.shape
        x = feature_MRHF.reshape(members, rows * steps, -1)
        missing = -(rows * steps) % LANES
        if missing:
            x = torch.cat([x, x.new_zeros(members, missing, x.shape[-1])], dim=1)
        for weight, bias in self._layers[:-1]:
            x = torch.nn.functional.silu(torch.baddbmm(bias, x, weight))
        weight, bias = self._layers[-1]
        score_MX = head_scores(x, weight, bias)[:, : rows * steps]
        return score_MX.reshape(members, rows, steps).sum(dim=-1)
