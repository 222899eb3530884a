"""A probabilistic ensemble, or a shard of one: `DynamicsModel` for the loop, `HostedModel` for a host.

Shape legend: M members held, B rows, O observation size, A action size, I = O + A, T predicted targets (the change of
the observation, then the outcome reward where it is learned).

Members carry their number in the whole ensemble everywhere (``elites``, ``member_B`` of `predict_rows`, state), so that
shards and whole speak of the same member. Everything random about a member derives from its number, so a shard's
numbers equal the whole's, bit for bit on the same kind of processor with one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import Arrays, Prediction, State
from proxygap.base.records import FitReport, Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.network import (
    Normalizer,
    Output,
    Sizes,
    Weights,
    aligned,
    forward,
    initial_weights,
    pad_rows,
)
from proxygap.fit.dynamics.scores import log_likelihood, normalized_mse
from proxygap.fit.dynamics.shards import best_members, merge, split
from proxygap.fit.dynamics.training import Rows, Trained, is_held_out, train
from proxygap.fit.shards import require_equal

if TYPE_CHECKING:
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings

__all__ = ["GaussianEnsemble", "merge", "split"]

_SMALLEST_STD = 1e-6
"""Floor of the residual deviation (normalized units) that stands in for a predicted one under squared error."""


class GaussianEnsemble:
    """Gaussian networks of the next step (PETS, Chua et al. 2018; fitted as in MBPO, Janner et al. 2019).

    Between fits it keeps weights, normalizers, held-out losses and residuals, version and elites: each fit continues
    from the current weights with a fresh Adam and fresh bootstrap samples. Inputs and targets are normalized with the
    training rows of the latest fit. Under the squared error the predictive deviation is the root mean squared held-out
    residual of each member and target, the same everywhere.

    Raises:
        NonFiniteValue: from `fit`, for data or a member's loss that is NaN or infinite.
        ValueError: from `fit`, for no transitions.
    """

    def __init__(
        self,
        settings: GaussianEnsembleSettings,
        *,
        obs_size: int,
        action_size: int,
        learn_reward: bool,
        learn_termination: bool,
        seed: int,
        member_ids: tuple[int, ...],
        device: str = "cpu",
    ) -> None:
        self._settings, self._seed, self._device = settings, seed, torch.device(device)
        self._obs_size, self._action_size, self._learn_reward = obs_size, action_size, learn_reward
        self._sizes = Sizes(obs_size + action_size, obs_size + learn_reward, settings.hidden, learn_termination)
        self._member_ids, self._version = tuple(member_ids), 0
        count, targets = len(self._member_ids), self._sizes.targets
        self._held_out_loss_M = np.zeros(count, dtype=np.float32)
        self._inputs = self._identity(self._sizes.inputs)
        self._targets = self._identity(targets)
        self._residual_std_M1T = torch.ones(count, 1, targets, device=self._device)
        self._use(initial_weights(self._sizes, self._member_ids, seed))

    @property
    def members(self) -> int:
        """Number of networks held."""
        return len(self._member_ids)

    @property
    def member_ids(self) -> tuple[int, ...]:
        """Their numbers in the whole ensemble, in the order of `predict`'s first axis."""
        return self._member_ids

    @property
    def version(self) -> int:
        """Fits so far."""
        return self._version

    @property
    def elites(self) -> tuple[int, ...]:
        """Numbers of the held members that imagine, best first; of a shard, the best among its own."""
        return best_members(self._held_out_loss_M, self._member_ids, self._settings.elite_count)

    def fit(self, data: Transitions, first_row: int) -> FitReport:
        """Refit to ``data``; its rows are numbered from ``first_row`` in the life of the run.

        With fewer than two rows on a side of the held-out split, all rows serve as both (``held_out_rows`` is 0).
        """
        input_NI, target_NT, terminated_N = self._columns(data)
        numbers = first_row + np.arange(len(data), dtype=np.int64)
        apart_N = is_held_out(self._seed, numbers, self._settings.held_out)
        split = min(int(apart_N.sum()), int((~apart_N).sum())) >= 2
        inside = np.flatnonzero(~apart_N) if split else np.arange(len(data))
        outside = np.flatnonzero(apart_N)[-self._settings.held_out_limit :] if split else inside
        self._inputs, self._targets = Normalizer.of(input_NI[inside]), Normalizer.of(target_NT[inside])
        training, held_out = (
            Rows(
                self._inputs(input_NI[rows]),
                self._targets(target_NT[rows]),
                None if terminated_N is None else terminated_N[rows],
            )
            for rows in (torch.from_numpy(inside).to(self._device), torch.from_numpy(outside).to(self._device))
        )
        trained = self._train(training, held_out)
        return self._report(trained, held_out, target_NT[outside], len(inside), len(outside) if split else 0)

    def _train(self, training: Rows, held_out: Rows) -> Trained:
        """Train from the current weights and take over the result."""
        shared = self._settings.batches == "shared"
        names = ["shared" if shared else f"member/{member}" for member in self._member_ids]
        rngs = [generator(self._seed, f"dynamics/{name}/fit/{self._version}") for name in names]
        trained = train(self._settings, self._weights, training, held_out, self._member_ids, rngs)
        self._use(trained.weights)
        self._held_out_loss_M, self._version = trained.held_out_loss_M, self._version + 1
        return trained

    def _report(self, trained: Trained, held_out: Rows, target_BT: torch.Tensor, rows: int, apart: int) -> FitReport:
        with torch.no_grad():
            output = self._forward(pad_rows(held_out.input_NI))
            error_MBT = output.mean[:, : len(held_out)] - held_out.target_NT
            residual_M1T = error_MBT.square().mean(dim=1, keepdim=True).sqrt()
            self._residual_std_M1T = residual_M1T.clamp(min=_SMALLEST_STD)
            prediction = self._raw(output, len(held_out))
            likelihood_M = log_likelihood(prediction, target_BT).mean(dim=1)
            mse_M = normalized_mse(prediction, target_BT, self._targets.std)
        return FitReport(
            version=self._version,
            updates=trained.updates,
            epochs_M=trained.epochs_M,
            held_out_log_likelihood_M=tuple(likelihood_M.tolist()),
            held_out_mse_M=tuple(mse_M.tolist()),
            elites=self.elites,
            training_rows=rows,
            held_out_rows=apart,
        )

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """Every held member's prediction in raw units, leading axes (M, B), in the order of `member_ids`."""
        with torch.no_grad():
            return _moved(self._raw(self._forward(self._normalized(obs_BO, action_BA)), len(obs_BO)), obs_BO.device)

    def predict_rows(self, member_B: torch.Tensor, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """For each row the prediction of its own member only, leading axis (B,), in raw units.

        Rows are sorted by member and each stretch runs through that member's weights in place: nothing is evaluated
        twice, no weight is copied, and a member's rows give the same bits whoever else is hosted beside it.

        Raises:
            ValueError: a row asks for a member that is not held here.
        """
        with torch.no_grad():
            place_B = self._places(member_B)
            order_B = place_B.argsort(stable=True)
            counts = torch.bincount(place_B, minlength=self.members).tolist()
            obs_BO_here, action_BA_here = obs_BO.to(self._device), action_BA.to(self._device)
            parts = [
                self._raw(
                    self._forward(self._normalized(obs_BO_here[rows], action_BA_here[rows]), place), len(rows), place
                )
                for place, rows in enumerate(torch.split(order_B, counts))
                if len(rows)
            ]
            return _moved(_scattered(parts, order_B, self._empty()), obs_BO.device)

    def _places(self, member_B: torch.Tensor) -> torch.Tensor:
        """Positions in this stack of members given by number."""
        place_of = torch.full((self._settings.members + 1,), -1)
        place_of[list(self._member_ids)] = torch.arange(self.members)
        place_B = place_of[member_B.cpu().long().clamp(-1, self._settings.members)]
        if bool((place_B < 0).any()):
            missing = sorted(set(member_B[(place_B < 0).to(member_B.device)].tolist()))
            raise ValueError(f"members {missing} are not held here; held are {list(self._member_ids)}")
        return place_B.to(self._device)

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """``fit`` (columns of `Transitions`; option first_row), ``predict``, ``predict_rows``: arrays in, arrays out.

        Rows come first in every array of a prediction, so ``predict`` answers (B, M, T) and (B, M). ``fit`` answers the
        fields of `FitReport`. Raises KeyError for another method.
        """
        if method == "fit":
            report = self.fit(Transitions(**dict(arrays)), int(options["first_row"]))
            return {name: np.asarray(value) for name, value in asdict(report).items()}
        if method not in ("predict", "predict_rows"):
            raise KeyError(f"no method {method!r}; there are fit, predict and predict_rows")
        obs_BO, action_BA = (torch.from_numpy(np.array(arrays[name], np.float32)) for name in ("obs_BO", "action_BA"))
        if method == "predict":
            return _arrays(self.predict(obs_BO, action_BA), members_first=True)
        member_B = torch.from_numpy(np.array(arrays["member_B"], np.int64))
        return _arrays(self.predict_rows(member_B, obs_BO, action_BA), members_first=False)

    def batchable(self, method: str) -> bool:
        """Whether rows of several requests may run together."""
        return method in ("predict", "predict_rows")

    def state(self) -> State:
        """Weights, normalizers, held-out losses and residuals; version, elites and sizes."""
        tensors = dict(self._weights) | {"residual_std": self._residual_std_M1T}
        tensors |= {"input_mean": self._inputs.mean, "input_std": self._inputs.std}
        tensors |= {"target_mean": self._targets.mean, "target_std": self._targets.std}
        arrays: Arrays = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        arrays["held_out_loss"] = self._held_out_loss_M.copy()
        return State(arrays, {**self._structure(), "version": self._version, "elites": list(self.elites)})

    def load_state(self, state: State) -> None:
        """Become the ensemble (or shard) that ``state`` was taken from.

        Raises:
            CheckpointRefused: other sizes or members, a missing array or a wrong shape; names the key.
        """
        for key, mine in self._structure().items():
            require_equal(f"dynamics.{key}", state.structure.get(key), mine)
        here = self.state().arrays
        for key in sorted({*here, *state.arrays}):
            mine, given = (list(arrays[key].shape) if key in arrays else None for arrays in (here, state.arrays))
            require_equal(f"dynamics.{key}", given, mine)
        tensors = {
            name: torch.tensor(np.asarray(array, np.float32), device=self._device)
            for name, array in state.arrays.items()
        }
        self._inputs = Normalizer(tensors["input_mean"], tensors["input_std"])
        self._targets = Normalizer(tensors["target_mean"], tensors["target_std"])
        self._residual_std_M1T = tensors["residual_std"]
        self._held_out_loss_M = np.array(state.arrays["held_out_loss"], np.float32)
        self._version = int(state.structure["version"])
        self._use({name: tensors[name] for name in self._sizes.shapes()})

    def _structure(self) -> dict[str, Any]:
        return {
            "member_ids": list(self._member_ids),
            "elite_count": self._settings.elite_count,
            "obs_size": self._obs_size,
            "action_size": self._action_size,
            "learn_reward": self._learn_reward,
            "learn_termination": self._sizes.termination,
            "hidden": list(self._sizes.hidden),
        }

    def _use(self, weights: Weights) -> None:
        """Take over weights (M, ...), and keep a view of each member's for `predict_rows`."""
        self._weights = aligned({name: weight.to(self._device) for name, weight in weights.items()})
        self._views = [
            {name: weight[place : place + 1] for name, weight in self._weights.items()} for place in range(self.members)
        ]

    def _identity(self, columns: int) -> Normalizer:
        return Normalizer(torch.zeros(columns, device=self._device), torch.ones(columns, device=self._device))

    def _columns(self, data: Transitions) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Inputs, raw targets and, where learned, termination (0 or 1) on the device, checked to be finite."""
        if len(data) == 0:
            raise ValueError("there are no transitions to fit")
        for name in ("obs_BO", "action_BA", "next_obs_BO", "outcome_reward_B"):
            if not np.isfinite(getattr(data, name)).all():
                row = int(np.argwhere(~np.isfinite(getattr(data, name)))[0][0])
                raise NonFiniteValue(
                    "the transitions to fit hold NaN or infinity",
                    field=name,
                    value=f"row {row}",
                    remedy="check the environment that produced them",
                )
        columns = [data.next_obs_BO - data.obs_BO]
        if self._learn_reward:
            columns.append(data.outcome_reward_B[:, None])
        inputs, targets = np.concatenate([data.obs_BO, data.action_BA], axis=1), np.concatenate(columns, axis=1)
        ended = torch.from_numpy(data.terminated_B.astype(np.float32)).to(self._device)
        return (
            torch.from_numpy(inputs.astype(np.float32)).to(self._device),
            torch.from_numpy(targets.astype(np.float32)).to(self._device),
            ended if self._sizes.termination else None,
        )

    def _normalized(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """Padded, normalized inputs."""
        input_BI = torch.cat([obs_BO.to(self._device), action_BA.to(self._device)], dim=-1)
        return pad_rows(self._inputs(input_BI))

    def _forward(self, input_BI: torch.Tensor, place: int | None = None) -> Output:
        """All members, or the one at ``place``, on the same rows; leading axes (M or 1, B)."""
        weights = self._weights if place is None else self._views[place]
        return forward(weights, input_BI.expand(len(weights["max_log_var"]), -1, -1))

    def _raw(self, output: Output, rows: int, place: int | None = None) -> Prediction:
        """The first ``rows`` rows of an output in raw units."""
        std = (0.5 * output.log_var).exp()
        if self._settings.loss.kind == "mse":
            members = slice(None) if place is None else slice(place, place + 1)
            std = self._residual_std_M1T[members].expand_as(std)
        return Prediction(
            (output.mean * self._targets.std + self._targets.mean)[:, :rows],
            (std * self._targets.std)[:, :rows],
            None if output.logit is None else output.logit[:, :rows],
        )

    def _empty(self) -> Prediction:
        """A prediction of no rows, leading axis (0,)."""
        none = torch.empty(0, self._sizes.targets, device=self._device)
        return Prediction(none, none, none[:, 0] if self._sizes.termination else None)


def _scattered(parts: Sequence[Prediction], order_B: torch.Tensor, empty: Prediction) -> Prediction:
    """Parts with leading axes (1, rows), joined and put back where ``order_B`` took them from."""
    if not parts:
        return empty
    back_B = order_B.argsort()
    mean, std = (
        torch.cat([getattr(part, name)[0] for part in parts])[back_B] for name in ("target_mean", "target_std")
    )
    logits = [part.termination_logit[0] for part in parts if part.termination_logit is not None]
    return Prediction(mean, std, torch.cat(logits)[back_B] if logits else None)


def _moved(prediction: Prediction, device: torch.device) -> Prediction:
    """The same prediction where the caller's tensors are."""
    logit = prediction.termination_logit
    return Prediction(
        prediction.target_mean.to(device),
        prediction.target_std.to(device),
        None if logit is None else logit.to(device),
    )


def _arrays(prediction: Prediction, *, members_first: bool) -> Arrays:
    """Field name to array with rows first; an absent logit is left out."""
    tensors = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    return {
        name: np.ascontiguousarray((tensor.transpose(0, 1) if members_first else tensor).numpy())
        for name, tensor in tensors.items()
        if tensor is not None
    }
