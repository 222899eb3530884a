"""Whoever steps the environment acts with the Learner's newest weights, wherever the two live."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from proxygap.experiment import validate
from proxygap.loops.off_policy import LoopConfig, OffPolicy
from proxygap.loops.session import ray_session
from tests.loops.command import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LOOP = {"kind": "sac", "real_steps": 240, "updates_per_step": 2}


def actor_weights(module: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.actor.state_dict().items()}


def trained(**sections: Any) -> OffPolicy:
    experiment = validate({**SMALL, "fit": None, "loop": LOOP, **sections})
    algorithm = LoopConfig.for_run(experiment.loop.algorithm(), experiment, 0).build_algo()
    while algorithm.clocks.policy_update == 0:
        algorithm.train()
    algorithm.collect()
    return algorithm


@pytest.mark.parametrize(
    "sections",
    [{}, {"optimize": {**SMALL["optimize"], "learners": 1}}, {"collect": {"random_steps": 60, "env_runners": 1}}],
    ids=["in process", "remote Learner", "remote runner"],
)
def test_the_runner_acts_with_the_newest_weights(sections: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    with ray_session():
        algorithm = trained(**sections)
        try:
            newest = actor_weights(algorithm.policy())
            acting = algorithm.env_runner_group.foreach_env_runner(
                lambda runner: actor_weights(runner.module), local_env_runner=algorithm.runner is not None
            )
        finally:
            algorithm.stop()
    assert len(acting) == 1
    assert all(np.array_equal(newest[name], acting[0][name]) for name in newest)
