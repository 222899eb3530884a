"""One fit of an ensemble: batches, early stopping or budgets, and snapshots, all per member.

Shape legend: M members, A members still training, B rows of a batch, I inputs, T predicted targets, N training rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import DynamicsLoss, Normalized
from proxygap.base.seeds import derived_seed
from proxygap.fit.dynamics.layers import Layers
from proxygap.fit.dynamics.losses import SquaredError
from proxygap.fit.dynamics.network import Weights, forward, padded_storage, storage_view, told_apart
from proxygap.fit.dynamics.rows import Batch, Side
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

BOUND_PENALTY = 0.01
"""Weight of (sum of maximal minus sum of minimal log-variances) in the loss: PETS, released code."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The weights of each member that are kept, and how they were reached."""

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


def member_loss(settings: GaussianEnsembleSettings, weights: Weights, batch: Batch) -> torch.Tensor:
    """The data's loss per member, (M,): the dynamics loss plus, where learned, the cross-entropy of termination."""
    return data_loss(settings.loss, lambda inputs: forward(weights, inputs, shaped=settings.loss.learns_shape), batch)


def held_out_loss(settings: GaussianEnsembleSettings, weights: Weights, batch: Batch) -> torch.Tensor:
    """What stops a member and makes it an elite, (M,): its squared error (MBPO's released code), and termination's.

    The likelihood of held-out rows would let a single surprising transition decide: members then never leave the
    cautious weights of an early fit (seen on InvertedPendulum-v5; `docs/decisions.md`). Errors weigh here as they do in
    training, over the same steps: VaGraM's released code scores held-out rows by its own loss, and a squared error over
    distractors would stop a member that ignores them on purpose.
    """
    return data_loss(SquaredError(), lambda inputs: forward(weights, inputs, shaped=settings.loss.learns_shape), batch)


def data_loss(loss: DynamicsLoss, predict: Callable[[torch.Tensor], Normalized], batch: Batch) -> torch.Tensor:
    """The loss of every step, each predicted from where the member's own mean has led, summed, (M,)."""
    total_M, input_MBI, target_MBT = None, batch.steps[0].input_NI, batch.steps[0].target_NT
    for step, (rows, weight_MB) in enumerate(zip(batch.steps, batch.weights, strict=True), start=1):
        output = predict(input_MBI)
        weight_MB1 = weight_MB.unsqueeze(-1)
        loss_M = loss(output, target_MBT, weight_MB1 if rows.weight_NT is None else weight_MB1 * rows.weight_NT)
        if output.logit is not None and rows.terminated_N is not None:
            entropy_MB = torch.nn.functional.binary_cross_entropy_with_logits(
                output.logit, rows.terminated_N, reduction="none"
            )
            loss_M = loss_M + (weight_MB * entropy_MB).mean(dim=-1)
        total_M = loss_M if total_M is None else total_M + loss_M
        if batch.motion is not None and step < len(batch.steps):
            obs_MBO = batch.motion.next_obs(input_MBI[..., : len(batch.motion.scale_O)], output)
            following = batch.steps[step]
            input_MBI = torch.cat([obs_MBO, following.input_NI[..., obs_MBO.shape[-1] :]], dim=-1)
            target_MBT = batch.motion.target_from(obs_MBO, following)
    assert total_M is not None
    return total_M


