"""What the loops that keep their experience share, whatever improves the policy: collect, keep, measure, save."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxygap.base.clock import Clocks
from proxygap.base.protocols import EpisodicPolicy, Policy, State
from proxygap.base.records import Transitions
from proxygap.collect.episodes import write_episodes
from proxygap.collect.replay import Replay
from proxygap.loops.rllib_loop import RllibLoop, samples_until
from proxygap.loops.settings import MbpoLoop, PetsLoop, PreferenceControlLoop, SacLoop
from proxygap.probe.outcome import Evaluator, opening_return, outcome_measurements

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.experiment import Experiment
    from proxygap.probe.outcome import Evaluation


def runner_options(experiment: Experiment, seed: int) -> dict[str, Any]:
    """What an environment runner of these loops finds in ``env_config``."""
    collect = experiment.collect
    made = {"task": experiment.task, "seed": seed, "count": collect.envs_per_runner, "threads": 1}
    return {**made, "reward_noise": collect.reward_noise}


class Collecting(RllibLoop, ABC):
    """Mixed into an RLlib Algorithm, before it: real steps are taken, kept in a replay, and measured against.

    Subclasses call `begin` once RLlib's groups stand, and say in ``training_step`` what happens between real steps.
    """

    run_seed: int
    learned: dict[str, float]

    def begin(self, experiment: Experiment, seed: int, discount: float = 0.99) -> None:
        """Make replay, ruler and clocks. ``discount`` is that of the outcome ``discounted_return``."""
        loop, task = experiment.loop, experiment.control_task
        assert isinstance(loop, SacLoop | MbpoLoop | PetsLoop | PreferenceControlLoop)
        self.experiment, self.run_seed, self.pace = experiment, seed, loop
        self.evaluator = Evaluator(task, seed, experiment.probe.episodes, discount)
        self.clocks = Clocks()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.learned = {}
        self.replay = Replay(experiment.collect.replay_capacity, task.obs_size, task.action_size)
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

    def tell(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Something happened that the journal should know."""
        self.events.append((kind, dict(detail)))

    @abstractmethod
    def policy(self) -> Policy | EpisodicPolicy:
        """The policy as it is now, in this process."""

    @abstractmethod
    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """This loop's side of the measurement, taken on an evaluation's episodes."""

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
        super().cleanup()  # type: ignore[misc]  # the Algorithm's

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        loop = State({}, {"clocks": self.clocks.as_dict(), **self.position()})
        return {"loop": loop, "replay": self.replay.state(), **self.group_parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`, bit for bit when everything runs in this process."""
        structure = parts["loop"].structure
        self.clocks = Clocks(**structure["clocks"])
        self.load_position(structure)
        self.replay.load_state(parts["replay"])
        self.load_group_parts(parts)

    def position(self) -> dict[str, Any]:
        """Where the loop's own generators are, as JSON-able data beside the clocks; none here."""
        return {}

    def load_position(self, structure: Mapping[str, Any]) -> None:
        """Continue from `position`."""
