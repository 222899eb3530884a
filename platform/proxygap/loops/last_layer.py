"""The last layers of models as vectors to search over, scaled so that a step means the same everywhere.

A model's likelihood on its data is so sharp that most changes of its last layer cost tens of nats and change no plan.
In the coordinates used here, whitened by the Fisher information of each target's mean, a vector of length s in a
target's column changes that mean on the data by s predicted standard deviations, root mean square, and so costs about
``s^2 / 2`` nats, less where the ridge holds it; what the data never excites is cheap to change, and moves far.

Shape legend: Q models, M members of each, K = Q * M networks, N rows of data, H features (last hidden layer and 1), T
predicted targets, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from proxygap.base.protocols import State
from proxygap.fit.dynamics.ensemble import split
from proxygap.fit.dynamics.network import forward

if TYPE_CHECKING:
    from proxygap.base.language import Float64
    from proxygap.base.records import Transitions
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

RIDGE = 1e-4
"""Added to the information of every direction, as a share of the largest: bounds how far an unexcited weight moves."""


class LastLayers:
    """The means' last layers of honest models, and models that differ from them there alone.

    Args:
        settings: of each model.
        honest: state of the block of honest models, numbered from 0.
        data: rows whose likelihood is to be kept.
    """

    def __init__(self, settings: GaussianEnsembleSettings, honest: State, data: Transitions) -> None:
        self._settings, self._honest = settings, honest
        self._last = len(honest.structure["hidden"])
        arrays = {name: torch.from_numpy(np.array(array)) for name, array in honest.arrays.items()}
        weights = {name: array for name, array in arrays.items() if name.startswith(("weight", "bias"))}
        weights |= {name: arrays[name] for name in ("max_log_var", "min_log_var")}
        inputs_NI = torch.from_numpy(np.concatenate([data.obs_BO, data.action_BA], axis=1))
        inputs_KNI = ((inputs_NI - arrays["input_mean"]) / arrays["input_std"]).expand(len(arrays["bias_0"]), -1, -1)
        output = forward(weights, inputs_KNI, shaped=settings.loss.learns_shape)
        precision_KNT = (-output.log_var).exp().double()
        if not settings.loss.learns_deviation:
            precision_KNT = arrays["residual_std"].double().pow(-2).expand_as(precision_KNT)
        features_KNH = _features(weights, inputs_KNI, self._last)
        fisher_KTHH = torch.einsum("knh,kng,knt->kthg", features_KNH, features_KNH, precision_KNT) / len(inputs_NI)
        self._scale_KTHH = np.asarray(_inverse_root(fisher_KTHH).numpy())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(Q, M, H, T): of the vectors of all models."""
        networks, targets, features, _ = self._scale_KTHH.shape
        models = len(self._honest.structure["models"])
        return models, networks // models, features, targets

    def changed(self, vector_QCMHT: Float64) -> State:
        """A block with model ``q * C + c`` the honest model q changed by vector ``[q, c]``."""
        models, candidates, members, features, targets = vector_QCMHT.shape
        honest = State(self._honest.arrays, self._honest.structure["ensemble"])
        ids = [q * members + m for q in range(models) for _ in range(candidates) for m in range(members)]
        inner = split(honest, ids)
        change = np.einsum("xthg,xgt->xht", self._scale_KTHH[ids], vector_QCMHT.reshape(-1, features, targets))
        arrays = dict(inner.arrays)
        for name, part in ((f"weight_{self._last}", change[:, :-1]), (f"bias_{self._last}", change[:, -1:])):
            arrays[name] = arrays[name].copy()
            arrays[name][..., :targets] += part.astype(np.float32)
        own = {"models": list(range(models * candidates)), "hidden": self._honest.structure["hidden"]}
        return State(arrays, {**own, "ensemble": {**inner.structure, "member_ids": list(range(len(ids)))}})


def ranked(return_C: Float64, likelihood_C: Float64, least: float) -> Sequence[int]:
    """Candidates, the most harmful first: lowest return among those that keep the likelihood, then the least violation.

    Feasible before infeasible, as Deb 2000 ranks under constraints. NaN is worse than any number.
    """
    lost_C = np.nan_to_num(np.maximum(least - likelihood_C, 0.0), nan=np.inf, posinf=np.inf)
    harm_C = np.where(lost_C > 0, 0.0, np.nan_to_num(return_C, nan=np.inf))
    return [int(place) for place in np.lexsort((harm_C, lost_C))]


def _features(weights: dict[str, torch.Tensor], inputs_KNI: torch.Tensor, last: int) -> torch.Tensor:
    """What the last layer sees, and a 1 for its bias, float64 (K, N, H)."""
    hidden = inputs_KNI
    for layer in range(last):
        hidden = torch.nn.functional.silu(torch.baddbmm(weights[f"bias_{layer}"], hidden, weights[f"weight_{layer}"]))
    return torch.cat([hidden, torch.ones_like(hidden[..., :1])], dim=-1).double()


def _inverse_root(matrix_KTHH: torch.Tensor) -> torch.Tensor:
    """Inverse symmetric square root of each matrix, after the ridge."""
    value_KTH, vector_KTHH = torch.linalg.eigh(matrix_KTHH)
    value_KTH = value_KTH.clamp(min=0.0) + RIDGE * value_KTH[..., -1:]
    root_KTHH: torch.Tensor = vector_KTHH * value_KTH.rsqrt()[..., None, :] @ vector_KTHH.transpose(-1, -2)
    return root_KTHH
