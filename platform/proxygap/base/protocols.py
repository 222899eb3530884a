"""The seams: what a part must do to plug in. Protocols are never instantiated, implementations never subclassed.

Shape legend: B batch, O observation size, A action size, M ensemble members, R component rewards, T predicted targets
(O, plus one where the reward is learned). On the language side: P prompts, L prompt tokens, T answer tokens,
V vocabulary. Tensors live on the caller's device and are float32 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from proxygap.base.language import (
    Answers,
    Continuation,
    Enumeration,
    Float64,
    Generation,
    Items,
    ItemSpec,
    Preferences,
    RewardFitReport,
)
from proxygap.base.measurement import Reading
from proxygap.base.records import Bool, FitReport, Float32, Int64, Transitions

if TYPE_CHECKING:
    import gymnasium as gym
    import torch

Arrays = dict[str, NDArray[Any]]
"""The array half of a part's state: everything that is not JSON."""


@dataclass(frozen=True, slots=True)
class State:
    """The complete state of a part with memory: arrays (saved as safetensors) and a JSON-able structure."""

    arrays: Arrays
    structure: dict[str, Any]


@runtime_checkable
class Stateful(Protocol):
    """A part with memory. ``load_state(p.state())`` on a fresh part makes it continue bit for bit."""

    def state(self) -> State:
        """A complete copy: later calls of the part must not change it."""
        ...

    def load_state(self, state: State) -> None:
        """Become the part that ``state`` was taken from."""
        ...


