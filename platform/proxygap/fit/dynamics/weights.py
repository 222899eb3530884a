"""Losses that weigh transitions by what they are worth: the squared weights of errors are found once per fit.

Shape legend: M members, B batch, T predicted targets, N rows of data, O observation size, I inputs (observation and
action), X expert rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, PositiveFloat

from proxygap.base.config import Settings
from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.fit.dynamics.losses import Likelihood, PlainLoss, SquaredError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from proxygap.base.protocols import FitContext, Normalized
    from proxygap.base.records import Float32, Transitions

_CHUNK = 4096
"""Rows handled at once."""
RELEASED_BOUND = 1e5
"""Norm of a gradient below which the released code of VaGraM never clips."""


class ExpertDistance(PlainLoss, Settings):
    """Likelihood in which transitions near an expert's count more (Lambert et al. 2020, section 5).

    ``d_i = min_t |(s_i, a_i) - (s*_t, a*_t)|`` over expert transitions, in deviations of each input over the data, and
    ``w_i`` proportional to ``exp(-d_i)``, with mean 1 over the data, so that a learning rate means what it meant.
    """

    kind: Literal["expert_distance"] = "expert_distance"
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the weight that goes by distance; the rest is the same for all. 0 is the plain likelihood."""
    length: PositiveFloat = 1.0
    """Distance, in deviations, over which a weight falls to 1/e (the paper's is 1); smaller looks only near the expert:
    such models are not robust. Typical distances grow with the square root of the number of inputs."""

    def weigh(self, data: Transitions, targets: int, context: FitContext) -> Float32 | None:
        """Weights (N, T), equal for all targets of a row.

        Raises:
            InvalidExperiment: the context has no expert transitions.
        """
        if context.expert is None or len(context.expert) == 0:
            raise InvalidExperiment(
                "the expert_distance loss needs transitions of an expert",
                field="fit.loss.kind",
                value=self.kind,
                remedy="name a dataset of expert transitions, or take the likelihood loss",
            )
        distance_N = nearest_distance(_inputs(data), _inputs(context.expert)) / self.length
        near_N = np.exp(distance_N.min() - distance_N)
        weight_N = self.strength * near_N / near_N.mean() + (1.0 - self.strength)
        return np.repeat(weight_N.astype(np.float32)[:, None], targets, axis=1)

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """The weighted likelihood, shape (M,)."""
        return Likelihood()(output, target_MBT, weight_MBT)


class ValueGradient(PlainLoss, Settings):
    """Squared error weighted by the squared gradient of the value at the next state (VaGraM; Voelcker et al. 2022).

    ``L = 1/n sum_i sum_d (dV/ds_d(s'_i))^2 (f_d(s_i, a_i) - s'_id)^2 + (r_hat - r_i)^2`` in raw units (section 4):
    by Taylor and Cauchy-Schwarz a bound, up to the factor O, on how wrong the model makes the value. The whole is then
    scaled so that the mean weight is 1; the plain error that the released code adds in its first epoch is left out.
    """

    kind: Literal["value_gradient"] = "value_gradient"
    clip: Literal["bounds", "released_code"] = "bounds"
    """Gradients longer than ``clip_quantile`` of all are shortened to it, as the paper says; ``released_code`` shortens
    only those that are also longer than 100,000, which is to say that in practice it clips nothing."""
    clip_quantile: float = Field(default=0.95, gt=0.0, le=1.0)
    """Quantile of the gradients' norms over the rows of a fit; lower evens the weights of rows out."""

    @property
    def raw_units(self) -> bool:
        """Gradients are per raw unit."""
        return True

    @property
    def learns_deviation(self) -> bool:
        """The deviation is measured on held-out rows."""
        return False

    def weigh(self, data: Transitions, targets: int, context: FitContext) -> Float32 | None:
        """Weights (N, T): squared, clipped gradients; 1 for the reward where it is a target.

        Raises:
            InvalidExperiment: the context has no value gradient.
            NonFiniteValue: a gradient is NaN or infinite.
        """
        if context.value_gradient is None:
            raise InvalidExperiment(
                "the value_gradient loss needs a value function, which this loop does not learn",
                field="fit.loss.kind",
                value=self.kind,
                remedy="take a loop with critics, such as mbpo, or another loss",
            )
        gradient_NO = _gradients(context, data.next_obs_BO)
        weight_NT = np.ones((len(data), targets), np.float32)
        weight_NT[:, : gradient_NO.shape[1]] = np.square(self._clipped(gradient_NO))
        return weight_NT

    def _clipped(self, gradient_NO: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows no longer than the bound; in the released code also those below `RELEASED_BOUND` are kept."""
        norm_N1 = np.linalg.norm(gradient_NO, axis=1, keepdims=True)
        bound = float(np.quantile(norm_N1, self.clip_quantile))
        kept_N1 = norm_N1 <= bound
        if self.clip == "released_code":
            kept_N1 |= norm_N1 < RELEASED_BOUND
        return np.where(kept_N1, gradient_NO, gradient_NO * (bound / np.maximum(norm_N1, np.finfo(np.float64).tiny)))

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """The weighted squared error, shape (M,)."""
        return SquaredError()(output, target_MBT, weight_MBT)


def nearest_distance(rows_NI: NDArray[np.float64], expert_XI: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance (N,) from each row to the nearest expert row, columns in deviations of ``rows_NI``; exact.

    A column that does not vary in the rows keeps its scale.
    """
    import torch

    deviation_I = rows_NI.std(axis=0)
    constant = deviation_I <= 4 * np.finfo(np.float32).eps * np.abs(rows_NI).max(axis=0)
    deviation_I = np.where(constant, 1.0, deviation_I)
    rows, expert = (torch.from_numpy(values / deviation_I) for values in (rows_NI, expert_XI))
    parts = [
        torch.cdist(part, expert, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
        for part in torch.split(rows, _CHUNK)
    ]
    return np.asarray(torch.cat(parts).numpy())


def effective_sample_size(weight_NT: Float32) -> float:
    """(sum w)^2 / sum w^2 per target, averaged over the targets that carry weight (Kish 1965): N where all weigh alike.

    It does not depend on the units of a target. 0 where nothing carries weight.
    """
    total_T = weight_NT.sum(axis=0, dtype=np.float64)
    square_T = np.square(weight_NT, dtype=np.float64).sum(axis=0)
    carrying_T = square_T > 0
    if not carrying_T.any():
        return 0.0
    return float((np.square(total_T[carrying_T]) / square_T[carrying_T]).mean())


def _inputs(data: Transitions) -> NDArray[np.float64]:
    return np.concatenate([data.obs_BO, data.action_BA], axis=1, dtype=np.float64)


def _gradients(context: FitContext, obs_NO: Float32) -> NDArray[np.float64]:
    """The value's gradient at each observation (N, O). Raises NonFiniteValue, naming the row."""
    import torch

    assert context.value_gradient is not None
    rows = torch.from_numpy(np.ascontiguousarray(obs_NO))
    parts = [context.value_gradient(part).detach().cpu() for part in torch.split(rows, _CHUNK)]
    gradient_NO = np.asarray(torch.cat(parts).double().numpy())
    bad = ~np.isfinite(gradient_NO).all(axis=1)
    if bad.any():
        raise NonFiniteValue(
            "the gradient of the value at a next state is not finite",
            field="value_gradient",
            value=f"row {int(np.flatnonzero(bad)[0])}",
            remedy="lower optimize.learning_rate, or check the rewards for outliers",
        )
    return gradient_NO
