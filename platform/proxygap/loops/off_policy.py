"""What the off-policy loops share: RLlib's SAC Algorithm with our runner, replay, Learner and complete state.

Shape legend: U updates in a Learner call, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator, generator_state, restore_generator
from proxygap.collect.env_runner import StepRunner
from proxygap.collect.episodes import write_episodes
from proxygap.collect.replay import Replay
from proxygap.loops.rllib_loop import RllibLoop, control_spaces, samples_until, set_up
from proxygap.loops.settings import MbpoLoop, PreferenceControlLoop, SacLoop
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.optimize.settings import SacSettings
from proxygap.probe.objective import value_estimate
from proxygap.probe.outcome import Evaluator, opening_return, outcome_measurements
from proxygap.rllib import SAC, SACConfig, learner_batch

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.experiment import Experiment
    from proxygap.probe.outcome import Evaluation

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
        sac, collect = experiment.optimize, experiment.collect
        assert isinstance(sac, SacSettings)
        config = cls(algorithm)
        config.experiment, config.run_seed = experiment, seed
        runner = {"task": experiment.task, "seed": seed, "count": collect.envs_per_runner, "threads": 1}
        module = {"hidden": sac.hidden, "initial_temperature": sac.initial_temperature, "seed": seed}
        set_up(
            config,
            experiment,
            spaces=control_spaces(experiment),
            runner=(StepRunner, runner),
            module=(SacModule, module),
            learner=(SacLearner, {"settings": sac, "seed": seed}),
        )
        config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True})
        return config


class OffPolicy(RllibLoop, SAC):
    """Collect, keep, improve. Subclasses say in ``training_step`` what happens between real steps."""

    def setup(self, config: LoopConfig) -> None:
        """Build RLlib's groups, then the parts of ours: replay, generators, clocks."""
        super().setup(config)
        assert config.experiment is not None
        self.experiment, self.run_seed = config.experiment, config.run_seed
        loop = self.experiment.loop
        assert isinstance(loop, SacLoop | MbpoLoop | PreferenceControlLoop)
        assert isinstance(self.experiment.optimize, SacSettings)
        self.pace = loop
        self.sac, task = self.experiment.optimize, self.experiment.control_task
        self.evaluator = Evaluator(task, self.run_seed, self.experiment.probe.episodes, self.sac.discount)
        self.clocks = Clocks()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.learned: dict[str, float] = {}
        self.replay = Replay(self.experiment.collect.replay_capacity, task.obs_size, task.action_size)
        self.replay_rng = generator(self.run_seed, "collect/replay")
        self.connect()

    @property
    def steps_per_sample(self) -> int:
        """Real steps taken by one call of `collect`."""
        return self.experiment.steps_per_sample

    def samples_of_iteration(self) -> int:
        """Calls of `collect` until the iteration, the next evaluation or the budget ends, whichever is first."""
        borders = (self.pace.steps_per_iteration, self.experiment.probe_every)
        return samples_until(self.clocks.real_step, borders, self.pace.real_steps, self.steps_per_sample)

    @property
    def warm(self) -> bool:
        """Whether random collection is over."""
        return self.clocks.real_step >= self.experiment.collect.random_steps

    def collect(self) -> None:
        """Take real steps and keep them."""
        options = {"steps": self.pace.steps_per_sample, "random": not self.warm}
        self.bring_weights()
        self.remember(self._sample_remotely(options) if self.runner is None else self.runner.sample(**options))

    def _sample_remotely(self, options: dict[str, Any]) -> Transitions:
        """Exactly the steps asked for: a surplus step is dropped."""
        wanted = self.steps_per_sample
        parts: list[Transitions] = self.ask_runners(options, lambda found: sum(map(len, found)) >= wanted, wanted)
        return Transitions.concatenate(parts)[:wanted]

    def remember(self, rows: Transitions) -> None:
        """Add real experience to the replay and advance its clock."""
        self.replay.add(rows)
        self.clocks = self.clocks.tick(real_step=len(rows))

    def improve(self, draw: Callable[[int], Columns]) -> None:
        """Do this sample's share of policy updates on the batches that ``draw`` gives for a number of updates."""
        updates = self.pace.updates_per_step * self.steps_per_sample
        columns = draw(updates)
        batch = learner_batch(columns, len(columns["proxy_reward"]))
        self.learned = dict(self.learner_group.update(batch=batch)[0])
        self.clocks = self.clocks.tick(policy_update=updates)

    def real_batches(self, updates: int) -> Columns:
        """Real transitions for ``updates`` batches; what the task pays is what is optimized."""
        columns = self.replay.sample_columns(updates * self.sac.batch_size, self.replay_rng)
        columns["proxy_reward"] = columns.pop("outcome_reward")
        return columns

    def policy(self) -> SacModule:
        """The policy with its newest weights, in this process."""
        return self.newest_module()  # type: ignore[no-any-return]

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides at the same clocks, on the same policy and model."""
        evaluation = self.evaluator.evaluate(self.policy())
        opening = opening_return(evaluation, self.experiment.probe.imagined_horizon)
        outcomes = (*outcome_measurements(self.experiment.outcomes, evaluation), opening)
        return (*outcomes, *self.objectives(evaluation))

    def keep(self, folder: Path, provenance: Mapping[str, str]) -> None:
        """All real experience as parquet, where ``collect.keep_episodes`` asks for it."""
        if self.experiment.collect.keep_episodes:
            rows = self.replay.all()
            in_order = rows[np.lexsort((rows.step_B, rows.episode_B))]
            write_episodes(folder / "episodes.parquet", in_order, provenance)

    def cleanup(self) -> None:
        """Release the evaluation environments, then RLlib's actors."""
        self.evaluator.close()
        super().cleanup()

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """This loop's side of the measurement, taken on an evaluation's episodes: here what the critics believe."""
        return value_estimate(self.policy(), evaluation.start_obs_EO)

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        loop = State({}, {"clocks": self.clocks.as_dict(), "replay_rng": generator_state(self.replay_rng)})
        return {"loop": loop, "replay": self.replay.state(), **self.group_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        structure = parts["loop"].structure
        self.clocks = Clocks(**structure["clocks"])
        restore_generator(self.replay_rng, structure["replay_rng"])
        self.replay.load_state(parts["replay"])
        self.load_group_parts(parts)
