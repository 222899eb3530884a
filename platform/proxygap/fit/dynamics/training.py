"""One fit of an ensemble: batches, early stopping and snapshots, all per member.

Shape legend: M members, A members still training, B rows of a batch, I inputs, T predicted targets, N training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import DynamicsLoss
from proxygap.base.seeds import derived_seed
from proxygap.fit.dynamics.losses import SquaredError
from proxygap.fit.dynamics.network import LANES, Weights, forward, pad_rows, padded_storage, row_weights, storage_view
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

BOUND_PENALTY = 0.01
"""Weight of (sum of maximal minus sum of minimal log-variances) in the loss: PETS, released code."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Supervised rows in normalized units; ``terminated_N`` (0 or 1) is None where termination is known."""

    input_NI: torch.Tensor
    target_NT: torch.Tensor
    terminated_N: torch.Tensor | None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.input_NI)


@dataclass(frozen=True, slots=True)
class Trained:
    """The best weights of each member and how they were reached."""

    weights: Weights
    held_out_loss_M: NDArray[np.float32]
    epochs_M: tuple[int, ...]
    updates: int


def is_held_out(seed: int, row_N: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which rows are never trained on: a pure function of seed and row number (splitmix64, Steele et al. 2014).

    A row therefore stays on its side in every refit, however much of the replay has been dropped before it.
    """
    golden, step = np.uint64(0x9E3779B97F4A7C15), np.uint64(derived_seed(seed, "dynamics/held_out"))
    z = (row_N.astype(np.uint64) + np.uint64(1)) * golden + step
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share)


def member_loss(
    settings: GaussianEnsembleSettings, weights: Weights, rows_MB: Rows, weight_MB: torch.Tensor
) -> torch.Tensor:
    """The data's loss per member, (M,): the dynamics loss plus, where learned, the cross-entropy of termination.

    ``rows_MB`` holds rows with the members in front: (M, B, I), (M, B, T), (M, B).
    """
    return _data_loss(settings.loss, weights, rows_MB, weight_MB)


def held_out_loss(weights: Weights, rows_MB: Rows, weight_MB: torch.Tensor) -> torch.Tensor:
    """What stops a member and makes it an elite, (M,): its squared error (MBPO's released code), and termination's.

    The likelihood of held-out rows would let a single surprising transition decide: members then never leave the
    cautious weights of an early fit (seen on InvertedPendulum-v5; `docs/decisions.md`).
    """
    return _data_loss(SquaredError(), weights, rows_MB, weight_MB)


def _data_loss(loss: DynamicsLoss, weights: Weights, rows_MB: Rows, weight_MB: torch.Tensor) -> torch.Tensor:
    output = forward(weights, rows_MB.input_NI)
    loss_M = loss(output.mean, output.log_var, rows_MB.target_NT, weight_MB)
    if output.logit is not None and rows_MB.terminated_N is not None:
        entropy_MB = torch.nn.functional.binary_cross_entropy_with_logits(
            output.logit, rows_MB.terminated_N, reduction="none"
        )
        loss_M = loss_M + (weight_MB * entropy_MB).mean(dim=-1)
    return loss_M


class Stack:
    """Members that train together: parameters padded to whole registers, gradients beside them, a fresh Adam.

    Adam's ``weight_decay`` is L2, the gradient of MBPO's ``0.5 * decay * |w|^2`` per layer (Janner et al. 2019,
    released code); biases and bounds are not decayed.
    """

    def __init__(self, settings: GaussianEnsembleSettings, weights: Weights) -> None:
        self._settings = settings
        self.members = len(weights["max_log_var"])
        self._flat: dict[str, torch.nn.Parameter] = {}
        self._leaves: Weights = {}
        self._grads: Weights = {}
        for name, weight in weights.items():
            storage_MP = padded_storage(weight)
            grad_MP = torch.zeros_like(storage_MP)
            self._flat[name] = torch.nn.Parameter(storage_MP)
            self._flat[name].grad = grad_MP
            self._leaves[name] = storage_view(storage_MP, weight).requires_grad_()
            self._grads[name] = storage_view(grad_MP, weight)
        groups = [{"params": [flat], "weight_decay": self._decay(name)} for name, flat in self._flat.items()]
        self._adam = torch.optim.Adam(groups, lr=settings.learning_rate, fused=True)

    def _decay(self, name: str) -> float:
        decays = self._settings.weight_decay
        if not name.startswith("weight") or not decays:
            return 0.0
        return decays[min(int(name.removeprefix("weight_")), len(decays) - 1)]

    def weights(self) -> Weights:
        """Copies of the current parameters."""
        return {name: leaf.detach().clone(memory_format=torch.contiguous_format) for name, leaf in self._leaves.items()}

    def loss(self, rows_MB: Rows, weight_MB: torch.Tensor) -> torch.Tensor:
        """`member_loss` of the current parameters."""
        return member_loss(self._settings, self._leaves, rows_MB, weight_MB)

    def held_out_loss(self, rows_MB: Rows, weight_MB: torch.Tensor) -> torch.Tensor:
        """`held_out_loss` of the current parameters."""
        return held_out_loss(self._leaves, rows_MB, weight_MB)

    def step(self, rows_MB: Rows, weight_MB: torch.Tensor) -> None:
        """One gradient step of every member on its own rows."""
        bounds = self._leaves["max_log_var"].sum() - self._leaves["min_log_var"].sum()
        total = self.loss(rows_MB, weight_MB).sum() + BOUND_PENALTY * bounds
        grads = torch.autograd.grad(total, list(self._leaves.values()), materialize_grads=True)
        for mine, grad in zip(self._grads.values(), grads, strict=True):
            mine.copy_(grad)
        self._adam.step()

    def keep(self, positions: Sequence[int]) -> Stack:
        """The same members at the same point of their training, without the others."""
        index = torch.as_tensor(positions, device=self._leaves["max_log_var"].device)
        kept = Stack(self._settings, {name: leaf.detach()[index] for name, leaf in self._leaves.items()})
        for name, flat in self._flat.items():
            moments = self._adam.state[flat]
            kept._adam.state[kept._flat[name]] = {
                key: moment.clone() if key == "step" else moment[index] for key, moment in moments.items()
            }
        return kept


class _Patience:
    """Early stopping of one member: keeps the best loss; stops after ``patience`` epochs without a real gain.

    Counting begins with the first epoch, not with the starting weights (MBPO's released code): the first steps of a
    fresh Adam unsettle weights that were good already, and a member must be let past that.
    """

    def __init__(self, settings: GaussianEnsembleSettings) -> None:
        self._settings, self.best, self._mark, self._idle, self.epochs = settings, math.inf, math.inf, 0, 0

    def improves(self, loss: float) -> bool:
        """Count an epoch; whether it is the best so far."""
        self.epochs += 1
        gained = self.epochs == 1 or self._mark - loss > self._settings.min_gain * self._mark
        self._mark, self._idle = (loss, 0) if gained else (self._mark, self._idle + 1)
        better, self.best = loss < self.best, min(loss, self.best)
        return better

    @property
    def stopped(self) -> bool:
        """Whether the member has had its last epoch."""
        return self._idle >= self._settings.patience or self.epochs >= self._settings.max_epochs


class _Batches:
    """Epochs of batches: every member's own bootstrap sample, shuffled, or the rows themselves where shared."""

    def __init__(self, settings: GaussianEnsembleSettings, rows: Rows, rngs: Sequence[np.random.Generator]) -> None:
        self._rows, self._rngs, count = rows, list(rngs), len(rows)
        bootstrap = settings.batches == "bootstrap"
        self._samples = [rng.integers(count, size=count) if bootstrap else np.arange(count) for rng in self._rngs]
        self.updates = -(-count // settings.batch_size)

    def keep(self, positions: Sequence[int]) -> None:
        """Forget the other members."""
        self._rngs = [self._rngs[position] for position in positions]
        self._samples = [self._samples[position] for position in positions]

    def epoch(self) -> list[torch.Tensor]:
        """Row numbers (A, B) of each update; sizes differ by at most one row."""
        order_AN = np.stack([rng.permutation(sample) for rng, sample in zip(self._rngs, self._samples, strict=True)])
        return list(torch.from_numpy(order_AN).to(self._rows.input_NI.device).tensor_split(self.updates, dim=1))

    def take(self, index_AB: torch.Tensor) -> tuple[Rows, torch.Tensor]:
        """The rows of one update, padded with weightless rows."""
        members, count = index_AB.shape
        padded_AB = torch.nn.functional.pad(index_AB, (0, -count % LANES))
        flat, shape = padded_AB.reshape(-1), padded_AB.shape
        terminated_N = self._rows.terminated_N
        rows_AB = Rows(
            self._rows.input_NI.index_select(0, flat).reshape(*shape, -1),
            self._rows.target_NT.index_select(0, flat).reshape(*shape, -1),
            None if terminated_N is None else terminated_N.index_select(0, flat).reshape(shape),
        )
        return rows_AB, row_weights(count, flat.device).expand(members, -1)


def across_members(rows: Rows, members: int) -> tuple[Rows, torch.Tensor]:
    """The same rows for every member, padded, with their weights (M, B)."""
    terminated_N = rows.terminated_N
    rows_MB = Rows(
        pad_rows(rows.input_NI).expand(members, -1, -1),
        pad_rows(rows.target_NT).expand(members, -1, -1),
        None if terminated_N is None else pad_rows(terminated_N).expand(members, -1),
    )
    return rows_MB, row_weights(len(rows), rows.input_NI.device).expand(members, -1)


def _scores(stack: Stack, held_out: Rows, names: Sequence[int], epoch: int) -> list[float]:
    with torch.no_grad():
        losses = [float(loss) for loss in stack.held_out_loss(*across_members(held_out, stack.members)).cpu()]
    for name, loss in zip(names, losses, strict=True):
        if not np.isfinite(loss):
            raise NonFiniteValue(
                f"the held-out loss of dynamics member {name} is not finite after {epoch} epochs of the fit",
                field=f"fit.member[{name}]",
                value=loss,
                remedy="lower fit.learning_rate, or check the task's observations for outliers",
            )
    return losses


def train(
    settings: GaussianEnsembleSettings,
    weights: Weights,
    training: Rows,
    held_out: Rows,
    member_ids: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> Trained:
    """Train until every member has stopped; return each member's best weights on held-out rows.

    A member that has stopped leaves the stack: it costs nothing more, and what
    it does or does not do never touches the others.

    Raises:
        NonFiniteValue: the held-out loss of a member is NaN or infinite; the error names the member.
    """
    stack, batches, active = Stack(settings, weights), _Batches(settings, training, rngs), list(range(len(rngs)))
    best = stack.weights()
    patience = [_Patience(settings) for _ in rngs]
    updates = 0
    while active:
        for index_AB in batches.epoch():
            stack.step(*batches.take(index_AB))
        updates += batches.updates
        names = [member_ids[member] for member in active]
        losses = _scores(stack, held_out, names, patience[active[0]].epochs + 1)
        improved = [place for place, member in enumerate(active) if patience[member].improves(losses[place])]
        now = stack.weights() if improved else {}
        for name, values in now.items():
            best[name][[active[place] for place in improved]] = values[improved]
        going = [place for place, member in enumerate(active) if not patience[member].stopped]
        if going and len(going) < len(active):
            stack = stack.keep(going)
            batches.keep(going)
        active = [active[place] for place in going]
    held_out_loss_M = np.array([member.best for member in patience], dtype=np.float32)
    return Trained(best, held_out_loss_M, tuple(member.epochs for member in patience), updates)
