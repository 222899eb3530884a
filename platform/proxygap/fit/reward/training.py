"""One fit of reward networks to labeled pairs: batches, stages and early stopping, all per member.

Shape legend: M members, N training pairs, B pairs of a batch, R = 2 B rows, P floats of one member's parameters.

Chosen and rejected items run through a network as one batch of 2 B rows, and no loss is read back within an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from proxygap.base.errors import NonFiniteValue
from proxygap.base.language import Preferences
from proxygap.fit.dynamics.network import LANES
from proxygap.fit.reward.losses import PairLabels, PairLoss, Stage
from proxygap.fit.reward.networks import Columns, Network, Scorer
from proxygap.fit.reward.settings import RewardTraining

CACHED_FLOATS = 1 << 19
"""Floats of the widest activation up to which members train as one group (measured: beyond, cache misses cost more)."""
CHUNK = 512
"""Pairs that are scored at once outside of training."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs as tensors: columns of the chosen items and below them those of the rejected; fields of `PairLabels`."""

    columns: Columns
    label_N4: torch.Tensor

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.label_N4)

    def take(self, index_MB: torch.Tensor) -> tuple[Columns, torch.Tensor]:
        """Each member's pairs: columns (M, 2 B, ...), labels (M, B, 4)."""
        row_MR = torch.cat([index_MB, index_MB + len(self)], dim=1)
        flat, shape = row_MR.reshape(-1), row_MR.shape
        columns = {
            name: column.index_select(0, flat).view(*shape, *column.shape[1:]) for name, column in self.columns.items()
        }
        return columns, self.label_N4[index_MB]