class Stack:
    """Members that train together: parameters padded to whole registers, gradients beside them, a fresh Adam.

    Adam's ``weight_decay`` is L2, the gradient of MBPO's ``0.5 * decay * |w|^2`` per layer (Janner et al. 2019,
    released code); biases and bounds are not decayed.
    """

    def __init__(self, settings: GaussianEnsembleSettings, weights: Weights) -> None:
        self._settings = settings
        self.members = len(weights["max_log_var"])
        self._leaves: Weights = {}
        self._grads: Weights = {}
        self._padded: dict[str, int] = {}
        names: dict[float, list[str]] = {}
        for name in weights:
            names.setdefault(self._decay(name), []).append(name)
        self._names = list(names.values())
        self._flats = [self._joined(weights, some) for some in self._names]
        self._layers = Layers(self._leaves, self._grads)
        self._bounds = [self._leaves[name].requires_grad_() for name in ("max_log_var", "min_log_var")]
        groups = [{"params": [flat], "weight_decay": decay} for decay, flat in zip(names, self._flats, strict=True)]
        self._adam = torch.optim.Adam(groups, lr=settings.learning_rate, fused=True)

    def _joined(self, weights: Weights, names: Sequence[str]) -> torch.nn.Parameter:
        """All that decays alike as one parameter: Adam then passes over memory once, not once per name."""
        pieces = [padded_storage(weights[name]) for name in names]
        flat = torch.nn.Parameter(torch.cat([piece.flatten() for piece in pieces]))
        flat.grad = torch.zeros_like(flat)
        self._padded |= {name: piece.shape[1] for name, piece in zip(names, pieces, strict=True)}
        for tensors, whole in ((self._leaves, flat.detach()), (self._grads, flat.grad)):
            for name, part_MP in zip(names, self._parts(whole, names), strict=True):
                tensors[name] = storage_view(part_MP, weights[name])
        return flat

    def _parts(self, whole: torch.Tensor, names: Sequence[str]) -> list[torch.Tensor]:
        """What `_joined` put together, as (M, P) each."""
        parts = torch.split(whole, [self.members * self._padded[name] for name in names])
        return [part.view(self.members, -1) for part in parts]

    def _decay(self, name: str) -> float:
        decays = self._settings.weight_decay
        if not name.startswith("weight") or not decays:
            return 0.0
        return decays[min(int(name.removeprefix("weight_")), len(decays) - 1)]

    def weights(self) -> Weights:
        """Copies of the current parameters."""
        return {name: leaf.detach().clone(memory_format=torch.contiguous_format) for name, leaf in self._leaves.items()}

    def held_out_loss(self, batch: Batch) -> torch.Tensor:
        """`held_out_loss` of the current parameters."""
        return held_out_loss(self._settings, self._leaves, batch)

    def step(self, batch: Batch) -> None:
        """One gradient step of every member on its own rows."""
        upper, lower = self._bounds
        shaped = self._settings.loss.learns_shape

        def predict(input_MBI: torch.Tensor) -> Normalized:
            return told_apart(*self._layers(input_MBI, upper, lower), shaped=shaped)

        self._layers.begin()
        total = data_loss(self._settings.loss, predict, batch).sum() + BOUND_PENALTY * (upper.sum() - lower.sum())
        for name, grad in zip(("max_log_var", "min_log_var"), torch.autograd.grad(total, self._bounds), strict=True):
            self._grads[name].copy_(grad)
        self._adam.step()

    def keep(self, positions: Sequence[int]) -> Stack:
        """The same members at the same point of their training, without the others."""
        index = torch.as_tensor(positions, device=self._leaves["max_log_var"].device)
        kept = Stack(self._settings, {name: leaf.detach()[index] for name, leaf in self._leaves.items()})
        for names, mine, theirs in zip(self._names, self._flats, kept._flats, strict=True):
            kept._adam.state[theirs] = {
                key: moment.clone()
                if key == "step"
                else torch.cat([part_MP[index].flatten() for part_MP in self._parts(moment, names)])
                for key, moment in self._adam.state[mine].items()
            }
        return kept


