"""The one place that imports RLlib's alpha and private parts; tested against Ray 2.60, to which the package is pinned.

Everything that may break with the next minor release of Ray breaks here and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.checkpoints import Checkpointable

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ALL_MODULES",
    "DEFAULT_MODULE_ID",
    "SAC",
    "Algorithm",
    "AlgorithmConfig",
    "Checkpointable",
    "Columns",
    "ConnectorV2",
    "EnvRunner",
    "InferenceOnlyAPI",
    "MultiAgentBatch",
    "RLModuleSpec",
    "SACConfig",
    "SampleBatch",
    "TorchLearner",
    "TorchRLModule",
    "ValueFunctionAPI",
    "has_artificial_step",
    "learner_batch",
    "local_learner",
    "local_runner",
    "module_weights",
    "push_stored",
    "push_weights",
    "store_weights",
]


def learner_batch(columns: Mapping[str, NDArray[np.generic]], rows: int) -> MultiAgentBatch:
    """Columns with equal first dimension, in the only form that a LearnerGroup takes without connectors."""
    return MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(dict(columns))}, env_steps=rows)


def has_artificial_step(shared_data: Mapping[str, Any] | None) -> bool:
    """Whether the episodes of a Learner pipeline have grown by one step that was not lived, as PPO's do for values."""
    return bool((shared_data or {}).get("_added_loss_mask_for_valid_episode_ts"))


def local_learner(algorithm: Any) -> Any | None:
    """The Learner in this process, or None when it is remote."""
    return algorithm.learner_group._learner if algorithm.learner_group.is_local else None


def local_runner(algorithm: Any) -> Any | None:
    """The EnvRunner in this process when it is the one that samples, or None."""
    group = algorithm.env_runner_group
    return None if group.num_remote_env_runners() else group.local_env_runner


def push_weights(algorithm: Any, timeout_s: float) -> None:
    """Give every EnvRunner the Learner's newest weights, and wait: RLlib's own call drops them for a busy runner."""
    runner = local_runner(algorithm)
    if runner is not None:
        runner.set_state(_weights(algorithm))
        return
    push_stored(algorithm, store_weights(algorithm), timeout_s)


def store_weights(algorithm: Any) -> Any:
    """The Learner's newest weights in Ray's object store, for `push_stored`."""
    import ray

    return ray.put(_weights(algorithm))


def push_stored(algorithm: Any, weights: Any, timeout_s: float) -> None:
    """Give every remote EnvRunner weights that are stored already, and wait."""
    algorithm.env_runner_group.foreach_env_runner(
        "set_state", kwargs={"state": weights}, local_env_runner=False, timeout_seconds=timeout_s
    )


def _weights(algorithm: Any) -> dict[str, Any]:
    state = algorithm.learner_group.get_state(components=["learner/rl_module"], inference_only=True)["learner"]
    return {"rl_module": state["rl_module"]}


def module_weights(state: Any) -> Any | None:
    """The default module's weights out of an EnvRunner state, or None when it carries none.

    RLlib sends the state, or the weights in it, by value or by reference; a nested reference arrives as one.
    """
    weights = _fetched(_fetched(state).get("rl_module"))
    return weights if weights is None else weights.get(DEFAULT_MODULE_ID, weights)


def _fetched(value: Any) -> Any:
    import ray

    return ray.get(value) if isinstance(value, ray.ObjectRef) else value