@dataclass(frozen=True, slots=True)
class Trained:
    """Each member's weights and how they were reached."""

    flat_MP: torch.Tensor
    epochs_M: tuple[int, ...]
    updates: int


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores on held-out pairs, per member: mean loss, and the share ranked as labeled (NaN where all pairs tie)."""

    loss_M: tuple[float, ...]
    accuracy_M: tuple[float, ...]


def pair_tensors(network: Network, data: Preferences, device: torch.device) -> Pairs:
    """Checked tensors of preferences. Raises InvalidDataset or NonFiniteValue, see `Network.columns`."""
    chosen, rejected = network.columns(data.chosen), network.columns(data.rejected)
    labels = (1.0 - 0.5 * data.tie_N, data.strength_N, data.chosen_rating_N, data.rejected_rating_N)
    return Pairs(
        {name: torch.cat([chosen[name], rejected[name]]).to(device) for name in chosen},
        torch.tensor(np.stack(labels, axis=1), dtype=torch.float32, device=device),
    )


class Stack:
    """Members that train together: their weights, gradients beside them, and a fresh Adam over both."""

    def __init__(self, network: Network, flat_MP: torch.Tensor, training: RewardTraining, rate: float) -> None:
        self.network, self.flat_MP = network, torch.nn.Parameter(flat_MP.detach().clone())
        self.flat_MP.grad = self._grad_MP = torch.zeros_like(flat_MP)
        self._bound: dict[int, list[tuple[slice, Scorer]]] = {}
        self._limit = training.max_gradient_norm
        self._adam = torch.optim.Adam([self.flat_MP], lr=training.learning_rate * rate, fused=True)
        self._keep_P = _decay(network, training.learning_rate * rate * training.weight_decay, flat_MP)

    def step(self, loss_M: Callable[[Scorer, slice], torch.Tensor], rows: int) -> None:
        """One update of every member by its own loss on ``rows`` rows; ``loss_M`` is asked of one group at a time."""
        for members, scorer in self._groups(rows):
            leaves, loss = scorer.leaves, loss_M(scorer, members).sum()
            grads = torch.autograd.grad(loss, [leaf.value for leaf in leaves], materialize_grads=True)
            with torch.no_grad():
                torch._foreach_copy_([leaf.grad for leaf in leaves], grads)
        with torch.no_grad():
            if self._limit is not None:
                for grad_P in self._grad_MP:
                    grad_P.mul_((self._limit / (grad_P.dot(grad_P).sqrt() + 1e-6)).clamp(max=1.0))
            if self._keep_P is not None:
                self.flat_MP.mul_(self._keep_P)
        self._adam.step()

    def _groups(self, rows: int) -> list[tuple[slice, Scorer]]:
        """Members in groups whose activations fit the cache together: small members save calls, large ones misses."""
        size = max(1, min(len(self.flat_MP), CACHED_FLOATS // max(1, self.network.widest(rows))))
        if size not in self._bound:
            cuts = [slice(start, start + size) for start in range(0, len(self.flat_MP), size)]
            flat_MP = self.flat_MP.detach()
            self._bound[size] = [(cut, self.network.bind(flat_MP[cut], self._grad_MP[cut])) for cut in cuts]
        return self._bound[size]


def _decay(network: Network, decay: float, like: torch.Tensor) -> torch.Tensor | None:
    """What AdamW multiplies each float by (Loshchilov and Hutter 2019): vectors and frozen matrices keep theirs."""
    if decay == 0.0:
        return None
    keep_1P = torch.ones(1, network.layout.size)
    for name, view in network.layout.stacked(keep_1P).items():
        if name not in network.frozen and min(network.layout.shapes[name], default=1) > 1:
            view.fill_(1.0 - decay)
    return keep_1P[0].to(like.device)


def pair_loss(loss: PairLoss, scores_MR: torch.Tensor, label_MB4: torch.Tensor) -> torch.Tensor:
    """Mean loss per member, (M,), of chosen scores beside rejected ones.

    Pairs are padded to whole registers, so that a member's numbers do not depend on who shares the stack.
    """
    members, pairs = len(scores_MR), scores_MR.shape[1] // 2
    missing = -pairs % LANES
    scores_MSB = torch.nn.functional.pad(scores_MR.view(members, 2, pairs), (0, missing))
    labels = PairLabels(*torch.nn.functional.pad(label_MB4, (0, 0, 0, missing)).unbind(dim=-1))
    return loss(scores_MSB[:, 0], scores_MSB[:, 1], labels)[:, :pairs].mean(dim=1)


def held_out_scores(network: Network, flat_MP: torch.Tensor, pairs: Pairs, loss: PairLoss) -> HeldOut:
    """Loss and accuracy of every member on the same pairs; an exactly equal score counts half."""
    scorer, members, count = network.bind(flat_MP.detach()), len(flat_MP), len(pairs)
    total_M, right_M, clear = np.zeros(members), np.zeros(members), 0
    with torch.no_grad():
        for index_B in torch.split(torch.arange(count, device=flat_MP.device), CHUNK):
            columns, label_MB4 = pairs.take(index_B.expand(members, -1))
            scores_MR = scorer(columns)
            total_M += pair_loss(loss, scores_MR, label_MB4).double().cpu().numpy() * len(index_B)
            d_MB = scores_MR[:, : len(index_B)] - scores_MR[:, len(index_B) :]
            said_MB = label_MB4[..., 0] != 0.5
            right_M += ((0.5 * d_MB.sign() + 0.5) * said_MB).sum(dim=1).double().cpu().numpy()
            clear += int(said_MB[0].sum())
    accuracy_M = right_M / clear if clear else np.full(members, math.nan)
    return HeldOut(tuple(map(float, total_M / count)), tuple(map(float, accuracy_M)))


class _Patience:
    """Early stopping of one member: which epoch was best, and whether waiting for a better one is over."""

    def __init__(self, patience: int) -> None:
        self._patience, self._idle, self.best = patience, 0, math.inf

    def improves(self, loss: float) -> bool:
        """Count an epoch; whether it is the best so far."""
        better = loss < self.best
        self._idle, self.best = (0, loss) if better else (self._idle + 1, self.best)
        return better

    @property
    def stopped(self) -> bool:
        """Whether the member has had its last epoch."""
        return self._idle >= self._patience


def train(
    network: Network,
    flat_MP: torch.Tensor,
    pairs: Pairs,
    held_out: Pairs,
    stages: Sequence[Stage],
    training: RewardTraining,
    member_ids: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> Trained:
    """Train through all stages, each with a fresh Adam; ``rngs`` hold each member's order of pairs.

    Raises:
        NonFiniteValue: a member's loss or weights are NaN or infinite; the error names the member.
    """
    epochs_M, updates = np.zeros(len(rngs), dtype=np.int64), 0
    samples = [
        rng.integers(len(pairs), size=len(pairs)) if training.bootstrap else np.arange(len(pairs)) for rng in rngs
    ]
    for stage in stages:
        stack = Stack(network, flat_MP, training, stage.rate)
        best_MP = stack.flat_MP.detach().clone()
        patience = [_Patience(training.patience or stage.epochs + 1) for _ in rngs]
        for _ in range(stage.epochs):
            # A stopped member is carried along, but draws nothing more: its next stage starts as it would alone.
            going = [place for place, member in enumerate(patience) if not member.stopped]
            order_MN = np.stack(samples)
            order_MN[going] = [rngs[place].permutation(samples[place]) for place in going]
            updates += _epoch(stack, stage.loss, pairs, torch.from_numpy(order_MN).to(flat_MP.device), training)
            require_finite(stack.flat_MP[going], [member_ids[place] for place in going], "the weights")
            epochs_M[going] += 1
            if training.patience is not None:
                losses_M = held_out_scores(network, stack.flat_MP, held_out, stage.loss).loss_M
                going = [place for place in going if patience[place].improves(losses_M[place])]
            best_MP[going] = stack.flat_MP.detach()[going]
            if all(member.stopped for member in patience):
                break
        flat_MP = best_MP
    return Trained(flat_MP, tuple(int(epochs) for epochs in epochs_M), updates)


def _epoch(stack: Stack, loss: PairLoss, pairs: Pairs, order_MN: torch.Tensor, training: RewardTraining) -> int:
    """One pass over the pairs, in batches whose sizes differ by at most one; the number of updates."""
    batches = order_MN.tensor_split(-(-len(pairs) // training.batch_size), dim=1)
    for index_MB in batches:
        columns, label_MB4 = pairs.take(index_MB)
        stack.step(_loss_of(loss, columns, label_MB4), 2 * index_MB.shape[1])
    return len(batches)


def _loss_of(loss: PairLoss, columns: Columns, label_MB4: torch.Tensor) -> Callable[[Scorer, slice], torch.Tensor]:
    def loss_M(scorer: Scorer, members: slice) -> torch.Tensor:
        mine = {name: column[members] for name, column in columns.items()}
        return pair_loss(loss, scorer(mine), label_MB4[members])

    return loss_M


def require_finite(values: torch.Tensor, member_ids: Sequence[int], what: str) -> None:
    """Raises NonFiniteValue, naming the first member whose row of ``values`` is not finite."""
    for member, row in zip(member_ids, values.detach(), strict=True):
        if not bool(row.isfinite().all()):
            raise NonFiniteValue(
                f"{what} of reward member {member} are not finite",
                field=f"fit.member[{member}]",
                value=float(row[~row.isfinite()][0]),
                remedy="lower training.learning_rate, or look for outliers among the items and ratings",
            )
