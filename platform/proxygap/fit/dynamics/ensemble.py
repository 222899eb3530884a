"""A probabilistic ensemble, or a shard of one: `DynamicsModel` for the loop, `HostedModel` for a host.

Shape legend: M members held, B rows, O observation size, A action size, I = O + A, T predicted targets (the change of
the observation, then the outcome reward where it is learned).

Members carry their number in the whole ensemble everywhere (``elites``, ``member_B`` of `predict_rows`, state), so that
shards and whole speak of the same member. Everything random about a member derives from its number, so a shard's
numbers equal the whole's, bit for bit on the same kind of processor with one thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.protocols import Arrays, Normalized, Prediction, State
from proxygap.base.records import FitReport, Float32, Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.generalized_gaussian import log_deviation
from proxygap.fit.dynamics.network import (
    Normalizer,
    Sizes,
    Weights,
    aligned,
    forward,
    initial_weights,
    pad_rows,
)
from proxygap.fit.dynamics.rows import Rows, Side
from proxygap.fit.dynamics.scores import log_likelihood, normalized_mse
from proxygap.fit.dynamics.shards import best_members, merge, split
from proxygap.fit.dynamics.stepping import Precision, Seats, Stepper, Steppers
from proxygap.fit.dynamics.supervision import fit_weights, raw_rows, side
from proxygap.fit.dynamics.training import Trained, epoch_budgets, is_held_out, train
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
    training rows of the latest fit. Under a loss that learns no deviation, the predictive one is the root mean squared
    held-out residual of each member and target one step ahead, the same everywhere, all rows alike.

    Raises:
        NonFiniteValue: from `fit`, for data, weights or a member's loss that is NaN or infinite.
        ValueError: from `fit`, for no transitions, or weights or budgets that do not fit.
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
        self._sizes = Sizes(
            obs_size + action_size,
            obs_size + learn_reward,
            settings.hidden,
            learn_termination,
            settings.loss.learns_shape,
        )
        self._member_ids, self._version = tuple(member_ids), 0
        count, targets = len(self._member_ids), self._sizes.targets
        self._held_out_loss_M = np.zeros(count, dtype=np.float32)
        self._inputs = self._identity(self._sizes.inputs)
        self._targets = self._identity(targets)
        self._residual_std_M1T = torch.ones(count, 1, targets, device=self._device)
        self._steppers = Steppers()
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

    @property
    def held_out_loss_M(self) -> NDArray[np.float32]:
        """What chose the elites, per held member: see `training.held_out_loss`; 0 before the first fit."""
        return self._held_out_loss_M.copy()

    def fit(
        self,
        data: Transitions,
        first_row: int,
        weight_NT: Float32 | None = None,
        max_epochs_M: NDArray[np.int64] | None = None,
    ) -> FitReport:
        """Refit to ``data``; its rows are numbered from ``first_row`` in the life of the run.

        With fewer than two rows on a side of the held-out split, all rows serve as both (``held_out_rows`` is 0).

        Args:
            data: the transitions; losses of several steps find an episode's next step among them.
            first_row: number of the first.
            weight_NT: weights of the rows' targets; scaled to mean 1 over the training rows.
            max_epochs_M: budget of each held member in place of ``max_epochs``.
        """
        columns = raw_rows(data, self._learn_reward, self._device)
        numbers = first_row + np.arange(len(data), dtype=np.int64)
        apart_N = is_held_out(self._seed, numbers, self._settings.held_out)
        split = min(int(apart_N.sum()), int((~apart_N).sum())) >= 2
        inside = np.flatnonzero(~apart_N) if split else np.arange(len(data))
        outside = np.flatnonzero(apart_N)[-self._settings.held_out_limit :] if split else inside
        self._inputs, self._targets = Normalizer.of(columns.input_NI[inside]), Normalizer.of(columns.target_NT[inside])
        loss, std_T = self._settings.loss, self._targets.std
        whole = Rows(
            self._inputs(columns.input_NI),
            self._targets(columns.target_NT),
            columns.terminated_N if self._sizes.termination else None,
            fit_weights(weight_NT, columns.target_NT, inside, std_T if loss.raw_units else None),
        )
        budgets = None if max_epochs_M is None else epoch_budgets(max_epochs_M, self.members)
        training, held_out = (side(data, whole, rows, loss, self._inputs, self._targets) for rows in (inside, outside))
        trained = self._train(training, held_out, budgets)
        apart = len(outside) if split else 0
        return self._report(trained, held_out.rows, columns.target_NT[outside], len(inside), apart)

    def _train(self, training: Side, held_out: Side, budgets: Sequence[int] | None) -> Trained:
        """Train from the current weights and take over the result."""
        shared = self._settings.batches == "shared"
        names = ["shared" if shared else f"member/{member}" for member in self._member_ids]
        rngs = [generator(self._seed, f"dynamics/{name}/fit/{self._version}") for name in names]
        trained = train(self._settings, self._weights, training, held_out, self._member_ids, rngs, budgets)
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

    def predict_rows(
        self,
        member_B: torch.Tensor,
        obs_BO: torch.Tensor,
        action_BA: torch.Tensor,
        precision: Precision = "float32",
    ) -> Prediction:
        """For each row the prediction of its own member only, leading axis (B,), in raw units.

        Rows are sorted by member and each stretch runs through that member's weights in place: nothing is evaluated
        twice, no weight is copied, and a member's rows give the same bits whoever else is hosted beside it.

        Raises:
            ValueError: a row asks for a member that is not held here.
        """
        with torch.no_grad():
            place_B = self._places(member_B)
            obs_BO_here, action_BA_here = obs_BO.to(self._device), action_BA.to(self._device)
            if precision != "float32" and len(place_B):
                return _moved(self._seated_rows(place_B, obs_BO_here, action_BA_here, precision), obs_BO.device)
            order_B = place_B.argsort(stable=True)
            counts = torch.bincount(place_B, minlength=self.members).tolist()
            parts = [
                self._raw(
                    self._forward(self._normalized(obs_BO_here[rows], action_BA_here[rows]), place), len(rows), place
                )
                for place, rows in enumerate(torch.split(order_B, counts))
                if len(rows)
            ]
            return _moved(_scattered(parts, order_B, self._empty()), obs_BO.device)

    def _seated_rows(
        self, place_B: torch.Tensor, obs_BO: torch.Tensor, action_BA: torch.Tensor, precision: Precision
    ) -> Prediction:
        """Rows of all members in one call, leading axis (B,)."""
        seats = Seats.of(place_B, self.members)
        stepper = self._stepper(seats.places, precision)
        output = stepper.heads(seats.take(stepper.inputs(obs_BO, action_BA)))
        raw = self._raw(output, seats.count, seats.places)
        tensors: dict[str, Any] = {field.name: getattr(raw, field.name) for field in fields(Prediction)}
        left: dict[str, Any] = {
            name: None if tensor is None else seats.leave(tensor) for name, tensor in tensors.items()
        }
        return Prediction(**left)

    def _stepper(self, places: tuple[int, ...], precision: Precision) -> Stepper:
        shaped = self._sizes.shaped
        return self._steppers.of(self._weights, places, self._inputs, shaped=shaped, precision=precision)

    def step_members(
        self,
        member_ids: Sequence[int],
        obs_KBO: torch.Tensor,
        action_KBA: torch.Tensor,
        precision: Precision = "float32",
    ) -> Prediction:
        """Member ``member_ids[k]`` on rows ``[k]``, in raw units, leading axes (K, B): see `stepping`.

        Raises:
            ValueError: a member is not held here.
        """
        with torch.no_grad():
            stepper = self._stepper(self._places_of(tuple(member_ids)), precision)
            output = stepper(obs_KBO.to(self._device), action_KBA.to(self._device))
            return _moved(self._raw(output, obs_KBO.shape[1], stepper.places), obs_KBO.device)

    def _places_of(self, member_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Positions in this stack of members given by number."""
        if member_ids == self._member_ids:
            return tuple(range(self.members))
        place_of = {member: place for place, member in enumerate(self._member_ids)}
        missing = sorted(set(member_ids) - set(place_of))
        if missing:
            raise ValueError(f"members {missing} are not held here; held are {list(self._member_ids)}")
        return tuple(place_of[member] for member in member_ids)

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
        fields of `FitReport`; it may be given ``weight_NT``, and ``max_epochs_M`` of all members of the ensemble, by
        number. ``predict_rows`` has the option precision. Raises KeyError for another method.
        """
        if method == "fit":
            columns = dict(arrays)
            weight_NT, budgets = columns.pop("weight_NT", None), columns.pop("max_epochs_M", None)
            mine = None if budgets is None else budgets[list(self._member_ids)]
            report = self.fit(Transitions(**columns), int(options["first_row"]), weight_NT, mine)
            return {name: np.asarray(value) for name, value in asdict(report).items()}
        if method not in ("predict", "predict_rows"):
            raise KeyError(f"no method {method!r}; there are fit, predict and predict_rows")
        obs_BO, action_BA = (torch.from_numpy(np.array(arrays[name], np.float32)) for name in ("obs_BO", "action_BA"))
        if method == "predict":
            return _arrays(self.predict(obs_BO, action_BA), members_first=True)
        member_B = torch.from_numpy(np.array(arrays["member_B"], np.int64))
        precision = options.get("precision", "float32")
        return _arrays(self.predict_rows(member_B, obs_BO, action_BA, precision), members_first=False)

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

    def _normalized(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """Padded, normalized inputs."""
        input_BI = torch.cat([obs_BO.to(self._device), action_BA.to(self._device)], dim=-1)
        return pad_rows(self._inputs(input_BI))

    def _forward(self, input_BI: torch.Tensor, place: int | None = None) -> Normalized:
        """All members, or the one at ``place``, on the same rows; leading axes (M or 1, B)."""
        weights = self._weights if place is None else self._views[place]
        return forward(weights, input_BI.expand(len(weights["max_log_var"]), -1, -1), shaped=self._sizes.shaped)

    def _raw(self, output: Normalized, rows: int, place: int | tuple[int, ...] | None = None) -> Prediction:
        """The first ``rows`` rows of an output in raw units; of all members, or those at a place or places."""
        if not self._settings.loss.learns_deviation:
            members = slice(None) if place is None else [place] if isinstance(place, int) else list(place)
            std = self._residual_std_M1T[members].expand_as(output.log_var)
        elif output.shape is not None:  # alpha = sqrt(2) exp(log_var / 2)
            std = (0.5 * (output.log_var + math.log(2.0)) + log_deviation(output.shape)).exp()
        else:
            std = (0.5 * output.log_var).exp()
        return Prediction(
            (output.mean * self._targets.std + self._targets.mean)[:, :rows],
            (std * self._targets.std)[:, :rows],
            None if output.logit is None else output.logit[:, :rows],
            None if output.shape is None else output.shape[:, :rows],
        )

    def _empty(self) -> Prediction:
        """A prediction of no rows, leading axis (0,)."""
        none = torch.empty(0, self._sizes.targets, device=self._device)
        return Prediction(
            none, none, none[:, 0] if self._sizes.termination else None, none if self._sizes.shaped else None
        )


def _scattered(parts: Sequence[Prediction], order_B: torch.Tensor, empty: Prediction) -> Prediction:
    """Parts with leading axes (1, rows), joined and put back where ``order_B`` took them from."""
    if not parts:
        return empty
    back_B = order_B.argsort()

    def joined(name: str) -> Any:
        given = [tensor[0] for part in parts if (tensor := getattr(part, name)) is not None]
        return torch.cat(given)[back_B] if given else None

    return Prediction(**{field.name: joined(field.name) for field in fields(Prediction)})


def _moved(prediction: Prediction, device: torch.device) -> Prediction:
    """The same prediction where the caller's tensors are."""
    given = {field.name: getattr(prediction, field.name) for field in fields(Prediction)}
    moved: dict[str, Any] = {name: None if tensor is None else tensor.to(device) for name, tensor in given.items()}
    return Prediction(**moved)


def _arrays(prediction: Prediction, *, members_first: bool) -> Arrays:
    """Field name to array with rows first; an absent logit or shape is left out."""
    tensors = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    return {
        name: np.ascontiguousarray((tensor.transpose(0, 1) if members_first else tensor).numpy())
        for name, tensor in tensors.items()
        if tensor is not None
    }
