"""A policy without parameters of its own, as an RLModule: it plans in a model that it is given.

Shape legend: B batch, O observation size, A action size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from proxygap.base.protocols import State
from proxygap.rllib import DEFAULT_MODULE_ID, Columns, InferenceOnlyAPI, TorchLearner, TorchRLModule

if TYPE_CHECKING:
    import torch

    from proxygap.base.protocols import LastingActor


class PlanningModule(TorchRLModule, InferenceOnlyAPI):
    """Plans in the newest model. ``model_config`` holds ``recipe``: it makes a planning policy of a model's `State`.

    RLlib carries the model's state where it carries weights, so the policy plans wherever the environments are. The
    module is a `Policy` and an `EpisodicPolicy`; before it has a model it is neither.
    """

    def setup(self) -> None:
        """Nothing is built before there is a model."""
        self.version = -1
        self._model: State | None = None
        self._policy: Any = None

    def take(self, model: State, version: int) -> None:
        """Plan in this model from now on.

        Args:
            model: its complete state.
            version: how often it was fitted; the model that is there already is not built again.
        """
        if version != self.version or self._model is None:
            self._policy = self.model_config["recipe"](model)
            self._model, self.version = model, version

    @property
    def planner(self) -> Any:
        """The planning policy on the newest model. Raises RuntimeError before the first."""
        if self._policy is None:
            raise RuntimeError("the planning module was given no model yet")
        return self._policy

    def episodes(self, count: int) -> LastingActor:
        """Begin ``count`` episodes; see `EpisodicPolicy`."""
        actor: LastingActor = self.planner.episodes(count)
        return actor

    def act(self, obs_BO: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Actions (B, A) of plans made from nothing, as in the first step of an episode."""
        action_BA: Tensor = self.planner.act(obs_BO, generator=generator)
        return action_BA

    def value(self, obs_BO: Tensor) -> Tensor:
        """What such plans promise for their horizon, (B,)."""
        return_B: Tensor = self.planner.value(obs_BO)
        return return_B

    def get_non_inference_attributes(self) -> list[str]:
        """What environment runners need not carry: nothing."""
        return []

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """The model, in the place of weights; empty before there is one."""
        if self._model is None:
            return {}
        return {"arrays": self._model.arrays, "structure": self._model.structure, "version": self.version}

    def set_state(self, state: dict[str, Any]) -> None:
        """Plan in the model of a `get_state` from now on."""
        if state:
            arrays = {name: np.asarray(array) for name, array in state["arrays"].items()}
            self.take(State(arrays, state["structure"]), state["version"])

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        """What RLlib's own environment runners and connectors expect: actions."""
        return {Columns.ACTIONS: self.act(batch[Columns.OBS])}


class PlanningLearner(TorchLearner):
    """Holds the module and improves nothing: what is learned is the model, and the loop fits that."""

    def build(self) -> None:
        """Build the module."""
        super().build()
        self.networks = self.module[DEFAULT_MODULE_ID].unwrapped()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """None: there are no parameters."""

    def compute_loss_for_module(self, **_: Any) -> Tensor:
        """RLlib's per-module hook."""
        raise RuntimeError("a planner has no loss; the loop fits its model")

    def part_state(self) -> State:
        """Empty: the model is a part of the loop's own."""
        return State({}, {})

    def load_part_state(self, state: State) -> None:
        """Nothing to continue from."""
