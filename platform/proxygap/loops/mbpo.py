"""Model-based policy optimization (Janner et al. 2019, 1906.08253, algorithm 2) on RLlib's SAC.

Real steps feed an ensemble; every so often it is refitted and imagines short rollouts from real states; the policy
improves on batches of mostly imagined transitions.

Shape legend: U updates in a Learner call, B rows, O observation size, A action size, C critics and their targets,
E elites and starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.protocols import State
from proxygap.base.seeds import generator, generator_state, restore_generator, torch_generator
from proxygap.collect.replay import ImaginedReplay
from proxygap.imagine.rollouts import branched_rollouts
from proxygap.loops.model_side import ModelSide
from proxygap.loops.off_policy import Columns, LoopConfig, OffPolicy
from proxygap.loops.settings import MbpoLoop

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.optimize.sac_module import SacModule
    from proxygap.probe.outcome import Evaluation


class Mbpo(OffPolicy):
    """Collect -> fit -> imagine -> improve."""

    def setup(self, config: LoopConfig) -> None:
        """Add the dynamics ensemble, in this process or on its hosts, and the buffer of imagined transitions."""
        super().setup(config)
        experiment, task = self.experiment, self.experiment.control_task
        assert isinstance(experiment.loop, MbpoLoop)
        self.settings = experiment.loop
        gradient = self.value_gradient
        self.side = ModelSide(experiment, self.run_seed, self.replay, self.tell, value_gradient=gradient)
        self.model = self.side.model
        self.imagined = ImaginedReplay(1, task.obs_size, task.action_size)
        self.imagined_rng = generator(self.run_seed, "imagine/replay")
        self.start_rng = generator(self.run_seed, "imagine/starts")
        self.rollout_rng = torch_generator(self.run_seed, "imagine/rollouts")

    def training_step(self) -> None:
        """One RLlib iteration."""
        for _ in range(self.samples_of_iteration()):
            self.collect()
            if self.side.refit_due(self.clocks.real_step, self.settings.refit_every):
                self.refit()
                self.imagine()
            if self.side.ready:
                self.improve(self.mixed_batches)
        self.clocks = self.clocks.tick(iteration=1)

    def refit(self) -> None:
        """Fit the ensemble to all real experience, from its current weights."""
        self.clocks = self.clocks.tick(model_update=self.side.refit())

    def value_gradient(self, obs_BO: torch.Tensor) -> torch.Tensor:
        """How much the value depends on each part of an observation, (B, O); see `value_gradient`."""
        return value_gradient(self.policy(), obs_BO)

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
            precision=settings.precision,
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
        if not self.side.ready:
            return critics
        return (
            *self.side.objectives(evaluation.transitions),
            *self.side.promise(self.policy(), evaluation.start_obs_EO),
            *critics,
        )

    def parts(self) -> dict[str, State]:
        """The complete state of the run, by part."""
        rngs = {
            "imagined_rng": generator_state(self.imagined_rng),
            "start_rng": generator_state(self.start_rng),
        }
        position = State({"rollout_rng": self.rollout_rng.get_state().numpy().copy()}, rngs)
        return {**super().parts(), **self.side.parts(), "imagined": self.imagined.state(), "imagine": position}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        super().load_parts(parts)
        self.side.load_parts(parts)
        self.imagined.load_state(parts["imagined"])
        restore_generator(self.imagined_rng, parts["imagine"].structure["imagined_rng"])
        restore_generator(self.start_rng, parts["imagine"].structure["start_rng"])
        self.rollout_rng.set_state(torch.from_numpy(np.array(parts["imagine"].arrays["rollout_rng"])))

    def cleanup(self) -> None:
        """Release the hosts before RLlib releases its own actors."""
        self.side.close()
        super().cleanup()


def value_gradient(policy: SacModule, obs_BO: torch.Tensor) -> torch.Tensor:
    """Gradient of the critics' value of the deterministic action, (B, O), none negative, detached.

    Value-gradient weighting squares it, and its released code averages the loss over the critics and their targets
    (VaGraM; Voelcker et al. 2022, 2204.01464), so this is the root mean square over all of them: its sign is lost.
    """
    with torch.enable_grad():
        state_BO = obs_BO.detach().clone().requires_grad_()
        action_BA = policy.actor(state_BO)[0].tanh()
        value_CB = torch.cat([critics(state_BO, action_BA) for critics in (policy.critics, policy.targets)])
        gradient_CBO = [torch.autograd.grad(value_B.sum(), state_BO, retain_graph=True)[0] for value_B in value_CB]
    return torch.stack(gradient_CBO).square().mean(dim=0).sqrt()


def _interleave(lived: np.ndarray[Any, Any], imagined: np.ndarray[Any, Any], updates: int) -> np.ndarray[Any, Any]:
    """Rows of U batches, each batch its real rows first."""
    halves = [column.reshape(updates, -1, *column.shape[1:]) for column in (lived, imagined)]
    mixed = np.concatenate(halves, axis=1)
    return mixed.reshape(-1, *mixed.shape[2:])
