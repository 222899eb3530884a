"""What the loops on RLlib share: how its groups are set up, asked again after a failure, and saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from proxygap.base.errors import HostFailed, RunFailed
from proxygap.base.protocols import State
from proxygap.rllib import RLModuleSpec, local_learner, local_runner, push_weights

if TYPE_CHECKING:
    from proxygap.base.clock import Clocks
    from proxygap.experiment import Experiment

REMOTE_ROUNDS = 5
"""Times that remote runners are asked for the same rows before the run fails."""
RESTART_S = 60.0
"""Longest wait, in each round, for a runner that is being started anew."""
Part = TypeVar("Part", bound=Sized)
Answer = TypeVar("Answer")


def set_up(
    config: Any,
    experiment: Experiment,
    *,
    spaces: Mapping[str, Any],
    runner: tuple[type[Any], dict[str, Any]],
    module: tuple[type[Any], dict[str, Any]],
    learner: tuple[type[Any], dict[str, Any]],
) -> None:
    """Fill an `AlgorithmConfig`: one training step per iteration, and groups of the sizes that the experiment names.

    Args:
        config: to be filled.
        experiment: its ``collect`` sizes the runners, ``optimize``, if any, the Learner; ``compute`` may place both.
        spaces: ``observation_space`` and ``action_space``.
        runner: class of the environment runner, and what it finds in ``env_config``.
        module: class of the RLModule, and its ``model_config``.
        learner: class of the Learner, and what it is given.
    """
    collect, compute = experiment.collect, experiment.compute
    learners, gpus_per_learner = experiment.learners
    config.environment(**spaces, env_config=runner[1])
    config.env_runners(
        env_runner_cls=runner[0],
        num_env_runners=collect.env_runners,
        create_local_env_runner=collect.env_runners == 0,
        num_cpus_per_env_runner=collect.cpus_per_runner,
        custom_resources_per_env_runner=dict(compute.runner_resources),
    )
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=module[0], **spaces, model_config=module[1]))
    config.learners(
        learner_class=learner[0],
        num_learners=learners,
        num_gpus_per_learner=gpus_per_learner,
        custom_resources_per_learner=dict(compute.learner_resources),
        learner_config_dict=learner[1],
    )
    config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
    config.fault_tolerance(delay_between_env_runner_restarts_s=1.0)
    config.debugging(log_level="ERROR")


def control_spaces(experiment: Experiment) -> dict[str, Any]:
    """The spaces of the experiment's task."""
    env = experiment.control_task.make_env()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    env.close()  # type: ignore[no-untyped-call]
    return spaces