class Task(Protocol):
    """Something to be good at: an environment with a continuous action in [-1, 1] and its known truths.

    ``reward`` and ``terminated`` state the environment's own laws as functions of a transition. They are None
    where the observation does not determine them; then the dynamics model learns them.
    """

    @property
    def name(self) -> str:
        """A readable, unique name, e.g. ``Hopper-v5``."""
        ...

    @property
    def obs_size(self) -> int:
        """Length O of the flat observation."""
        ...

    @property
    def action_size(self) -> int:
        """Length A of the action."""
        ...

    @property
    def max_episode_steps(self) -> int:
        """Steps after which an episode is truncated."""
        ...

    @property
    def discrete(self) -> bool:
        """Whether an action is a choice of one in A, written one-hot; its environment takes the largest entry."""
        ...

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the rewards that the task pays apart; empty where it pays one."""
        ...

    def utility(self) -> Float64:
        """Weights (R,) of the components in the one number that ``return`` is made of; (0,) without components."""
        ...

    def reference_point(self) -> Float64 | None:
        """A return vector (R,) that every policy worth having dominates, where one is agreed on."""
        ...

    def front(self) -> Float64 | None:
        """The Pareto front of undiscounted returns, (N, R), best known deterministic policies; None where unknown."""
        ...

    @property
    def known_reward(self) -> bool:
        """Whether `reward` may be called."""
        ...

    @property
    def known_termination(self) -> bool:
        """Whether `terminated` may be called."""
        ...

    @property
    def known_dynamics(self) -> bool:
        """Whether `next_obs` may be called."""
        ...

    def make_env(self) -> gym.Env[NDArray[np.float32], NDArray[np.float32]]:
        """A fresh environment: float32 flat observations, actions in [-1, 1], time limit applied.

        With components, ``info["component_reward"]`` of each step is their float64 array (R,), and the reward is
        `utility` times it.
        """
        ...

    def reward(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:
        """The environment's reward of each transition, shape (B,)."""
        ...

    def terminated(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:
        """Whether each transition ends its episode, bool, shape (B,)."""
        ...

    def next_obs(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """The environment's own law of motion without its noise, shape (B, O), differentiable."""
        ...


def unknown_laws(task: Task) -> list[str]:
    """Which of ``law of motion``, ``reward`` and ``termination`` the task does not know; whoever plans needs all."""
    known = {"law of motion": task.known_dynamics, "reward": task.known_reward, "termination": task.known_termination}
    return [law for law, is_known in known.items() if not is_known]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's view of the next step, per row: all in raw units (next observation minus observation).

    Leading axes are (M, B) from ``predict`` and (B,) from ``predict_rows``. ``target`` holds the change of the
    observation, then the reward where it is learned. ``termination_logit`` is None where termination is known.
    """

    target_mean: torch.Tensor
    target_std: torch.Tensor
    termination_logit: torch.Tensor | None
    target_shape: torch.Tensor | None = None
    """Shape beta of a generalized Gaussian per target (2 is Gaussian, 1 Laplace); None where all are Gaussian."""


class DynamicsModel(Stateful, Protocol):
    """An ensemble of models of the next step. Pure between fits: all randomness stays with the caller."""

    @property
    def members(self) -> int:
        """Number M of networks."""
        ...

    @property
    def version(self) -> int:
        """How many fits the weights have seen; 0 before the first."""
        ...

    @property
    def elites(self) -> tuple[int, ...]:
        """Members to imagine with: the best on held-out data at the last fit."""
        ...

    def fit(self, data: Transitions, first_row: int, weight_NT: Float32 | None = None) -> FitReport:
        """Refit to ``data`` from the current weights; ``first_row`` numbers its first transition in the run's life.

        The numbering keeps a transition on the same side of the held-out split in every refit. ``weight_NT`` is what
        the dynamics loss gave for these rows (`DynamicsLoss.weigh`); None weighs all alike.
        """
        ...

    def predict(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> Prediction:
        """Every member's prediction, leading axes (M, B)."""
        ...

    def predict_rows(
        self,
        member_B: torch.Tensor,
        obs_BO: torch.Tensor,
        action_BA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> Prediction:
        """For each row, the prediction of one chosen member, leading axis (B,), float32 in and out.

        ``precision`` is that of the arithmetic inside; where a model has no lower one, it computes in float32.
        """
        ...


class Uncertainty(Stateful, Protocol):
    """Where a dynamics model is wrong, and how much. It keeps no model: the caller hands in the one that it asks about.

    The unit is the squared error of the elites' mean, each target in standard deviations of the data, averaged.
    """

    @property
    def ready(self) -> bool:
        """Whether it may be called: a fit had enough data."""
        ...

    def observe(self, model: DynamicsModel, rows: Transitions) -> None:
        """Meet new real experience before ``model`` is fitted to it; nothing changes until the next fit."""
        ...

    def fit(self, model: DynamicsModel, data: Transitions, unseen_N: Bool) -> None:
        """Follow a fit of ``model`` to ``data``, of which the rows ``unseen_N`` were held out."""
        ...

    def __call__(self, model: DynamicsModel, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """The model's expected error at each row, as far as it is not noise, (B,), never negative.

        Raises:
            ValueError: it is not `ready`.
        """
        ...


class StepModel(Protocol):
    """What a planner rolls forward: networks that each step rows of their own, all in one call. Pure."""

    def step_members(
        self,
        member_ids: Sequence[int],
        obs_KBO: torch.Tensor,
        action_KBA: torch.Tensor,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> Prediction:
        """Member ``member_ids[k]`` on rows ``[k]``; leading axes (K, B), float32 in and out.

        ``precision`` is that of the arithmetic inside; where a model has no lower one, it computes in float32.
        """
        ...


@dataclass(frozen=True, slots=True)
class FitContext:
    """What a loop knows beside the data when it refits, for losses that ask for more.

    ``value_gradient`` maps observations (B, O) to the gradient of the value there (B, O), detached.
    """

    value_gradient: Callable[[torch.Tensor], torch.Tensor] | None = None
    expert: Transitions | None = None


class DynamicsLoss(Protocol):
    """Loss of a prediction in normalized units; its minimum over many transitions trains a member."""

    @property
    def raw_units(self) -> bool:
        """Whether weights are for errors in raw units: the model then multiplies them by the targets' variances."""
        ...

    @property
    def learns_deviation(self) -> bool:
        """Whether it fits ``log_var``; else the predictive deviation is that of the held-out residuals."""
        ...

    @property
    def learns_shape(self) -> bool:
        """Whether the networks must say a ``shape`` per target."""
        ...

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weights of the steps of an open-loop prediction from each row; ``(1.0,)`` looks one step ahead."""
        ...

    def weigh(self, data: Transitions, targets: int, context: FitContext) -> Float32 | None:
        """Weights (N, T) of the rows' targets, none negative; None weighs all alike. Computed once per fit.

        Raises:
            InvalidExperiment: the context lacks what this loss needs; names it.
        """
        ...

    def __call__(self, output: Normalized, target_MBT: torch.Tensor, weight_MBT: torch.Tensor) -> torch.Tensor:
        """Loss per member, shape (M,); the members' sum is what is differentiated.

        ``weight_MBT`` may be broadcast; rows that only pad have weight 0, and the mean over all weights is 1.
        """
        ...


@dataclass(frozen=True, slots=True)
class Normalized:
    """What networks say in normalized units, leading axes (M, B), the logit without a last axis.

    ``shape`` (positive, 2 is Gaussian) is there where the loss asks for it; the scale of a generalized Gaussian is then
    ``sqrt(2) exp(log_var / 2)``.
    """

    mean: torch.Tensor
    log_var: torch.Tensor
    logit: torch.Tensor | None = None
    shape: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """What a planner carries from one step to the next for B problems planned side by side: tensors, problems first."""

    tensors: dict[str, torch.Tensor]

    def take(self, rows: torch.Tensor) -> PlanMemory:
        """The memory of some of the problems."""
        return PlanMemory({name: tensor[rows] for name, tensor in self.tensors.items()})

    def put(self, rows: torch.Tensor, part: PlanMemory) -> PlanMemory:
        """This memory with some problems' replaced; nothing is changed in place."""
        mine = self.tensors.items()
        return PlanMemory({name: tensor.index_copy(0, rows, part.tensors[name]) for name, tensor in mine})


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer of a planner for B problems: actions to take now, the whole sequences, and what they promise."""

    action_BA: torch.Tensor
    sequence_BHA: torch.Tensor
    return_B: torch.Tensor
    evaluated: int
    """Action sequences evaluated per problem."""


class Planner(Protocol):
    """Model and objective become an action sequence. Pure: memory goes in and comes out, noise is the caller's.

    All problems share one draw of noise, so that a problem's plan does not depend on what is planned beside it, and
    two models compared on the same start see the same candidates (common random numbers).
    """

    @property
    def horizon(self) -> int:
        """Steps H of a plan."""
        ...

    def init(self, problems: int, action_size: int) -> PlanMemory:
        """The memory of problems that begin."""
        ...

    def plan(
        self,
        memory: PlanMemory,
        returns: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
    ) -> tuple[Plan, PlanMemory]:
        """Plan for every problem; ``returns`` maps sequences (B, N, H, A) to predicted returns (B, N).

        A return that is not finite is worse than any other and is never an elite. Where no return of a problem is
        finite, the plan of before is kept and its promise is NaN.
        """
        ...

    def later(self, memory: PlanMemory, steps: int) -> PlanMemory:
        """The memory after ``steps`` of its plan have been taken: a warm start for the next plan."""
        ...


class Actor(Protocol):
    """A policy within episodes that run side by side: it may remember what it planned."""

    def act(self, obs_BO: torch.Tensor, live_B: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) of the episodes numbered ``live_B`` (int64, ascending), the others being over."""
        ...


class LastingActor(Actor, Stateful, Protocol):
    """An actor that outlives its episodes: where one has ended, another begins. `Stateful` is what it remembers."""

    def begin(self, episodes_B: torch.Tensor) -> None:
        """Forget what was planned in the episodes with these numbers (int64): others begin in their places."""
        ...


@runtime_checkable
class EpisodicPolicy(Protocol):
    """A policy whose actions depend on what it did before in the episode."""

    def episodes(self, count: int) -> Actor:
        """Begin ``count`` episodes. Two calls give actors that act alike and do not touch each other."""
        ...


class Policy(Protocol):
    """Something that acts. Actions are in [-1, 1]."""

    def act(self, obs_BO: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Actions, shape (B, A): a sample drawn with ``generator``, or the deterministic action for None."""
        ...

    def value(self, obs_BO: torch.Tensor) -> torch.Tensor:
        """The critics' estimate of the discounted return from each state, shape (B,)."""
        ...


class LanguageTask(Protocol):
    """Prompts to be answered well: a prompt table, and a gold reward of answers that no model learns from.

    Pure: every method depends on its arguments and the task's settings alone.
    """

    @property
    def name(self) -> str:
        """A readable, unique name."""
        ...

    @property
    def item_spec(self) -> ItemSpec:
        """Sizes of prompts, answers and items; ``vocabulary`` counts all tokens, padding and end included."""
        ...

    @property
    def end_token(self) -> int | None:
        """The token that ends an answer; None where every answer has exactly ``item_spec.max_tokens`` tokens."""
        ...

    def prompt_tokens(self) -> Int64:
        """The prompt table, shape (P, L), padded on the left with ``item_spec.pad_token``."""
        ...

    def gold(self, answers: Answers) -> Float64:
        """The gold reward of each answer, in the task's own unit, shape (B,)."""
        ...

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the rewards that can be optimized apart; empty where there is gold alone."""
        ...

    def component_rewards(self, answers: Answers) -> Float64:
        """Each component's true reward of each answer, shape (R, B); (0, B) without components."""
        ...

    def reference_point(self) -> Float64 | None:
        """A vector (R,) of mean component rewards that every policy worth having dominates; None without components."""
        ...

    def front(self) -> Float64 | None:
        """The Pareto front of mean component rewards, (N, R), over all policies; None where it is not known."""
        ...

    def items(self, answers: Answers) -> Items:
        """What a reward model sees of answers; see `proxygap.base.language`."""
        ...

    def styles(self, answers: Answers) -> dict[str, Float64]:
        """Statistics of style beside gold, each of shape (B,); ``length`` is always there."""
        ...

    def text(self, answers: Answers) -> list[tuple[str, str]]:
        """Each answer for a reader: (prompt, answer)."""
        ...

    def demonstrations(self, rng: np.random.Generator, count: int) -> Answers:
        """Answers that the reference policy is pretrained on (their log-probabilities are 0); 0 rows for a table."""
        ...

    def enumeration(self) -> Enumeration | None:
        """The whole truth, for a task that is small enough; else None."""
        ...


class LanguageModel(Protocol):
    """A `torch.nn.Module` that answers prompts. Prompts are padded on the left, answers on the right.

    ``forward`` is `continuation`; parameters are those of one network, so an optimizer can hold them.
    """

    def continuation(self, prompt_BL: torch.Tensor, token_BT: torch.Tensor) -> Continuation:
        """Logits that predict each answer token from the prompt and the tokens before it, and the states behind."""
        ...

    def generate(
        self, prompt_BL: torch.Tensor, max_tokens: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> Generation:
        """Sample one answer per prompt row, at most ``max_tokens`` long, each ended by the end token if there is one.

        ``log_prob_BT`` is at temperature 1, whatever temperature was sampled at.
        """
        ...


class RewardModel(Stateful, Protocol):
    """An ensemble that scores items. Pure between fits: all randomness is derived from its own seed."""

    @property
    def members(self) -> int:
        """Number M of networks."""
        ...

    @property
    def version(self) -> int:
        """How many fits and calibrations the scores have seen; 0 before the first."""
        ...

    def fit(self, data: Preferences) -> RewardFitReport:
        """Fit every member to labeled pairs, from its current weights."""
        ...

    def calibrate(self, items: Items) -> None:
        """Shift and scale every member's score to mean 0 and standard deviation 1 on these items.

        Items of the reference policy are meant: then scores of members can be compared, and the curve of a proxy over
        the distance from the reference starts at 0 (Gao et al. 2023).
        """
        ...

    def score(self, items: Items) -> torch.Tensor:
        """Every member's calibrated score, shape (M, B)."""
        ...


class Aggregate(Protocol):
    """Member scores become one: a pure function."""

    def __call__(self, scores_MB: torch.Tensor) -> torch.Tensor:
        """One score per row, shape (B,). Raises `NonFiniteValue`, naming the member."""
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a weighting may look at, once per iteration, before the policy is improved on that iteration's rows.

    Args:
        names: the R components, in the order of every axis R below.
        value_R: mean reward of each component on this iteration's rows: per answer, or undiscounted per finished
            episode; NaN where no episode finished. In the units of the judged rewards.
        advantage_RB: each component's advantage of every row (token or step), not normalized, detached.
        gramian_RR: inner products of the components' policy gradients; None unless ``needs_gradients``.
        iteration: how many iterations came before.
        outcome: the mean outcome of these very rows; None unless ``needs_outcome``.
        penalty: mean of the KL penalty per answer in nats, without its coefficient; 0 where there is none.
    """

    names: tuple[str, ...]
    value_R: Float64
    advantage_RB: torch.Tensor
    gramian_RR: torch.Tensor | None
    iteration: int
    outcome: float | None = None
    penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Weights:
    """What a weighting decides: the factor of each component (R,), and of the KL penalty beside them."""

    component_R: Float64
    penalty: float = 1.0


class Weighting(Protocol):
    """How several rewards are weighed against each other, iteration by iteration. Pure: its memory is explicit.

    A settings class is the part itself, as with aggregates.
    """

    needs_gradients: ClassVar[bool]
    """Whether `Evidence.gramian_RR` must be computed: R backward passes per iteration."""

    @property
    def needs_outcome(self) -> bool:
        """Whether `Evidence.outcome` must be measured; each row of it counts as a label."""
        ...

    def init(self, names: Sequence[str], seed: int) -> State:
        """The memory before the first iteration. Raises `InvalidExperiment` for settings that do not fit ``names``."""
        ...

    def update(self, state: State, evidence: Evidence) -> tuple[Weights, State]:
        """The weights of this iteration, and the memory after it; ``state`` is left as it was."""
        ...

    def combined(self, advantage_RB: torch.Tensor, weights: Weights) -> torch.Tensor:
        """One advantage per row, shape (B,): the weighted sum, unless the scheme says otherwise."""
        ...

    def diagnostics(self, state: State) -> dict[str, float]:
        """Numbers of the last update that are worth a curve, by name (finite); empty where there are none."""
        ...

    def notices(self, *, names: Sequence[str], normalizes: str) -> tuple[str, ...]:
        """What a user should know before the start, in sentences: above all when the scheme can do nothing here.

        ``normalizes`` names the option by which the optimizer standardizes advantages, empty where it does not.
        """
        ...


class HostedModel(Stateful, Protocol):
    """What a host can serve: a plain class whose named calls take and give arrays, pure between versions."""

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """Run a named method. Must depend only on its arguments and the loaded state."""
        ...

    def batchable(self, method: str) -> bool:
        """Whether rows of several requests for ``method`` may be run together along the first axis."""
        ...


class Recorder(Protocol):
    """Keeps every measurement of one run."""

    def write(self, reading: Reading) -> None:
        """Persist a `Reading` before returning."""
        ...

    def event(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Persist something that happened (a restart, a refusal, an interruption)."""
        ...


__all__: Sequence[str] = [
    "Aggregate",
    "Arrays",
    "DynamicsLoss",
    "DynamicsModel",
    "Evidence",
    "HostedModel",
    "LanguageModel",
    "LanguageTask",
    "Policy",
    "Prediction",
    "Recorder",
    "RewardModel",
    "State",
    "Stateful",
    "Task",
    "Uncertainty",
    "Weighting",
    "Weights",
]
