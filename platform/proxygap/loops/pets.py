"""Probabilistic ensembles with trajectory sampling (PETS; Chua et al. 2018, 1805.12114, algorithm 1) on RLlib.

Real steps, random at first, feed an ensemble; every so often it is refitted, and the elites' state travels to wherever
the environments are, where an RLModule plans in them. Nothing else is learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.collect.plan_runner import PlanRunner
from proxygap.fit.dynamics.ensemble import split
from proxygap.fit.dynamics.sizes import TaskSizes, sizes_of
from proxygap.imagine.planning import PlanningActor, PlanningPolicy
from proxygap.loops.collecting import Collecting, runner_options
from proxygap.loops.model_side import ModelSide
from proxygap.loops.rllib_loop import control_spaces, set_up
from proxygap.loops.settings import PetsLoop
from proxygap.optimize.planning_module import PlanningLearner, PlanningModule
from proxygap.probe.outcome import opening_return
from proxygap.rllib import Algorithm, AlgorithmConfig, RLModuleSpec, push_stored, store_weights

if TYPE_CHECKING:
    from proxygap.base.protocols import LastingActor, State, Task
    from proxygap.experiment import Experiment
    from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
    from proxygap.imagine.planners.settings import Planning
    from proxygap.probe.outcome import Evaluation


@dataclass(frozen=True)
class Recipe:
    """Makes the planning policy of a model's state, in any process: a copy of the elites, and the search in it."""

    task: Task
    fit: GaussianEnsembleSettings
    sizes: TaskSizes
    planning: Planning
    seed: int

    def __call__(self, model: State) -> PlanningPolicy:
        """The policy; ``model`` is the state of a shard of the ensemble, all of whose members are planned in."""
        members = tuple(model.structure["member_ids"])
        ensemble = self.fit.build(**self.sizes, seed=self.seed, member_ids=members)
        ensemble.load_state(model)
        return PlanningPolicy(ensemble, self.task, self.planning, groups=[members], seed=self.seed)


class PetsConfig(AlgorithmConfig):
    """An `AlgorithmConfig` that carries the experiment; `for_run` is the only way to fill it."""

    def __init__(self, algo_class: type[Any] | None = None) -> None:
        super().__init__(algo_class=algo_class or Pets)
        self.experiment: Experiment | None = None
        self.run_seed = 0

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """RLlib asks for it whatever was set."""
        return self._rl_module_spec or RLModuleSpec(module_class=PlanningModule)

    def get_default_learner_class(self) -> type[PlanningLearner]:
        """The Learner."""
        return PlanningLearner

    @classmethod
    def for_run(cls, experiment: Experiment, seed: int) -> PetsConfig:
        """The configuration of one run."""
        config = cls()
        config.experiment, config.run_seed = experiment, seed
        task = experiment.control_task
        recipe = Recipe(task, experiment.dynamics, sizes_of(task), experiment.plan, seed)
        set_up(
            config,
            experiment,
            spaces=control_spaces(experiment),
            runner=(PlanRunner, runner_options(experiment, seed)),
            module=(PlanningModule, {"recipe": recipe}),
            learner=(PlanningLearner, {}),
        )
        return config


class Pets(Collecting, Algorithm):
    """Collect -> fit -> plan."""

    def setup(self, config: PetsConfig) -> None:
        """Build RLlib's groups, then replay, clocks and the ensemble, in this process or on its hosts."""
        super().setup(config)
        assert config.experiment is not None
        assert isinstance(config.experiment.loop, PetsLoop)
        self.begin(config.experiment, config.run_seed)
        self.settings = config.experiment.loop
        self._stored: Any = None
        self.side = ModelSide(self.experiment, self.run_seed, self.replay, self.tell)
        self.model = self.side.model
        self.adopt()

    def training_step(self) -> None:
        """One RLlib iteration."""
        for _ in range(self.samples_of_iteration()):
            self.collect()
            if self.side.refit_due(self.clocks.real_step, self.settings.refit_every):
                self.clocks = self.clocks.tick(model_update=self.side.refit())
                self.adopt()
        self.clocks = self.clocks.tick(iteration=1)

    def adopt(self) -> None:
        """Plan in the elites of the newest model from now on."""
        elites = split(self.model.state(), sorted(self.model.elites))
        self.policy().take(elites, self.model.version)
        self._stored = None

    def bring_weights(self) -> None:
        """Tell remote runners where the newest model is: it is stored once, and each of them fetches it once."""
        if self.runner is None:
            self._stored = self._stored or store_weights(self)
            push_stored(self, self._stored, self.config.sample_timeout_s)

    def policy(self) -> PlanningModule:
        """The planner in the newest model."""
        return self.newest_module()  # type: ignore[no-any-return]

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """What the model is fitted to, how far it can be trusted, and what it and the planner promise."""
        if not self.side.ready:
            return ()
        return (
            *self.side.objectives(evaluation.transitions),
            *self.side.promise(self.policy(), evaluation.start_obs_EO),
            *self._promise_of_plans(evaluation),
        )

    def _promise_of_plans(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """What the first plans of the evaluation promised for their horizon, and by how much that was too much."""
        return_E = self.policy().value(torch.from_numpy(evaluation.start_obs_EO))
        promised = float(return_E.double().mean())
        real = opening_return(evaluation, self.experiment.plan.planner.horizon).value
        return (
            Measurement("plan_return", promised, Side.OBJECTIVE, "reward", Direction.HIGHER),
            Measurement("plan_optimism", promised - real, Side.GAP, "reward"),
        )

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        return {**super().parts(), **self.side.parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        super().load_parts(parts)
        self.side.load_parts(parts)
        self.adopt()

    def cleanup(self) -> None:
        """Release the hosts before RLlib releases its own actors."""
        self.side.close()
        super().cleanup()


def _lasts(actor: PlanningActor) -> LastingActor:
    """Checked by mypy: what an environment runner is given outlives its episodes."""
    return actor
