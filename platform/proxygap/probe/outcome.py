"""The ruler: real episodes of the deterministic policy, from start states that never change.

No model and no optimizer is involved, evaluation steps advance no clock, and nothing is remembered between two
evaluations, so that measuring changes nothing and resuming needs no state of it. A policy that remembers what it
planned (`EpisodicPolicy`) begins anew with each evaluation.

Shape legend: E episodes, L those of them that are not over, A actions, B transitions, O observation size, R component
rewards (0 for one reward).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidExperiment, NonFiniteValue, RunFailed
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import EpisodicPolicy
from proxygap.base.records import Float32, Transitions
from proxygap.base.seeds import derived_seed
from proxygap.probe.catalog import FRONT_OUTCOMES, OUTCOMES_OF

if TYPE_CHECKING:
    from proxygap.base.protocols import Actor, Policy, Task

Float = NDArray[np.float64]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the evaluation episodes gave. ``transitions`` lists episode 0 first, then 1, and so on.

    ``component_return_ER`` holds the undiscounted returns of the rewards that the task pays apart.
    """

    outcome_return_E: Float
    discounted_return_E: Float
    component_return_ER: Float
    length_E: NDArray[np.int64]
    start_obs_EO: Float32
    transitions: Transitions


class Evaluator:
    """Runs evaluation episodes on environments of its own, all stepped together with one policy call per step.

    Args:
        task: makes the environments.
        seed: the run's seed; episode i always starts from the state drawn with ``evaluate/episode/i``.
        episodes: E, the number of episodes of one policy.
        discount: of ``discounted_return_E``.
    """

    def __init__(self, task: Task, seed: int, episodes: int, discount: float = 0.99) -> None:
        self._task, self._discount = task, discount
        self._seeds = [derived_seed(seed, f"evaluate/episode/{index}") % 2**31 for index in range(episodes)]
        self._envs = [task.make_env() for _ in self._seeds]

    def evaluate(self, policy: Policy | EpisodicPolicy) -> Evaluation:
        """Run all episodes to their end with the policy's deterministic action.

        Raises:
            NonFiniteValue: the policy or an environment gave NaN or infinity.
            RunFailed: an environment raised; the error names task, episode and step.
        """
        actor = policy.episodes(len(self._seeds)) if isinstance(policy, EpisodicPolicy) else _Memoryless(policy)
        return self._run(actor, 1)[0]

    def evaluate_many(self, policy: EpisodicPolicy, copies: int) -> list[Evaluation]:
        """Run the episodes of several policies side by side, one call of their actor for each step of all of them.

        Every copy lives the same episodes: the same start seeds, and with them the same noise of the environment.

        Args:
            policy: begins ``copies * E`` episodes at once; episode b is one of copy ``b // E``.
            copies: how many there are.

        Returns:
            One evaluation per copy, each as `evaluate` gives it.

        Raises:
            NonFiniteValue, RunFailed: as `evaluate`; the error names the copy too.
        """
        return self._run(policy.episodes(copies * len(self._seeds)), copies)

    def _run(self, actor: Actor, copies: int) -> list[Evaluation]:
        count = copies * len(self._seeds)
        self._envs += [self._task.make_env() for _ in range(count - len(self._envs))]
        episodes = [_Episode(self._start(index)) for index in range(count)]
        live = list(range(count))
        step = 0
        while live:
            action_LA = self._act(actor, np.stack([episodes[index].obs_O for index in live]), live, step)
            for index, action_A in zip(live, action_LA, strict=True):
                self._advance(episodes[index], index, action_A)
            live = [index for index in live if not episodes[index].over]
            step += 1
        own = len(self._seeds)
        return [self._evaluation(episodes[first : first + own]) for first in range(0, count, own)]

    def close(self) -> None:
        """Release the environments."""
        for env in self._envs:
            env.close()  # type: ignore[no-untyped-call]

    def _start(self, index: int) -> Float32:
        obs_O, _ = self._guarded(lambda: self._envs[index].reset(seed=self._seeds[index % len(self._seeds)]), index, 0)
        return self._finite(np.asarray(obs_O, dtype=np.float32).copy(), "start observation", index, 0)

    def _act(self, actor: Actor, obs_LO: Float32, live: Sequence[int], step: int) -> Float32:
        with torch.no_grad():
            action = actor.act(torch.from_numpy(obs_LO), torch.tensor(live))
        action_LA: Float32 = action.cpu().numpy().astype(np.float32)
        for index, action_A in zip(live, action_LA, strict=True):
            self._finite(action_A, "action of the policy", index, step)
        return action_LA

    def _advance(self, episode: _Episode, index: int, action_A: Float32) -> None:
        step = len(episode.rows)
        answer = self._guarded(lambda: self._envs[index].step(action_A.copy()), index, step)
        next_obs_O = np.asarray(answer[0], dtype=np.float32).copy()
        self._finite(next_obs_O, "observation", index, step)
        self._finite(np.asarray(answer[1], dtype=np.float64), "outcome reward", index, step)
        component_R = np.array(answer[4].get("component_reward", ()), dtype=np.float64)
        self._finite(component_R, "component reward", index, step)
        # the task's time limit holds even for an environment that forgets it
        truncated = bool(answer[3]) or step + 1 >= self._task.max_episode_steps
        episode.add(action_A, next_obs_O, float(answer[1]), component_R, bool(answer[2]), truncated)

    def _guarded(self, call: Callable[[], Answer], index: int, step: int) -> Answer:
        try:
            return call()
        except Exception as crash:
            raise RunFailed(
                f"the environment of {self._task.name} raised {type(crash).__name__} in evaluation "
                f"{self._place(index)} at step {step}: {crash}",
                field="task",
                remedy="Fix the environment, or choose another task",
            ) from crash

    def _finite(self, value: NDArray[Any], what: str, index: int, step: int) -> NDArray[Any]:
        if not np.isfinite(value).all():
            raise NonFiniteValue(
                f"the {what} is not finite in evaluation {self._place(index)} at step {step}",
                field=self._task.name,
                value=value.tolist(),
                remedy="Look for a diverged policy, or an environment outside its valid range",
            )
        return value

    def _place(self, index: int) -> str:
        copy, episode = divmod(index, len(self._seeds))
        return f"episode {episode}" + (f" of copy {copy}" if len(self._envs) > len(self._seeds) else "")

    def _evaluation(self, episodes: Sequence[_Episode]) -> Evaluation:
        reward_Es = [np.array([row[3] for row in episode.rows], dtype=np.float64) for episode in episodes]
        return Evaluation(
            outcome_return_E=np.array([reward.sum() for reward in reward_Es]),
            component_return_ER=np.stack([np.sum([row[4] for row in episode.rows], axis=0) for episode in episodes]),
            discounted_return_E=np.array([reward @ self._discount ** np.arange(len(reward)) for reward in reward_Es]),
            length_E=np.array([len(reward) for reward in reward_Es], dtype=np.int64),
            start_obs_EO=np.stack([episode.rows[0][0] for episode in episodes]),
            transitions=Transitions.concatenate([e.transitions(index) for index, e in enumerate(episodes)]),
        )


