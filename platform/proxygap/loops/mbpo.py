"""Model-based policy optimization (Janner et al. 2019, 1906.08253, algorithm 2) on RLlib's SAC.

Real steps feed an ensemble; every so often it is refitted and imagines short rollouts from real states; the policy
improves on batches of mostly imagined transitions. Shape legend: U updates in a Learner call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator, generator_state, restore_generator, torch_generator
from proxygap.collect.replay import ImaginedReplay
from proxygap.fit.dynamics.training import is_held_out
from proxygap.imagine.rollouts import branched_rollouts, imagined_return
from proxygap.loops.off_policy import Columns, LoopConfig, OffPolicy
from proxygap.loops.settings import MbpoLoop
from proxygap.probe import objective
from proxygap.serve.dynamics import build_dynamics

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.probe.outcome import Evaluation


class Mbpo(OffPolicy):
    """Collect -> fit -> imagine -> improve."""

    def setup(self, config: LoopConfig) -> None:
        """Add the dynamics ensemble, in this process or on its hosts, and the buffer of imagined transitions."""
        super().setup(config)
        experiment, task = self.experiment, self.experiment.control_task
        assert isinstance(experiment.loop, MbpoLoop)
        self.settings = experiment.loop
        self.model = build_dynamics(
            experiment.dynamics,
            experiment.serve.dynamics,
            obs_size=task.obs_size,
            action_size=task.action_size,
            learn_reward=not task.known_reward,
            learn_termination=not task.known_termination,
            seed=self.run_seed,
            run_name=f"{experiment.folder_name}/seed-{self.run_seed}",
            on_event=lambda kind, detail: self.events.append((kind, dict(detail))),
        )
        self.imagined = ImaginedReplay(1, task.obs_size, task.action_size)
        self.imagined_rng = generator(self.run_seed, "imagine/replay")
        self.start_rng = generator(self.run_seed, "imagine/starts")
        self.rollout_rng = torch_generator(self.run_seed, "imagine/rollouts")

    def training_step(self) -> None:
        """One RLlib iteration."""
        for _ in range(self.samples_of_iteration()):
            self.collect()
            if self.refit_due:
                self.refit()
                self.imagine()
            if self.model.version > 0:
                self.improve(self.mixed_batches)
        self.clocks = self.clocks.tick(iteration=1)

    @property
    def refit_due(self) -> bool:
        """At the end of random collection, and then at every multiple of ``refit_every``."""
        if not self.warm:
            return False
        crossed = self.clocks.real_step % self.settings.refit_every < self.steps_per_sample
        return crossed or self.model.version == 0

    def refit(self) -> None:
        """Fit the ensemble to all real experience, from its current weights."""
        report = self.model.fit(self.replay.all(), self.replay.first_row)
        self.clocks = self.clocks.tick(model_update=report.updates)
        self.events.append(("fitted", {"version": report.version, "elites": list(report.elites)}))

    def imagine(self) -> None:
        """Branch short rollouts off real states; the buffer keeps those of the last ``keep_fits`` fits."""
        settings = self.experiment.imagine
        horizon = settings.horizon(self.clocks.real_step)
        count = settings.rollouts_per_step * self.settings.refit_every
        starts = self.replay.sample_columns(count, self.start_rng)["obs"]
        rollouts = branched_rollouts(
            self.model,
            self.policy(),
            self.experiment.control_task,
            torch.from_numpy(starts),
            horizon=horizon,
            generator=self.rollout_rng,
            batch_size=settings.batch_size,
        )
        self.imagined.resize(count * horizon * settings.keep_fits)
        self.imagined.add(rollouts)
        self.clocks = self.clocks.tick(imagined_step=len(rollouts))

    def mixed_batches(self, updates: int) -> Columns:
        """Batches with ``real_share`` real transitions each, the rest imagined."""
        size = self.sac.batch_size
        real = round(self.settings.real_share * size)
        columns = self.imagined.sample_columns(updates * (size - real), self.imagined_rng)
        if real == 0:
            return columns
        lived = self.replay.sample_columns(updates * real, self.replay_rng)
        lived["proxy_reward"] = lived.pop("outcome_reward")
        return {name: _interleave(lived[name], column, updates) for name, column in columns.items()}

    def objectives(self, evaluation: Evaluation) -> tuple[Measurement, ...]:
        """What the model is fitted to, how far it can be trusted, and what it promises."""
        critics = super().objectives(evaluation)
        if self.model.version == 0:
            return critics
        held_out, newest = self.held_out(), evaluation.transitions
        probe, policy, task = self.experiment.probe, self.policy(), self.experiment.control_task
        starts = torch.from_numpy(evaluation.start_obs_EO)
        horizon, noise = probe.imagined_horizon, self.probe_rng()
        return_EB = imagined_return(self.model, policy, task, starts, horizon=horizon, generator=noise)
        return (
            *objective.log_likelihood(self.model, held_out, "held_out_log_likelihood"),
            *objective.mse(self.model, held_out, "held_out_mse"),
            *objective.log_likelihood(self.model, newest, "on_policy_log_likelihood"),
            *objective.mse(self.model, newest, "on_policy_mse"),
            *objective.k_step_error(self.model, task, newest, probe.k_step),
            *objective.disagreement(self.model, newest.obs_BO, newest.action_BA),
            *objective.imagined_return(return_EB.numpy()),
            *critics,
        )

    def held_out(self) -> Transitions:
        """The newest real transitions that no fit has trained on."""
        settings, rows = self.experiment.dynamics, self.replay.all()
        numbers = np.arange(self.replay.first_row, self.replay.first_row + len(rows))
        mask = is_held_out(self.run_seed, numbers, settings.held_out)
        return rows[np.flatnonzero(mask)[-settings.held_out_limit :]]

    def probe_rng(self) -> torch.Generator:
        """The noise of the imagined return: the same at every evaluation, and no clock of the run moves it."""
        return torch_generator(self.run_seed, "probe/imagined_return")

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        rngs = {
            "imagined_rng": generator_state(self.imagined_rng),
            "start_rng": generator_state(self.start_rng),
        }
        position = State({"rollout_rng": self.rollout_rng.get_state().numpy().copy()}, rngs)
        extra = {"dynamics": self.model.state(), "imagined": self.imagined.state(), "imagine": position}
        return {**super().parts(), **extra}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        super().load_parts(parts)
        self.model.load_state(parts["dynamics"])
        self.imagined.load_state(parts["imagined"])
        restore_generator(self.imagined_rng, parts["imagine"].structure["imagined_rng"])
        restore_generator(self.start_rng, parts["imagine"].structure["start_rng"])
        self.rollout_rng.set_state(torch.from_numpy(np.array(parts["imagine"].arrays["rollout_rng"])))

    def cleanup(self) -> None:
        """Release the hosts before RLlib releases its own actors."""
        close: Any = getattr(self.model, "close", None)
        if close is not None:
            close()
        super().cleanup()


def _interleave(lived: np.ndarray[Any, Any], imagined: np.ndarray[Any, Any], updates: int) -> np.ndarray[Any, Any]:
    """Rows of U batches, each batch its real rows first."""
    halves = [column.reshape(updates, -1, *column.shape[1:]) for column in (lived, imagined)]
    mixed = np.concatenate(halves, axis=1)
    return mixed.reshape(-1, *mixed.shape[2:])