class _Progress:
    """How far one member is: keeps the best loss; stops after ``patience`` epochs without a real gain, or its budget.

    Counting begins with the first epoch, not with the starting weights (MBPO's released code): the first steps of a
    fresh Adam unsettle weights that were good already, and a member must be let past that. With ``stopping: budget``
    there is one score, that of the last epoch.
    """

    def __init__(self, settings: GaussianEnsembleSettings, max_epochs: int) -> None:
        self._settings, self._max_epochs = settings, max_epochs
        self.loss, self._mark, self._idle, self.epochs = math.inf, math.inf, 0, 0

    @property
    def due(self) -> bool:
        """Whether the epoch that is being counted needs a score."""
        return self._settings.stopping == "early" or self.epochs == self._max_epochs

    def improves(self, loss: float) -> bool:
        """Judge the epoch that was counted last; whether its weights are to be kept."""
        gained = self.epochs == 1 or self._mark - loss > self._settings.min_gain * self._mark
        self._mark, self._idle = (loss, 0) if gained else (self._mark, self._idle + 1)
        better, self.loss = loss < self.loss, min(loss, self.loss)
        return better

    @property
    def stopped(self) -> bool:
        """Whether the member has had its last epoch."""
        return self._idle >= self._settings.patience or self.epochs >= self._max_epochs


class _Batches:
    """Epochs of batches: every member's own bootstrap sample, shuffled, or the rows themselves where shared."""

    def __init__(self, settings: GaussianEnsembleSettings, side: Side, rngs: Sequence[np.random.Generator]) -> None:
        self._device, self._rngs, count = side.rows.input_NI.device, list(rngs), len(side)
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
        return list(torch.from_numpy(order_AN).to(self._device).tensor_split(self.updates, dim=1))


def _scores(stack: Stack, held_out: Side, names: Sequence[int], epoch: int) -> list[float]:
    with torch.no_grad():
        losses = [float(loss) for loss in stack.held_out_loss(held_out.across(stack.members)).cpu()]
    for name, loss in zip(names, losses, strict=True):
        if not np.isfinite(loss):
            raise NonFiniteValue(
                f"the held-out loss of dynamics member {name} is not finite after {epoch} epochs of the fit",
                field=f"fit.member[{name}]",
                value=loss,
                remedy="lower fit.learning_rate, or check the task's observations for outliers",
            )
    return losses


def epoch_budgets(max_epochs_M: NDArray[np.int64], members: int) -> list[int]:
    """Epochs of each member. Raises ValueError for another number of members, or a budget below 1."""
    budgets = [int(epochs) for epochs in max_epochs_M]
    if len(budgets) != members or min(budgets) < 1:
        raise ValueError(f"each of {members} members needs a budget of at least 1 epoch; got {budgets}")
    return budgets


def train(
    settings: GaussianEnsembleSettings,
    weights: Weights,
    training: Side,
    held_out: Side,
    member_ids: Sequence[int],
    rngs: Sequence[np.random.Generator],
    max_epochs_M: Sequence[int] | None = None,
) -> Trained:
    """Train until every member has stopped; return each member's best weights on held-out rows, or its last.

    A member that has stopped leaves the stack: it costs nothing more, and what
    it does or does not do never touches the others. Epochs are those of ``max_epochs_M`` at most, else the settings'.

    Raises:
        NonFiniteValue: the held-out loss of a member is NaN or infinite; the error names the member.
    """
    stack, batches, active = Stack(settings, weights), _Batches(settings, training, rngs), list(range(len(rngs)))
    best = stack.weights()
    progress = [_Progress(settings, budget) for budget in max_epochs_M or [settings.max_epochs] * len(rngs)]
    updates = 0
    while active:
        for index_AB in batches.epoch():
            stack.step(training.take(index_AB))
        updates += batches.updates
        for member in active:
            progress[member].epochs += 1
        if any(progress[member].due for member in active):
            losses = _scores(stack, held_out, [member_ids[member] for member in active], progress[active[0]].epochs)
            improved = [
                place
                for place, member in enumerate(active)
                if progress[member].due and progress[member].improves(losses[place])
            ]
            now = stack.weights() if improved else {}
            for name, values in now.items():
                best[name][[active[place] for place in improved]] = values[improved]
        going = [place for place, member in enumerate(active) if not progress[member].stopped]
        if going and len(going) < len(active):
            stack = stack.keep(going)
            batches.keep(going)
        active = [active[place] for place in going]
    held_out_loss_M = np.array([member.loss for member in progress], dtype=np.float32)
    return Trained(best, held_out_loss_M, tuple(member.epochs for member in progress), updates)
