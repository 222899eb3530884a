"""PPO on RLlib: our runner's whole rollouts, one Learner call for each, complete state.

Shape legend: B rows of a rollout, R component rewards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.protocols import State
from proxygap.collect.open_episodes import OpenEpisodes
from proxygap.collect.ppo_runner import PpoRunner, Rollout
from proxygap.loops.rllib_loop import RllibLoop, control_spaces, samples_until, set_up
from proxygap.loops.settings import PpoLoop, PreferenceControlLoop
from proxygap.optimize.ppo.learner import PpoLearner
from proxygap.optimize.ppo.module import PpoModule
from proxygap.optimize.ppo.settings import PpoSettings
from proxygap.probe.objective import value_estimate
from proxygap.probe.outcome import Evaluator, outcome_measurements
from proxygap.probe.pareto import Archive, front_measurements
from proxygap.rllib import Algorithm, AlgorithmConfig, RLModuleSpec, learner_batch

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.base.records import Float32
    from proxygap.experiment import Experiment
    from proxygap.probe.outcome import Evaluation

Columns = dict[str, np.ndarray[Any, Any]]


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
        ppo, collect, task = experiment.optimize, experiment.collect, experiment.control_task
        assert isinstance(ppo, PpoSettings)
        config = cls(algorithm)
        config.experiment, config.run_seed = experiment, seed
        runner = {"task": experiment.task, "seed": seed, "count": collect.envs_per_runner, "threads": 1}
        networks = {name: getattr(ppo, name) for name in ("hidden", "initial_log_std", "normalize_obs")}
        networks |= {"discrete": task.discrete, "components": len(experiment.components), "seed": seed}
        weighting = {"components": experiment.components, "weighting": experiment.judge.weighting}
        set_up(
            config,
            experiment,
            spaces=control_spaces(experiment),
            runner=(PpoRunner, runner),
            module=(PpoModule, networks),
            learner=(PpoLearner, {"settings": ppo, "seed": seed, **weighting}),
        )
        return config


class OnPolicy(RllibLoop, Algorithm, ABC):
    """Collect a rollout, improve on it. Subclasses say which reward is optimized."""

    def setup(self, config: PpoConfig) -> None:
        """Build RLlib's groups, then clocks and the ruler."""
        super().setup(config)
        assert config.experiment is not None
        self.experiment, self.run_seed = config.experiment, config.run_seed
        loop, ppo = self.experiment.loop, self.experiment.optimize
        assert isinstance(loop, PpoLoop | PreferenceControlLoop)
        assert isinstance(ppo, PpoSettings)
        self.pace, self.ppo, task = loop, ppo, self.experiment.control_task
        self.evaluator = Evaluator(task, self.run_seed, self.experiment.probe.episodes, ppo.discount)
        self.clocks, self.learned, self.weights = Clocks(), dict[str, float](), dict[str, float]()
        self.components = self.experiment.components
        self.running, self.archive = OpenEpisodes(len(self.components) + 1), Archive(task.components)
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

    @abstractmethod
    def proxy_reward(self, rollout: Rollout) -> Float32:
        """The reward that is optimized, (B,), or the components that are weighed, (B, R)."""

    def improve(self, rollout: Rollout, proxy_reward: Float32) -> None:
        """All epochs on one rollout."""
        columns = rollout.columns() | self._reward_columns(rollout, proxy_reward)
        self.learned = dict(self.learner_group.update(batch=learner_batch(columns, len(rollout)))[0])
        self.weights = {name: self.learned.pop(f"weight/{name}") for name in self.components}
        self.clocks = self.clocks.tick(policy_update=int(self.learned.pop("gradient_steps")))

    def _reward_columns(self, rollout: Rollout, proxy_reward: Float32) -> Columns:
        """Rewards as the Learner takes them; of several also what the episodes that ended were paid in all."""
        if not self.components:
            return {"proxy_reward": proxy_reward}
        rows = rollout.transitions
        paid_BC = np.column_stack([proxy_reward, rows.outcome_reward_B]).astype(np.float64)
        ended_BC = self.running.add(rows, paid_BC)
        columns: Columns = {"component_reward": proxy_reward, "component_return": ended_BC[:, :-1]}
        if not self.experiment.judge.weighting.needs_outcome:
            return columns
        self.clocks = self.clocks.tick(label=int((~np.isnan(ended_BC[:, -1])).sum()))
        return {**columns, "outcome_return": ended_BC[:, -1]}

    def policy(self) -> PpoModule:
        """The policy with its newest weights, in this process."""
        return self.newest_module()  # type: ignore[no-any-return]

    def measure(self) -> tuple[Measurement, ...]:
        """Both sides at the same clocks, on the same policy and model."""
        evaluation = self.evaluator.evaluate(self.policy())
        paid = outcome_measurements(self.experiment.outcomes, evaluation, self.experiment.control_task.components)
        return (*paid, *self._front(evaluation), *self.objectives(evaluation))

    def _front(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """How good a front all evaluations of the run have found together; a vector that is known changes nothing."""
        task = self.experiment.control_task
        if not task.components:
            return ()
        self.archive.add(evaluation.component_return_ER.mean(axis=0))
        return front_measurements(self.archive, task)

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
        structure: dict[str, Any] = {"clocks": self.clocks.as_dict()}
        several: dict[str, State] = {}
        if self.experiment.control_task.components:
            structure["weights"] = dict(self.weights)
            several = {"archive": self.archive.state(), "running": self.running.state()}
        return {"loop": State({}, structure), **several, **self.group_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        structure = parts["loop"].structure
        self.clocks = Clocks(**structure["clocks"])
        if self.experiment.control_task.components:
            self.weights = dict(structure["weights"])
            self.archive.load_state(parts["archive"])
            self.running.load_state(parts["running"])
        self.load_group_parts(parts)