class RllibLoop:
    """Mixed into an RLlib Algorithm, before it: its groups, wherever they live, as a loop uses them."""

    config: Any
    env_runner_group: Any
    learner_group: Any
    restore_env_runners: Callable[[Any], Any]
    experiment: Experiment
    clocks: Clocks
    events: list[tuple[str, dict[str, Any]]]

    def connect(self) -> None:
        """Find runner and Learner that live in this process; there, they share the networks."""
        self.runner, self.learner = local_runner(self), local_learner(self)
        if self.runner is not None and self.learner is not None:
            self.runner.module = self.learner.networks  # one process, one copy: there is nothing to synchronize

    def bring_weights(self) -> None:
        """Give the runners the newest weights, where they do not share them."""
        if self.runner is None or self.learner is None:
            push_weights(self, self.config.sample_timeout_s)

    def ask_runners(
        self, kwargs: Any, done: Callable[[Sequence[Part]], bool], rows: int, *, together: bool = False
    ) -> list[Part]:
        """What remote runners sampled. One that died is restarted, given the newest weights and asked again.

        Args:
            kwargs: of ``sample``, for all runners or one for each.
            done: whether these parts are enough.
            rows: how many rows are wanted, for the error.
            together: whether the parts of one round must be ``done``; else those of all rounds so far.

        Raises:
            RunFailed: they are not enough after `REMOTE_ROUNDS` rounds.
        """
        parts: list[Part] = []
        for number in range(REMOTE_ROUNDS):
            found = self.env_runner_group.foreach_env_runner(
                "sample", kwargs=kwargs, local_env_runner=False, timeout_seconds=self.config.sample_timeout_s
            )
            parts = [*([] if together else parts), *found]
            if done(parts):
                return parts
            self.events.append(("env_runner_lost", {"real_step": self.clocks.real_step}))
            self.await_runners(self.env_runner_group.num_remote_env_runners() if together else 1)
            life = (self.clocks.real_step + 1) * REMOTE_ROUNDS + number
            self.env_runner_group.foreach_env_runner(
                "begin_life", kwargs={"number": life}, local_env_runner=False, timeout_seconds=RESTART_S
            )
            push_weights(self, self.config.sample_timeout_s)
        raise RunFailed(
            f"the runners gave {sum(map(len, parts))} of {rows} steps or answers in {REMOTE_ROUNDS} rounds",
            field="collect.env_runners",
            value=self.experiment.collect.env_runners,
            remedy="Look at the runners' logs under the Ray session; the task may crash or hang",
        )

    def await_runners(self, needed: int) -> None:
        """Wait until so many runners are up, at most `RESTART_S`: Ray refuses calls while it starts one anew."""
        until = time.monotonic() + RESTART_S
        while True:
            self.restore_env_runners(self.env_runner_group)
            if self.env_runner_group.num_healthy_remote_env_runners() >= needed or time.monotonic() > until:
                return
            time.sleep(0.5)

    def ask_learner(self, ask: Callable[[Any], Answer]) -> Answer:
        """What ``ask`` gives in the Learner, here or remote.

        Raises:
            HostFailed: the remote Learner does not answer. What it raises itself is raised here.
        """
        results: list[Any] = list(self.learner_group.foreach_learner(ask))
        if not results:
            raise HostFailed(
                "the Learner does not answer", field="optimize.learners", remedy="see its log in Ray's session folder"
            )
        if not hasattr(results[0], "ok"):
            answer: Answer = results[0]
            return answer
        answer = results[0].get()  # RLlib gives errors as if they were answers
        if not results[0].ok:
            raise cast("BaseException", answer)
        return answer

    def newest_module(self) -> Any:
        """The RLModule with its newest weights, in this process."""
        if self.learner is not None:
            return self.learner.networks
        module, prefix = self.config.get_rl_module_spec().build(), "module/"
        arrays = self.ask_learner(lambda learner: learner.part_state()).arrays
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in own.items()})
        return module

    @property
    def measure_due(self) -> bool:
        """At every multiple of ``probe.every``, and at the end."""
        now = self.clocks.real_step
        return now % self.experiment.probe_every == 0 or now == self.experiment.loop.real_steps

    def group_parts(self) -> dict[str, State]:
        """The complete state of Learner and runners: ``learner``, ``runner-0`` and so on."""
        runners = self._ask_all_runners(lambda runner: runner.part_state())
        named = {f"runner-{index}": state for index, state in enumerate(runners)}
        return {"learner": self.ask_learner(lambda learner: learner.part_state()), **named}

    def load_group_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `group_parts`."""
        self.ask_learner(lambda learner: learner.load_part_state(parts["learner"]))
        states = [parts[f"runner-{index}"] for index in range(sum(name.startswith("runner-") for name in parts))]
        if self.runner is not None:
            self.runner.load_part_state(states[0])
            return
        self._ask_all_runners([lambda runner, state=state: runner.load_part_state(state) for state in states])

    def _ask_all_runners(self, ask: Any) -> list[Any]:
        """What every runner answers; one that died is waited for. Raises HostFailed where one stays away."""
        here = self.runner is not None
        wanted = 1 if here else self.env_runner_group.num_remote_env_runners()
        for _ in range(2):
            answers = list(self.env_runner_group.foreach_env_runner(ask, local_env_runner=here))
            if len(answers) == wanted:
                return answers
            self.await_runners(wanted)
        raise HostFailed(
            f"{wanted - len(answers)} of {wanted} environment runners do not answer",
            field="collect.env_runners",
            remedy="see their logs in Ray's session folder",
        )


def samples_until(now: int, borders: Sequence[int], end: int, steps_per_sample: int) -> int:
    """Samples until the next multiple of a border, or the end of the budget, whichever is first."""
    steps = min(*(now + border - now % border for border in borders), end) - now
    return -(-steps // steps_per_sample)
