"""The dynamics model of a loop, whatever uses it: built, refitted to all that was lived, measured, saved.

Shape legend: B rows, N rows of the replay, O observation size, T predicted targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.measurement import Measurement, Side
from proxygap.base.protocols import DynamicsModel, EpisodicPolicy, FitContext, Policy, State
from proxygap.base.seeds import torch_generator
from proxygap.fit.dynamics.sizes import sizes_of, target_count
from proxygap.fit.dynamics.training import is_held_out
from proxygap.fit.dynamics.weights import effective_sample_size
from proxygap.imagine.rollouts import imagined_return
from proxygap.loops.datasets import dataset
from proxygap.loops.error_estimates import ErrorEstimates
from proxygap.loops.values import QuadraticValue
from proxygap.probe import objective
from proxygap.serve.dynamics import build_dynamics

if TYPE_CHECKING:
    from proxygap.base.records import Bool, Float32, Transitions
    from proxygap.collect.replay import Replay
    from proxygap.experiment import Experiment

Gradient = Callable[[torch.Tensor], torch.Tensor]
Tell = Callable[[str, Mapping[str, Any]], None]


class ModelSide:
    """The ensemble of one run, in this process or on its hosts.

    Args:
        experiment: one whose loop hosts a dynamics model.
        seed: of the run.
        replay: the run's real experience.
        tell: told what happens, for the journal.
        value_gradient: gradient of the value of observations (B, O), for losses that ask for it. Default, for loops
            without critics: that of the task's linear-quadratic value.
    """

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        replay: Replay,
        tell: Tell,
        value_gradient: Gradient | None = None,
    ) -> None:
        self._experiment, self._seed, self._replay, self._tell = experiment, seed, replay, tell
        self._task, self._settings = experiment.control_task, experiment.dynamics
        if self._settings.loss.kind == "value_gradient" and value_gradient is None:
            value_gradient = QuadraticValue.of(self._task).value_gradient
        expert = None if experiment.expert is None else dataset(experiment, experiment.expert, seed, tell)[0]
        self._context = FitContext(value_gradient, expert)
        self._weight_ess: float | None = None
        self._rows_met, self._errors = 0, ErrorEstimates(experiment, seed)
        self.model: DynamicsModel = build_dynamics(
            self._settings,
            experiment.serve.dynamics,
            **sizes_of(self._task),
            seed=seed,
            run_name=f"{experiment.folder_name}/seed-{seed}",
            on_event=tell,
        )

    @property
    def ready(self) -> bool:
        """Whether it was fitted at all."""
        return self.model.version > 0

    def refit_due(self, real_step: int, every: int) -> bool:
        """At the end of random collection, and then at every multiple of ``every`` real steps."""
        if real_step < self._experiment.collect.random_steps:
            return False
        return real_step % every < self._experiment.steps_per_sample or not self.ready

    def refit(self) -> int:
        """Fit the ensemble to all real experience, from its current weights. Returns the gradient steps it took."""
        data = self._replay.all()
        self._errors.observe(self.model, data[max(self._rows_met - self._replay.first_row, 0) :])
        weight_NT = self._settings.loss.weigh(data, target_count(self._task), self._context)
        self._weight_ess = None if weight_NT is None else effective_share(weight_NT)
        report = self.model.fit(data, self._replay.first_row, weight_NT)
        self._rows_met = self._replay.first_row + len(data)
        self._errors.fit(self.model, data, self._apart(data))
        self._tell("fitted", {"version": report.version, "elites": list(report.elites)})
        return report.updates

    def held_out(self) -> Transitions:
        """The newest real transitions that no fit has trained on."""
        rows = self._replay.all()
        return rows[np.flatnonzero(self._apart(rows))[-self._settings.held_out_limit :]]

    def _apart(self, rows: Transitions) -> Bool:
        """Which rows of the replay no fit trains on, (N,)."""
        numbers = np.arange(self._replay.first_row, self._replay.first_row + len(rows))
        return is_held_out(self._seed, numbers, self._settings.held_out)

    def objectives(self, newest: Transitions) -> tuple[Measurement, ...]:
        """What it is fitted to, on held-out rows and on the newest evaluation's, and how far it can be trusted."""
        held_out, model = self.held_out(), self.model
        return (
            *objective.log_likelihood(model, held_out, "held_out_log_likelihood"),
            *objective.mse(model, held_out, "held_out_mse"),
            *objective.log_likelihood(model, newest, "on_policy_log_likelihood"),
            *objective.mse(model, newest, "on_policy_mse"),
            *objective.k_step_error(model, self._task, newest, self._experiment.probe.k_step),
            *objective.disagreement(model, newest.obs_BO, newest.action_BA),
            *self._of_expert(),
            *self._of_weights(),
            *self._errors.measure(model, newest),
        )

    def promise(self, policy: Policy | EpisodicPolicy, start_obs_EO: Float32) -> tuple[Measurement, ...]:
        """The return that it imagines from here; with the same noise at every evaluation, whatever the clocks."""
        horizon, noise = self._experiment.probe.imagined_horizon, torch_generator(self._seed, "probe/imagined_return")
        return_EB = imagined_return(self.model, policy, self._task, start_obs_EO, horizon=horizon, generator=noise)
        return objective.imagined_return(return_EB.numpy())

    def _of_expert(self) -> tuple[Measurement, ...]:
        expert = self._context.expert
        if expert is None:
            return ()
        likelihood = objective.log_likelihood(self.model, expert, "expert_log_likelihood")
        return (*likelihood, *objective.mse(self.model, expert, "expert_mse"))

    def _of_weights(self) -> tuple[Measurement, ...]:
        if self._weight_ess is None:
            return ()
        return (Measurement("weight_ess", self._weight_ess, Side.MODEL),)

    def parts(self) -> dict[str, State]:
        """The model, what is known of its last fit, and the estimates of its error."""
        fit = State({}, {"weight_ess": self._weight_ess, "rows_met": self._rows_met})
        return {"dynamics": self.model.state(), "fit": fit, **self._errors.parts()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        self.model.load_state(parts["dynamics"])
        fit = parts["fit"].structure
        self._weight_ess, self._rows_met = fit["weight_ess"], fit["rows_met"]
        self._errors.load_parts(parts)

    def close(self) -> None:
        """Release the hosts."""
        close: Any = getattr(self.model, "close", None)
        if close is not None:
            close()


def effective_share(weight_NT: Float32) -> float:
    """Effective sample size of what a loss weighs the rows by, as a share of the rows: 1 where all weigh alike."""
    return effective_sample_size(weight_NT) / len(weight_NT)