class _Memoryless:
    """A policy that needs to remember nothing, as an actor."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def act(self, obs_LO: torch.Tensor, live_L: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self._policy.act(obs_LO, generator=None)


class _Episode:
    """One episode while it is lived."""

    def __init__(self, start_O: Float32) -> None:
        self.obs_O, self.over = start_O, False
        self.rows: list[tuple[Float32, Float32, Float32, float, Float, bool, bool]] = []

    def add(
        self,
        action_A: Float32,
        next_obs_O: Float32,
        outcome_reward: float,
        component_R: Float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        self.rows.append((self.obs_O, action_A, next_obs_O, outcome_reward, component_R, terminated, truncated))
        self.obs_O, self.over = next_obs_O, terminated or truncated

    def transitions(self, index: int) -> Transitions:
        obs, action, next_obs, reward, component, terminated, truncated = zip(*self.rows, strict=True)
        steps = len(self.rows)
        return Transitions(
            obs_BO=np.stack(obs),
            action_BA=np.stack(action),
            next_obs_BO=np.stack(next_obs),
            outcome_reward_B=np.array(reward, dtype=np.float32),
            component_reward_BR=np.stack(component).astype(np.float32),
            terminated_B=np.array(terminated, dtype=np.bool_),
            truncated_B=np.array(truncated, dtype=np.bool_),
            episode_B=np.full(steps, index, dtype=np.int64),
            step_B=np.arange(steps, dtype=np.int64),
        )


def outcome_measurements(
    names: Sequence[str], evaluation: Evaluation, components: Sequence[str] = ()
) -> tuple[Measurement, ...]:
    """Mean over episodes of each named outcome and its spread: ``_min``, ``_max``, ``_std`` (of two episodes or more).

    Outcomes of a front are left to `pareto.front_measurements`. With ``components`` (the task's), the mean undiscounted
    return of each comes last: ``return/NAME``.

    Raises:
        InvalidExperiment: a name that is no outcome of control.
    """
    of_one = [name for name in names if name not in FRONT_OUTCOMES]
    found = [measurement for name in of_one for measurement in _one_outcome(name, evaluation)]
    if components:
        mean_R = evaluation.component_return_ER.mean(axis=0)
        for name, value in zip(components, mean_R, strict=True):
            found.append(Measurement(f"return/{name}", float(value), Side.OUTCOME, "reward", Direction.HIGHER))
    return tuple(found)


def opening_return(evaluation: Evaluation, steps: int) -> Measurement:
    """Mean real return of the episodes' first ``steps`` steps: what an imagined return of that length promises."""
    opening_B = evaluation.transitions.step_B < steps
    total = float(evaluation.transitions.outcome_reward_B[opening_B].sum(dtype=np.float64))
    mean = total / len(evaluation.outcome_return_E)
    return Measurement("opening_return", mean, Side.OUTCOME, "reward", Direction.HIGHER)


def _one_outcome(name: str, evaluation: Evaluation) -> list[Measurement]:
    values_E, unit = _values(name, evaluation)
    spread = {"min": values_E.min(), "max": values_E.max()}
    if len(values_E) > 1:
        spread["std"] = values_E.std(ddof=1)
    mean = Measurement(name, float(values_E.mean()), Side.OUTCOME, unit, Direction.HIGHER)
    return [mean, *(Measurement(f"{name}_{kind}", float(v), Side.OUTCOME, unit) for kind, v in spread.items())]


def _values(name: str, evaluation: Evaluation) -> tuple[Float, str]:
    if name == "return":
        return evaluation.outcome_return_E, "reward"
    if name == "discounted_return":
        return evaluation.discounted_return_E, "reward"
    if name == "episode_length":
        return evaluation.length_E.astype(np.float64), "steps"
    known = ", ".join(OUTCOMES_OF["control"])
    raise InvalidExperiment("unknown outcome", field="outcomes", value=name, remedy=f"Known: {known}")
