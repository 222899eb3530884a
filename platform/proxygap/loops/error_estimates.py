"""Estimates of where a dynamics model is wrong: kept up to date beside it, and set against the errors that it makes.

Shape legend: N rows of the replay, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from proxygap.probe.uncertainty import true_errors, uncertainty_quality

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.base.protocols import DynamicsModel, State, Uncertainty
    from proxygap.base.records import Bool, Transitions
    from proxygap.experiment import Experiment

PREFIX = "uncertainty."


class ErrorEstimates:
    """All that the section ``uncertainty`` asks for, by kind; empty where it asks for none.

    Args:
        experiment: of the run.
        seed: of the run.
    """

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self._task = experiment.control_task
        self._of: dict[str, Uncertainty] = {part.kind: part.build(seed=seed) for part in experiment.uncertainty}

    def observe(self, model: DynamicsModel, rows: Transitions) -> None:
        """Meet rows that the model was not fitted to, before it is."""
        for estimate in self._of.values():
            estimate.observe(model, rows)

    def fit(self, model: DynamicsModel, data: Transitions, unseen_N: Bool) -> None:
        """Follow a fit to ``data``, of which ``unseen_N`` were held out."""
        for estimate in self._of.values():
            estimate.fit(model, data, unseen_N)

    def measure(self, model: DynamicsModel, newest: Transitions) -> tuple[Measurement, ...]:
        """How well each ranks the true errors on rows that no fit has seen."""
        ready = {kind: estimate for kind, estimate in self._of.items() if estimate.ready}
        if not ready:
            return ()
        error_B = true_errors(model, self._task, newest)
        obs_BO, action_BA = (torch.from_numpy(column.copy()) for column in (newest.obs_BO, newest.action_BA))
        found: list[Measurement] = []
        with torch.no_grad():
            for kind, estimate in ready.items():
                found += uncertainty_quality(estimate(model, obs_BO, action_BA).numpy(), error_B, kind)
        return tuple(found)

    def parts(self) -> dict[str, State]:
        """``uncertainty.KIND`` of each."""
        return {f"{PREFIX}{kind}": estimate.state() for kind, estimate in self._of.items()}

    def load_parts(self, parts: Mapping[str, State]) -> None:
        """Continue from `parts`."""
        for kind, estimate in self._of.items():
            estimate.load_state(parts[f"{PREFIX}{kind}"])
