"""PPO on RLlib: our runner's whole rollouts, one Learner call for each, complete state.

Shape legend: B rows of a rollout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.collect.ppo_runner import PpoRunner, Rollout
from proxygap.loops.rllib_loop import RllibLoop, control_spaces, samples_until, set_up
from proxygap.loops.settings import PreferenceControlLoop
from proxygap.optimize.ppo.learner import PpoLearner
from proxygap.optimize.ppo.module import PpoModule
from proxygap.optimize.ppo.settings import PpoSettings
from proxygap.probe.objective import value_estimate
from proxygap.probe.outcome import Evaluator, outcome_measurements
from proxygap.rllib import Algorithm, AlgorithmConfig, RLModuleSpec, learner_batch

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.base.records import Float32
    from proxygap.experiment import Experiment
    from proxygap.probe.outcome import Evaluation


class PpoConfig(AlgorithmConfig):
    """An `AlgorithmConfig` that carries the experiment; `for_run` is the only way to fill it."""

    def __init__(self, algo_class: type[Any] | None = None) -> None:
        super().__init__(algo_class=algo_class or OnPolicy)
        self.experiment: Experiment | None = None
        self.run_seed = 0

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib asks for it whatever was set."""
        return self._rl_module_spec or RLModuleSpec(module_class=PpoModule)

    def get_default_learner_class(self) -> type[PpoLearner]:
        """The Learner."""
        return PpoLearner

    @classmethod
    def for_run(cls, algorithm: type[OnPolicy], experiment: Experiment, seed: int) -> PpoConfig:
        """The configuration of one run."""
        ppo, collect = experiment.optimize, experiment.collect
        assert isinstance(ppo, PpoSettings)
        config = cls(algorithm)
        config.experiment, config.run_seed = experiment, seed
        runner = {"task": experiment.task, "seed": seed, "count": collect.envs_per_runner, "threads": 1}
        names = ("hidden", "initial_log_std", "normalize_obs")
        set_up(
            config,
            experiment,
            spaces=control_spaces(experiment),
            runner=(PpoRunner, runner),
            module=(PpoModule, {**{name: getattr(ppo, name) for name in names}, "seed": seed}),
            learner=(PpoLearner, {"settings": ppo, "seed": seed}),
        )
        return config


class OnPolicy(RllibLoop, Algorithm):
    """Collect a rollout, improve on it. Subclasses say which reward is optimized."""

    def setup(self, config: PpoConfig) -> None:
        """Build RLlib's groups, then clocks and the ruler."""
        super().setup(config)
        assert config.experiment is not None
        self.experiment, self.run_seed = config.experiment, config.run_seed
        loop, ppo = self.experiment.loop, self.experiment.optimize
        assert isinstance(loop, PreferenceControlLoop)
        assert isinstance(ppo, PpoSettings)
        self.pace, self.ppo, task = loop, ppo, self.experiment.control_task
        self.evaluator = Evaluator(task, self.run_seed, self.experiment.probe.episodes, ppo.discount)
        self.clocks, self.learned = Clocks(), dict[str, float]()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.connect()

    @property
    def steps_per_sample(self) -> int:
        """Real steps of one rollout, all environments together."""
        return self.experiment.steps_per_sample

    def training_step(self) -> None:
        """One RLlib iteration."""
        for _ in range(self.samples_of_iteration()):
            rollout = self.collect()
            self.improve(rollout, self.proxy_reward(rollout))
        self.clocks = self.clocks.tick(iteration=1)

    def samples_of_iteration(self) -> int:
        """Rollouts until the iteration, the next evaluation or the budget ends, whichever is first."""
        borders = (self.pace.steps_per_iteration, self.experiment.probe_every)
        return samples_until(self.clocks.real_step, borders, self.pace.real_steps, self.steps_per_sample)

    def collect(self) -> Rollout:
        """One rollout of the newest policy."""
        self.bring_weights()
        steps = self.pace.steps_per_sample
        rollout: Rollout = self._sample_remotely(steps) if self.runner is None else self.runner.sample(steps=steps)
        self.clocks = self.clocks.tick(real_step=len(rollout))
        return rollout

    def _sample_remotely(self, steps: int) -> Rollout:
        """Exactly the steps asked for; parts are equally long, so that none is cut."""
        wanted = self.steps_per_sample
        parts: list[Rollout] = self.ask_runners({"steps": steps}, lambda found: sum(map(len, found)) >= wanted, wanted)
        return Rollout.concatenate(parts)[:wanted]

    def proxy_reward(self, rollout: Rollout) -> Float32:
        """The reward that is optimized: here what the task pays."""
        return rollout.transitions.outcome_reward_B

    def improve(self, rollout: Rollout, proxy_reward_B: Float32) -> None:
        """All epochs on one rollout."""
        batch = learner_batch(rollout.columns(proxy_reward_B), len(rollout))
        self.learned = dict(self.learner_group.update(batch=batch)[0])
        self.clocks = self.clocks.tick(policy_update=int(self.learned.pop("gradient_steps")))

    def policy(self) -> PpoModule:
        """The policy with its newest weights, in this process."""
        return self.newest_module()  # type: ignore[no-any-return]

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides at the same clocks, on the same policy and model."""
        evaluation = self.evaluator.evaluate(self.policy())
        return (*outcome_measurements(self.experiment.outcomes, evaluation), *self.objectives(evaluation))

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """This loop's side of the measurement, taken on an evaluation's episodes: here what the critic believes."""
        return value_estimate(self.policy(), evaluation.start_obs_EO)

    def keep(self, folder: Path, provenance: Mapping[str, str]) -> None:
        """What a finished run leaves beside its measurements: nothing here."""

    def cleanup(self) -> None:
        """Release the evaluation environments, then RLlib's actors."""
        self.evaluator.close()
        super().cleanup()

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        return {"loop": State({}, {"clocks": self.clocks.as_dict()}), **self.group_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        self.clocks = Clocks(**parts["loop"].structure["clocks"])
        self.load_group_parts(parts)
