"""RLlib's environment runner, made lean: it returns columns, and its state is complete.

RLlib's own runner builds episode objects and runs connectors on each step; its checkpoints hold no environment state.
Shape legend: E environments of this runner, O observation size, A action size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import torch_generator
from proxygap.collect.replayable import ReplayableEnv
from proxygap.collect.settings import RewardNoise
from proxygap.rllib import Checkpointable, EnvRunner, module_weights

if TYPE_CHECKING:
    from proxygap.base.protocols import Task


class StepRunner(EnvRunner, Checkpointable):
    """Steps environments with the policy module.

    ``env_config`` holds ``task``, ``seed``, ``count``, ``threads`` and, if there is any, ``reward_noise``.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index: int = kwargs.get("worker_index") or 0
        self.life, self.used = 0, False
        self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """Start the environments and the generator of the exploration noise, both of their own in each life."""
        options = self.config.env_config
        self.task: Task = options["task"]
        name = f"collect/runner/{self.worker_index}" + (f"/life/{self.life}" if self.life else "")
        noise = options.get("reward_noise", RewardNoise())
        self.envs = [
            ReplayableEnv(self.task, options["seed"], f"{name}/env/{i}", noise) for i in range(options["count"])
        ]
        self.exploration = torch_generator(options["seed"], f"{name}/exploration")
        if self.worker_index:
            torch.set_num_threads(options["threads"])

    def begin_life(self, number: int) -> None:
        """Called on all runners after one was lost: one that was built anew must not repeat what was lived before.

        Args:
            number: larger than that of any earlier life, and than the number of any episode so far.
        """
        if not self.used and number != self.life:
            self.stop()
            self.life = number
            self.make_env()

    def make_module(self) -> None:
        """Build the policy module from the Algorithm's specification."""
        self.module = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True).build()

    def get_spaces(self) -> dict[str, Any]:
        """Spaces as RLlib asks for them."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, "default_policy": spaces}

    def sample(self, *, steps: int = 1, random: bool = False, **_: Any) -> Transitions:
        """Take ``steps`` steps in each environment.

        Args:
            steps: per environment.
            random: uniform random actions instead of the policy's.

        Returns:
            ``steps * E`` transitions, environment by environment within each step.
        """
        rows = [row for _ in range(steps) for row in self._step_all(random=random)]
        return Transitions.concatenate(rows) if len(rows) > 1 else rows[0]

    def _step_all(self, *, random: bool) -> list[Transitions]:
        if random:
            shape = (len(self.envs), self.task.action_size)
            action_EA = torch.rand(shape, generator=self.exploration).mul_(2).sub_(1)
        else:
            action_EA = self.policy_actions(torch.from_numpy(np.stack([env.obs for env in self.envs])))
        stepped = zip(self.envs, action_EA.numpy(), strict=True)
        return [self._numbered(index, env.step(action_A)) for index, (env, action_A) in enumerate(stepped)]

    def policy_actions(self, obs_EO: torch.Tensor) -> torch.Tensor:
        """What the policy does, its exploration included, (E, A)."""
        action_EA: torch.Tensor = self.module.act(obs_EO, generator=self.exploration)
        return action_EA

    def _numbered(self, index: int, row: Transitions) -> Transitions:
        """Environments count their own episodes; within the run a number must be one episode's alone."""
        self.used = True
        environments = max(1, self.num_workers) * len(self.envs)
        number = max(0, self.worker_index - 1) * len(self.envs) + index
        if environments == 1 and self.life == 0:
            return row
        return replace(row, episode_B=(row.episode_B + self.life) * environments + number)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """RLlib's state: empty, because weights flow from the Learner; see `part_state` for checkpoints."""
        return {}

    def set_state(self, state: Any) -> None:
        """Take new weights from the Learner."""
        weights = module_weights(state)
        if weights is not None:
            self.module.set_state(weights)

    def part_state(self) -> State:
        """Environments in mid-episode and the position of the exploration noise."""
        envs = [env.state() for env in self.envs]
        arrays = {f"{i}/{name}": array for i, env in enumerate(envs) for name, array in env.arrays.items()}
        arrays["exploration"] = self.exploration.get_state().numpy().copy()
        return State(arrays, {"envs": [env.structure for env in envs], "life": self.life})

    def load_part_state(self, state: State) -> None:
        """Continue from a `part_state`, bit for bit."""
        self.begin_life(state.structure.get("life", 0))
        self.used = True
        for i, (env, structure) in enumerate(zip(self.envs, state.structure["envs"], strict=True)):
            prefix = f"{i}/"
            arrays = {k.removeprefix(prefix): v for k, v in state.arrays.items() if k.startswith(prefix)}
            env.load_state(State(arrays, structure))
        self.exploration.set_state(torch.from_numpy(np.array(state.arrays["exploration"])))

    def get_metrics(self) -> Any:
        """RLlib's metrics: none, the outcome is measured by the probe."""
        return self.metrics.reduce()

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How RLlib would rebuild this runner."""
        return (), {"config": self.config}

    def assert_healthy(self) -> None:
        """Fail when construction did not finish."""
        if not self.envs or self.module is None:
            raise RuntimeError("the environment runner has no environments")

    def stop(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()
