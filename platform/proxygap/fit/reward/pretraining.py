"""Trunks of reward models, trained to continue the text of the items before any label is seen.

Shape legend: M members, B items of a batch, P floats of one member's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from proxygap.base.seeds import generator
from proxygap.fit.reward.networks import Columns, Network, Scorer
from proxygap.fit.reward.settings import RewardTraining
from proxygap.fit.reward.training import Stack
from proxygap.fit.reward.transformer import BoundTransformer

_BATCH, _RATE = 32, 3e-3
"""Items per update, and Adam's step size: small networks learn a small vocabulary quickly at this rate."""


def pretrained_trunks(
    network: Network, flat_MP: torch.Tensor, columns: Columns, names: Sequence[str], *, seed: int, steps: int
) -> torch.Tensor:
    """Weights (M, P) after ``steps`` next-token updates; members of equal name share one training, heads stay.

    Raises:
        TypeError: the network is no `TinyTransformer` (the settings refuse that earlier).
    """
    distinct = sorted(set(names))
    rngs = [generator(seed, f"reward/{name}/pretrain") for name in distinct]
    training = RewardTraining(learning_rate=_RATE)
    stack = Stack(network, flat_MP[[names.index(name) for name in distinct]], training, 1.0)
    rows = len(next(iter(columns.values())))
    for _ in range(steps):
        index_MB = torch.stack([torch.from_numpy(rng.integers(rows, size=_BATCH)) for rng in rngs]).to(flat_MP.device)
        drawn = {name: column[index_MB] for name, column in columns.items()}
        stack.step(_likelihood_of(drawn), _BATCH)
    trunk_MP = stack.flat_MP.detach()[[distinct.index(name) for name in names]]
    result_MP = flat_MP.clone()
    heads = network.layout.stacked(flat_MP)
    result_MP.copy_(trunk_MP)
    for name, view in network.layout.stacked(result_MP).items():
        if name in network.head:
            view.copy_(heads[name])
    return result_MP


def _likelihood_of(columns: Columns) -> Callable[[Scorer, slice], torch.Tensor]:
    def loss_M(scorer: Scorer, members: slice) -> torch.Tensor:
        if not isinstance(scorer, BoundTransformer):
            raise TypeError("only the tiny transformer can be pretrained here")
        return scorer.next_token_loss({name: column[members] for name, column in columns.items()})

    return loss_M
