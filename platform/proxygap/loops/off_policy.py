"""What the off-policy loops share: RLlib's SAC Algorithm with our runner, replay, Learner and complete state.

Shape legend: U updates in a Learner call, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.seeds import generator, generator_state, restore_generator
from proxygap.collect.env_runner import StepRunner
from proxygap.loops.collecting import Collecting, runner_options
from proxygap.loops.rllib_loop import control_spaces, set_up
from proxygap.loops.settings import MbpoLoop, PreferenceControlLoop, SacLoop
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.optimize.settings import SacSettings
from proxygap.probe.objective import value_estimate
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
        sac = experiment.optimize
        assert isinstance(sac, SacSettings)
        config = cls(algorithm)
        config.experiment, config.run_seed = experiment, seed
        set_up(
            config,
            experiment,
            spaces=control_spaces(experiment),
            runner=(StepRunner, runner_options(experiment, seed)),
            module=(SacModule, sac.module(seed)),
            learner=(SacLearner, {"settings": sac, "seed": seed}),
        )
        config.training(replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True})
        return config


class OffPolicy(Collecting, SAC):
    """Collect, keep, improve. Subclasses say in ``training_step`` what happens between real steps."""

    def setup(self, config: LoopConfig) -> None:
        """Build RLlib's groups, then the parts of ours: replay, generators, clocks."""
        super().setup(config)
        assert config.experiment is not None
        assert isinstance(config.experiment.optimize, SacSettings)
        self.sac = config.experiment.optimize
        assert isinstance(config.experiment.loop, SacLoop | MbpoLoop | PreferenceControlLoop)
        self.updates_per_step = config.experiment.loop.updates_per_step
        self.begin(config.experiment, config.run_seed, self.sac.discount)
        self.replay_rng = generator(self.run_seed, "collect/replay")

    def improve(self, draw: Callable[[int], Columns]) -> None:
        """Do this sample's share of policy updates on the batches that ``draw`` gives for a number of updates."""
        updates = self.updates_per_step * self.steps_per_sample
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

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """This loop's side of the measurement, taken on an evaluation's episodes: here what the critics believe."""
        return value_estimate(self.policy(), evaluation.start_obs_EO)

    def position(self) -> dict[str, Any]:
        """Where the generator is that draws from the replay."""
        return {"replay_rng": generator_state(self.replay_rng)}

    def load_position(self, structure: Mapping[str, Any]) -> None:
        """Continue from `position`."""
        restore_generator(self.replay_rng, structure["replay_rng"])
