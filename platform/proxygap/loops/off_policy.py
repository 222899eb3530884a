"""What the off-policy loops share: RLlib's SAC Algorithm with our runner, replay, Learner and complete state.

Shape legend: U updates in a Learner call, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.clock import Clocks
from proxygap.base.errors import RunFailed
from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator, generator_state, restore_generator
from proxygap.collect.env_runner import StepRunner
from proxygap.collect.replay import Replay
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.probe.objective import value_estimate
from proxygap.rllib import SAC, RLModuleSpec, SACConfig, learner_batch, local_learner, local_runner, push_weights

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.experiment import Experiment
    from proxygap.probe.outcome import Evaluation

REMOTE_ROUNDS = 5
"""Times that remote runners are asked for the same steps before the run fails."""
Columns = dict[str, np.ndarray[Any, Any]]


class LoopConfig(SACConfig):
    """An `AlgorithmConfig` that carries the experiment; `for_run` is the only way to fill it."""

    def __init__(self, algo_class: type[Any] | None = None) -> None:
        super().__init__(algo_class=algo_class or OffPolicy)
        self.experiment: Experiment | None = None
        self.run_seed = 0

    @classmethod
    def for_run(cls, algorithm: type[OffPolicy], experiment: Experiment, seed: int) -> LoopConfig:
        """The configuration of one run."""
        env = experiment.task.make_env()
        spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
        env.close()  # type: ignore[no-untyped-call]
        sac, collect = experiment.optimize, experiment.collect
        config = cls(algorithm)
        config.experiment, config.run_seed = experiment, seed
        runner = {"task": experiment.task, "seed": seed, "count": collect.envs_per_runner, "threads": 1}
        module = {"hidden": sac.hidden, "initial_temperature": sac.initial_temperature, "seed": seed}
        config.environment(**spaces, env_config=runner)
        config.env_runners(
            env_runner_cls=StepRunner,
            num_env_runners=collect.env_runners,
            create_local_env_runner=collect.env_runners == 0,
            num_cpus_per_env_runner=collect.cpus_per_runner,
        )
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=SacModule, **spaces, model_config=module))
        config.learners(
            learner_class=SacLearner,
            num_learners=sac.learners,
            num_gpus_per_learner=sac.gpus_per_learner,
            learner_config_dict={"settings": sac, "seed": seed},
        )
        config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True})
        config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)  # one training_step each
        config.fault_tolerance(delay_between_env_runner_restarts_s=1.0)
        config.debugging(log_level="ERROR")
        return config


class OffPolicy(SAC):
    """Collect, keep, improve. Subclasses say in ``training_step`` what happens between real steps."""

    def setup(self, config: LoopConfig) -> None:
        """Build RLlib's groups, then the parts of ours: replay, generators, clocks."""
        super().setup(config)
        assert config.experiment is not None
        self.experiment, self.run_seed = config.experiment, config.run_seed
        task = self.experiment.task
        self.clocks = Clocks()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.learned: dict[str, float] = {}
        self.replay = Replay(self.experiment.collect.replay_capacity, task.obs_size, task.action_size)
        self.replay_rng = generator(self.run_seed, "collect/replay")
        self.runner, self.learner = local_runner(self), local_learner(self)
        if self.runner is not None and self.learner is not None:
            self.runner.module = self.learner.networks  # one process, one copy: there is nothing to synchronize

    @property
    def steps_per_sample(self) -> int:
        """Real steps taken by one call of `collect`."""
        return self.experiment.steps_per_sample

    def samples_of_iteration(self) -> int:
        """Calls of `collect` until the iteration, the next evaluation or the budget ends, whichever is first."""
        now, loop = self.clocks.real_step, self.experiment.loop
        borders = (loop.steps_per_iteration, self.experiment.probe.every)
        ends = [now + border - now % border for border in borders]
        steps = min(*ends, loop.real_steps) - now
        return -(-steps // self.steps_per_sample)

    @property
    def warm(self) -> bool:
        """Whether random collection is over."""
        return self.clocks.real_step >= self.experiment.collect.random_steps

    def collect(self) -> None:
        """Take real steps and keep them."""
        options = {"steps": self.experiment.loop.steps_per_sample, "random": not self.warm}
        if self.runner is None or self.learner is None:
            push_weights(self, self.config.sample_timeout_s)
        self.keep(self._sample_remotely(options) if self.runner is None else self.runner.sample(**options))

    def _sample_remotely(self, options: dict[str, Any]) -> Transitions:
        """Exactly the steps asked for: a runner that died is restarted and asked again, a surplus step is dropped."""
        parts: list[Transitions] = []
        for _ in range(REMOTE_ROUNDS):
            parts += self.env_runner_group.foreach_env_runner(
                "sample", kwargs=options, local_env_runner=False, timeout_seconds=self.config.sample_timeout_s
            )
            if sum(map(len, parts)) >= self.steps_per_sample:
                return Transitions.concatenate(parts)[: self.steps_per_sample]
            self.events.append(("env_runner_lost", {"real_step": self.clocks.real_step}))
            self.restore_env_runners(self.env_runner_group)
        raise RunFailed(
            f"the environment runners gave {sum(map(len, parts))} of {self.steps_per_sample} steps in "
            f"{REMOTE_ROUNDS} rounds",
            field="collect.env_runners",
            value=self.experiment.collect.env_runners,
            remedy="Look at the runners' logs under the Ray session; the task may crash or hang",
        )

    def keep(self, rows: Transitions) -> None:
        """Add real experience to the replay and advance its clock."""
        self.replay.add(rows)
        self.clocks = self.clocks.tick(real_step=len(rows))

    def improve(self, draw: Callable[[int], Columns]) -> None:
        """Do this sample's share of policy updates on the batches that ``draw`` gives for a number of updates."""
        updates = self.experiment.loop.updates_per_step * self.steps_per_sample
        columns = draw(updates)
        batch = learner_batch(columns, len(columns["proxy_reward"]))
        self.learned = dict(self.learner_group.update(batch=batch)[0])
        self.clocks = self.clocks.tick(policy_update=updates)

    def real_batches(self, updates: int) -> Columns:
        """Real transitions for ``updates`` batches; what the task pays is what is optimized."""
        columns = self.replay.sample_columns(updates * self.experiment.optimize.batch_size, self.replay_rng)
        columns["proxy_reward"] = columns.pop("outcome_reward")
        return columns

    def policy(self) -> SacModule:
        """The policy with its newest weights, in this process."""
        if self.learner is not None:
            return self.learner.networks  # type: ignore[no-any-return]
        module = self.config.get_rl_module_spec().build()
        prefix = "module/"
        arrays = self._learner_state().arrays
        module.load_state_dict(
            {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
        )
        return module  # type: ignore[no-any-return]

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """This loop's side of the measurement, taken on an evaluation's episodes: here what the critics believe."""
        return value_estimate(self.policy(), evaluation.start_obs_EO)

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        loop = State({}, {"clocks": self.clocks.as_dict(), "replay_rng": generator_state(self.replay_rng)})
        here = self.runner is not None
        runners = self.env_runner_group.foreach_env_runner(lambda runner: runner.part_state(), local_env_runner=here)
        named = {f"runner-{i}": state for i, state in enumerate(runners)}
        return {"loop": loop, "learner": self._learner_state(), "replay": self.replay.state(), **named}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        structure = parts["loop"].structure
        self.clocks = Clocks(**structure["clocks"])
        restore_generator(self.replay_rng, structure["replay_rng"])
        self.replay.load_state(parts["replay"])
        self.learner_group.foreach_learner(lambda learner: learner.load_part_state(parts["learner"]))
        states = [parts[name] for name in sorted((n for n in parts if n.startswith("runner-")), key=_number)]
        if self.runner is not None:
            self.runner.load_part_state(states[0])
            return
        self.env_runner_group.foreach_env_runner(
            [lambda runner, state=state: runner.load_part_state(state) for state in states], local_env_runner=False
        )

    def _learner_state(self) -> State:
        results = list(self.learner_group.foreach_learner(lambda learner: learner.part_state()))
        state: State = results[0].get() if hasattr(results[0], "get") else results[0]
        return state


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
