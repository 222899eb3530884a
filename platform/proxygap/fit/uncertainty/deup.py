"""Direct epistemic uncertainty prediction (DEUP; Lahlou et al. 2023, 2102.08501, algorithms 1 and 2).

U(f, x) is the expected error of the model f at x, A(x) that of the best possible one; their difference is what a better
model, or more data, could remove. U is learned from errors on transitions that the model had not been trained on:
held-out ones, and such as were met before a refit. Unlike an ensemble's spread it sees bias that all members share.
Shape legend: N rows, B rows asked about, I inputs (observation and action), T predicted targets, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from proxygap.base.protocols import Arrays, DynamicsModel, State
from proxygap.base.records import Bool, Int64, Transitions
from proxygap.base.seeds import derived_seed, generator
from proxygap.fit.shards import require_equal
from proxygap.fit.uncertainty.errors import inputs_of, scale_of, target_count, targets_of, views
from proxygap.fit.uncertainty.neighborhood import Neighborhood
from proxygap.fit.uncertainty.predictor import Predictor
from proxygap.fit.uncertainty.settings import DeupSettings

_LEAST_SPREAD = 1e-8
LEAST_EXAMPLES = 8
"""Out-of-sample errors without which nothing is learned."""


class Deup:
    """Predicted error minus noise, never negative, in squared standard deviations of the targets (see `errors`).

    Errors enter as they were when they were met: the features are chosen so that what is learned about an older model
    holds for a newer one (section 3.2). A transition that is asked about counts as one that was not trained on.
    """

    def __init__(self, settings: DeupSettings, *, seed: int) -> None:
        self._settings, self._seed, self._version = settings, seed, 0
        self._scale_T: torch.Tensor | None = None
        self._around: Neighborhood | None = None
        self._predictor: Predictor | None = None
        self._logged: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ready(self) -> bool:
        """Whether a fit had enough out-of-sample errors."""
        return self._predictor is not None

    def observe(self, model: DynamicsModel, rows: Transitions) -> None:
        """Remember the model's errors on ``rows``, which neither it nor `describe` has seen; a no-op before a fit."""
        if self._around is None or len(rows) == 0:
            return
        found = self._examples(model, rows, seen=False)
        old = self._logged
        joined = found if old is None else tuple(torch.cat(pair) for pair in zip(old, found, strict=True))
        self._logged = joined[0][-self._settings.logged :].clone(), joined[1][-self._settings.logged :].clone()

    def describe(self, model: DynamicsModel, rows: Transitions) -> None:
        """Take over the density, units and noise of ``rows``, which the model was trained on."""
        rng = generator(self._seed, f"uncertainty/deup/sample/{self._version}")
        chosen = _some(len(rows), self._settings.sample, rng)
        self._scale_T = scale_of(targets_of(rows, target_count(model, rows)))
        kept = rows[chosen]
        residual_NT, _ = self._residuals(model, kept)
        self._around = Neighborhood.of(inputs_of(kept), residual_NT)

    def fit(self, model: DynamicsModel, data: Transitions, unseen_N: Bool) -> None:
        """Learn anew from the errors on ``unseen_N`` rows, those remembered, and as many of the rows trained on.

        With fewer than `LEAST_EXAMPLES` out-of-sample errors, what was learned before stays.
        """
        seen, unseen = data[np.flatnonzero(~unseen_N)], data[np.flatnonzero(unseen_N)]
        if len(seen) < LEAST_EXAMPLES:
            return
        self.describe(model, seen)
        examples = [self._examples(model, unseen, seen=False)] if len(unseen) else []
        examples += [self._logged] if self._logged is not None else []
        count = sum(len(error_N) for _, error_N in examples)
        if count >= LEAST_EXAMPLES:
            if "seen" in self._settings.features:
                rng = generator(self._seed, f"uncertainty/deup/seen/{self._version}")
                examples.append(self._examples(model, seen[_some(len(seen), count, rng)], seen=True))
            features_NF, error_N = (torch.cat(column) for column in zip(*examples, strict=True))
            seed = derived_seed(self._seed, f"uncertainty/deup/fit/{self._version}")
            self._predictor = Predictor.trained(self._settings, features_NF, error_N, seed)
        self._version += 1

    def __call__(self, model: DynamicsModel, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """E = U - A at each row, (B,), never negative."""
        if self._predictor is None or self._around is None or self._scale_T is None:
            raise ValueError("there was no fit with enough out-of-sample errors yet")
        input_BI = torch.cat([obs_BO, action_BA], dim=-1).float()
        seen = views(model, obs_BO, action_BA, self._scale_T)
        error_B = self._predictor(self._features(input_BI, seen.spread_N, seen=False))
        if self._settings.aleatoric == "predicted":
            error_B = error_B - seen.noise_N
        elif self._settings.aleatoric == "neighbors":
            error_B = error_B - self._around.noise(input_BI, self._settings.neighbors)
        return error_B.clamp(min=0.0)

    def _residuals(self, model: DynamicsModel, rows: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
        """Scaled residuals of the elites' mean (N, T), and the members' spread (N,)."""
        assert self._scale_T is not None
        obs_NO, action_NA = (torch.from_numpy(column.copy()) for column in (rows.obs_BO, rows.action_BA))
        seen = views(model, obs_NO, action_NA, self._scale_T)
        return targets_of(rows, len(self._scale_T)) / self._scale_T - seen.mean_NT, seen.spread_N

    def _examples(self, model: DynamicsModel, rows: Transitions, *, seen: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (N, F) and squared errors averaged over targets (N,)."""
        residual_NT, spread_N = self._residuals(model, rows)
        return self._features(inputs_of(rows), spread_N, seen=seen), residual_NT.square().mean(dim=-1)

    def _features(self, input_NI: torch.Tensor, spread_N: torch.Tensor, *, seen: bool) -> torch.Tensor:
        assert self._around is not None
        columns = []
        for name in self._settings.features:
            if name == "density":
                columns.append(self._around.log_density(input_NI)[:, None])
            elif name == "variance":
                columns.append((spread_N + _LEAST_SPREAD).log()[:, None])
            elif name == "seen":
                columns.append(torch.full((len(input_NI), 1), float(seen)))
            else:
                columns.append(self._around.normalized(input_NI))
        return torch.cat(columns, dim=-1)

    def state(self) -> State:
        """Sample, units, errors remembered, network; version and bandwidth."""
        arrays: Arrays = {}
        if self._scale_T is not None and self._around is not None:
            arrays["scale"] = self._scale_T.numpy().copy()
            arrays |= {f"around/{name}": array for name, array in self._around.arrays().items()}
        if self._logged is not None:
            arrays |= {f"logged/{i}": tensor.numpy().copy() for i, tensor in enumerate(self._logged)}
        if self._predictor is not None:
            arrays |= {f"network/{name}": array for name, array in self._predictor.arrays().items()}
        bandwidth = None if self._around is None else self._around.bandwidth
        return State(arrays, {**self._structure(), "version": self._version, "bandwidth": bandwidth})

    def load_state(self, state: State) -> None:
        """Become the estimate that ``state`` was taken from.

        Raises:
            CheckpointRefused: it was taken from one with other features or widths; names the key.
        """
        for key, mine in self._structure().items():
            require_equal(f"uncertainty.deup.{key}", state.structure.get(key), mine)
        self._version, bandwidth = int(state.structure["version"]), state.structure["bandwidth"]
        around, logged, network = (_tensors(state.arrays, prefix) for prefix in ("around/", "logged/", "network/"))
        self._scale_T = _tensors(state.arrays, "scale").get("")
        self._around = Neighborhood(**around, bandwidth=float(bandwidth)) if around else None
        self._logged = (logged["0"], logged["1"]) if logged else None
        self._predictor = Predictor(network) if network else None

    def _structure(self) -> dict[str, Any]:
        return {"features": list(self._settings.features), "hidden": list(self._settings.hidden)}


def _some(count: int, most: int, rng: np.random.Generator) -> Int64:
    """Row numbers in order: all, or as many as are wanted, drawn without replacement."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return np.sort(rng.choice(count, most, replace=False)).astype(np.int64)


def _tensors(arrays: Arrays, prefix: str) -> dict[str, torch.Tensor]:
    """Arrays whose name begins with ``prefix``, without it, as float32."""
    return {
        name.removeprefix(prefix): torch.tensor(np.asarray(array, np.float32))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
