"""An ensemble of fitted reward networks, or a shard of one: `RewardModel` for the loop, `HostedModel` for a host.

Shape legend: M members held, B items, N pairs, P floats of one member's parameters.

Everything random about a member derives from its number in the whole ensemble, so a shard's numbers equal the whole's,
bit for bit on the same kind of processor with one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidDataset
from proxygap.base.language import Items, Preferences, RewardFitReport, rows_of
from proxygap.base.protocols import Arrays, State
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.network import Normalizer
from proxygap.fit.dynamics.training import is_held_out
from proxygap.fit.reward.items import check_pairs, preferences_of
from proxygap.fit.reward.losses import stages_of
from proxygap.fit.reward.networks import Columns, Network, initial_members
from proxygap.fit.reward.pretraining import pretrained_trunks
from proxygap.fit.reward.shards import merge, split
from proxygap.fit.reward.training import CHUNK, Pairs, held_out_scores, pair_tensors, require_finite, train
from proxygap.fit.shards import require_equal

if TYPE_CHECKING:
    from proxygap.fit.reward.settings import MlpReward, TransformerReward

__all__ = ["RewardEnsemble", "merge", "split"]


class RewardEnsemble:
    """Reward networks that differ by the seed of their head and data order, or by that of their trunk too.

    Each fit continues from the current weights with a fresh Adam, and takes the calibration back: scores are raw until
    `calibrate` is called again. A pair's row number in ``data`` decides for the ensemble's life whether it is held out,
    so refits are handed all pairs so far, in order.

    Raises:
        InvalidDataset: items that the network cannot read, or no pairs.
        NonFiniteValue: a member's weights or scores are NaN or infinite; names the member.
    """

    def __init__(
        self,
        settings: MlpReward | TransformerReward,
        network: Network,
        *,
        seed: int,
        member_ids: tuple[int, ...] | None = None,
        device: str = "cpu",
    ) -> None:
        self._settings, self._network, self._seed = settings, network, seed
        self._device = torch.device(device)
        self._member_ids = tuple(range(settings.members)) if member_ids is None else tuple(member_ids)
        self._version, self._pretrained = 0, False
        self._inputs = Normalizer(torch.zeros(network.normalized), torch.ones(network.normalized))
        self._uncalibrated()
        # Trunks from the shared or the member's own seed, heads always from the member's own (Eisenstein et al. 2023).
        trunks = [generator(seed, f"reward/{name}/trunk") for name in self._trunk_names()]
        heads = [generator(seed, f"reward/member/{member}/head") for member in self._member_ids]
        self._use(network.layout.flat(initial_members(network, trunks, heads), self._device))

    @property
    def members(self) -> int:
        """Number of networks held."""
        return len(self._member_ids)

    @property
    def member_ids(self) -> tuple[int, ...]:
        """Their numbers in the whole ensemble, in the order of `score`'s first axis."""
        return self._member_ids

    @property
    def version(self) -> int:
        """Fits and calibrations so far."""
        return self._version

    def fit(self, data: Preferences) -> RewardFitReport:
        """Fit every member to labeled pairs, from its current weights.

        With fewer than two pairs on a side of the held-out split, all pairs serve as both (``held_out_rows`` is 0).
        """
        training, stages = self._settings.training, stages_of(self._settings.loss, self._settings.training.epochs)
        check_pairs(data, needs_ratings=stages[0].loss.needs_ratings)
        apart_N = is_held_out(self._seed, np.arange(len(data), dtype=np.int64), training.held_out)
        divided = min(int(apart_N.sum()), int((~apart_N).sum())) >= 2
        inside = np.flatnonzero(~apart_N) if divided else np.arange(len(data))
        outside = np.flatnonzero(apart_N)[-training.held_out_limit :] if divided else inside
        pairs, held_out = (pair_tensors(self._network, data[rows], self._device) for rows in (inside, outside))
        if self._network.normalized:
            feature = pairs.columns["feature"]
            self._inputs = Normalizer.of(feature.reshape(-1, feature.shape[-1]).cpu())
        pairs, held_out = (Pairs(self._normal(part.columns), part.label_N4) for part in (pairs, held_out))
        self._pretrain(pairs)
        rngs = [generator(self._seed, f"reward/member/{m}/fit/{self._version}") for m in self._member_ids]
        trained = train(self._network, self._flat_MP, pairs, held_out, stages, training, self._member_ids, rngs)
        self._use(trained.flat_MP)
        self._uncalibrated()
        self._version += 1
        scores = held_out_scores(self._network, self._flat_MP, held_out, stages[-1].loss)
        require_finite(torch.tensor(scores.loss_M)[:, None], self._member_ids, "the held-out losses")
        apart = len(outside) if divided else 0
        return RewardFitReport(
            self._version, trained.updates, trained.epochs_M, scores.accuracy_M, scores.loss_M, len(inside), apart
        )

    def calibrate(self, items: Items) -> None:
        """Shift and scale every member's score to mean 0 and standard deviation 1 (over B) on these items.

        A member that scores all of them the same is only shifted. Raises InvalidDataset for no items.
        """
        if rows_of(items) == 0:
            raise InvalidDataset("there are no items to calibrate on", field="items")
        raw_MB = self._raw(items).cpu().numpy().astype(np.float64)
        shift_M = np.array([row.mean() for row in raw_MB])
        spread_M = np.array([row.std() for row in raw_MB])
        constant_M = spread_M <= 4 * np.finfo(np.float32).eps * np.abs(raw_MB).max(axis=1)
        self._shift_M, self._scale_M = shift_M, np.where(constant_M, 1.0, spread_M)
        self._version += 1

    def score(self, items: Items) -> torch.Tensor:
        """Every held member's calibrated score, shape (M, B), float32 on the ensemble's device."""
        shift_M1 = torch.tensor(self._shift_M, device=self._device)[:, None]
        scale_M1 = torch.tensor(self._scale_M, device=self._device)[:, None]
        return ((self._raw(items).double() - shift_M1) / scale_M1).float()

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """``score`` and ``calibrate`` (columns of items), ``fit`` (`preference_arrays`): arrays in, arrays out.

        ``score`` answers (B, M), rows first; ``fit`` the fields of `RewardFitReport`; ``calibrate`` shift and scale,
        each (M,). Raises KeyError for another method.
        """
        del options
        if method == "score":
            return {"score": np.ascontiguousarray(self.score(arrays).T.cpu().numpy())}
        if method == "fit":
            return {name: np.asarray(value) for name, value in asdict(self.fit(preferences_of(arrays))).items()}
        if method == "calibrate":
            self.calibrate(arrays)
            return {"shift": self._shift_M.copy(), "scale": self._scale_M.copy()}
        raise KeyError(f"no method {method!r}; there are score, fit and calibrate")

    def batchable(self, method: str) -> bool:
        """Whether rows of several requests may run together."""
        return method == "score"

    def state(self) -> State:
        """Weights, input normalizer and calibration; version, members and sizes."""
        arrays: Arrays = {
            f"weights.{name}": array for name, array in self._network.layout.arrays(self._flat_MP).items()
        }
        arrays |= {"shift": self._shift_M.copy(), "scale": self._scale_M.copy()}
        arrays |= {"input_mean": self._inputs.mean.numpy().copy(), "input_std": self._inputs.std.numpy().copy()}
        return State(arrays, {**self._structure(), "version": self._version, "pretrained": self._pretrained})

    def load_state(self, state: State) -> None:
        """Become the ensemble (or shard) that ``state`` was taken from.

        Raises:
            CheckpointRefused: another kind, other sizes or members, a missing array or a wrong shape; names the key.
        """
        for key, mine in self._structure().items():
            require_equal(f"reward.{key}", state.structure.get(key), mine)
        here = self.state().arrays
        for key in sorted({*here, *state.arrays}):
            mine, given = (list(arrays[key].shape) if key in arrays else None for arrays in (here, state.arrays))
            require_equal(f"reward.{key}", given, mine)
        self._shift_M, self._scale_M = (np.array(state.arrays[key], np.float64) for key in ("shift", "scale"))
        self._inputs = Normalizer(*(torch.tensor(state.arrays[key]) for key in ("input_mean", "input_std")))
        self._version, self._pretrained = int(state.structure["version"]), bool(state.structure["pretrained"])
        weights = {name: state.arrays[f"weights.{name}"] for name in self._network.layout.shapes}
        self._use(self._network.layout.flat(weights, self._device))

    def _structure(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self._network.layout.shapes.items()}
        return {"kind": self._settings.kind, "member_ids": list(self._member_ids), "shapes": shapes}

    def _trunk_names(self) -> list[str]:
        shared = self._settings.diversity == "fine_tune"
        return ["shared" if shared else f"member/{member}" for member in self._member_ids]

    def _uncalibrated(self) -> None:
        self._shift_M, self._scale_M = np.zeros(self.members), np.ones(self.members)

    def _use(self, flat_MP: torch.Tensor) -> None:
        self._flat_MP = flat_MP.detach()
        self._scorer = self._network.bind(self._flat_MP)

    def _pretrain(self, pairs: Pairs) -> None:
        """Before the first fit, train the trunks on the training pairs' items as text; once in the ensemble's life."""
        steps = getattr(self._settings, "pretrain_steps", 0)
        if steps and not self._pretrained:
            names = self._trunk_names()
            self._flat_MP = pretrained_trunks(
                self._network, self._flat_MP, pairs.columns, names, seed=self._seed, steps=steps
            )
        self._pretrained = True

    def _normal(self, columns: Columns) -> Columns:
        """Columns with features normalized."""
        if not self._network.normalized:
            return columns
        mean, std = self._inputs.mean.to(self._device), self._inputs.std.to(self._device)
        return {**columns, "feature": (columns["feature"] - mean) / std}

    def _raw(self, items: Items) -> torch.Tensor:
        """Scores as the networks give them, (M, B), in chunks; checked to be finite."""
        columns = {name: column.to(self._device) for name, column in self._network.columns(items).items()}
        columns = dict(self._normal(columns))
        count = len(next(iter(columns.values())))
        with torch.no_grad():
            parts = [torch.zeros(self.members, 0, device=self._device)]
            for start in range(0, count, 2 * CHUNK):
                chunk = {name: column[start : start + 2 * CHUNK] for name, column in columns.items()}
                parts.append(self._scorer({n: c.expand(self.members, *c.shape) for n, c in chunk.items()}))
        raw_MB = torch.cat(parts, dim=1)
        require_finite(raw_MB, self._member_ids, "the scores")
        return raw_MB
