"""RLlib's environment runner, for a language policy: it answers prompts, whole batches at once, with a complete state.

There is no environment and no step per token: the model generates with its own cache, and arrays come back.
Shape legend: B answers, P prompts of the task, L prompt tokens, T answer tokens (the task's ``max_tokens``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from proxygap.base.language import Answers, Generation
from proxygap.base.protocols import State
from proxygap.base.records import Int64
from proxygap.base.seeds import torch_generator
from proxygap.rllib import Checkpointable, EnvRunner, module_weights

if TYPE_CHECKING:
    from proxygap.base.protocols import LanguageTask


class AnswerRunner(EnvRunner, Checkpointable):
    """Samples answers from the policy module's ``model``.

    ``env_config`` holds ``task``, ``seed``, ``threads``, ``temperature``, and ``device`` (default ``cpu``).
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.worker_index: int = kwargs.get("worker_index") or 0
        self.life, self.used = 0, False
        self.make_env()
        self.make_module()

    def make_env(self) -> None:
        """Look up the task's prompts and start the generator of the answers."""
        options = self.config.env_config
        self.task: LanguageTask = options["task"]
        self.temperature: float = options["temperature"]
        self.device = torch.device(options.get("device", "cpu"))
        self.prompt_PL = torch.from_numpy(np.array(self.task.prompt_tokens())).to(self.device)
        name = f"collect/answers/{self.worker_index}" + (f"/life/{self.life}" if self.life else "")
        self.draws = torch_generator(options["seed"], name, str(self.device))
        if self.worker_index:
            torch.set_num_threads(options["threads"])

    def begin_life(self, number: int) -> None:
        """Called on all runners after one was lost: one that was built anew must not draw the same answers again."""
        if not self.used and number != self.life:
            self.life = number
            self.make_env()

    def make_module(self) -> None:
        """Build the policy module from the Algorithm's specification."""
        spec = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build().to(self.device)

    def get_spaces(self) -> dict[str, Any]:
        """Spaces as RLlib asks for them; nothing is in them here."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {"__env__": spaces, "__env_single__": spaces, "default_policy": spaces}

    @torch.no_grad()
    def sample(self, *, prompt_B: Int64, **_: Any) -> Answers:
        """Answer prompts, one answer per row, in one batch.

        Args:
            prompt_B: rows of the task's prompt table; a prompt may be there several times.

        Returns:
            Answers in the order of ``prompt_B``, padded to the task's ``max_tokens``, so that those of several runners
            can be put together.

        Raises:
            IndexError: a prompt that the task does not have.
        """
        prompt_B = np.array(prompt_B, dtype=np.int64)
        if len(prompt_B) and not 0 <= prompt_B.min() <= prompt_B.max() < len(self.prompt_PL):
            raise IndexError(f"the task has {len(self.prompt_PL)} prompts, not {prompt_B.min()} to {prompt_B.max()}")
        spec = self.task.item_spec
        drawn: Generation = self.module.model.generate(
            self.prompt_PL[torch.from_numpy(prompt_B).to(self.device)],
            spec.max_tokens,
            generator=self.draws,
            temperature=self.temperature,
        )
        return Answers(
            prompt_B=prompt_B,
            token_BT=_padded(drawn.token_BT, spec.max_tokens, spec.pad_token).astype(np.int64, copy=False),
            length_B=drawn.length_B.cpu().numpy().astype(np.int64),
            log_prob_BT=_padded(drawn.log_prob_BT, spec.max_tokens, 0).astype(np.float32, copy=False),
        )

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """RLlib's state: empty, because weights flow from the Learner; see `part_state` for checkpoints."""
        return {}

    def set_state(self, state: Any) -> None:
        """Take new weights from the Learner."""
        weights = module_weights(state)
        if weights is not None:
            self.module.set_state(weights)

    def part_state(self) -> State:
        """The position of the generator; a runner remembers nothing else."""
        return State({"draws": self.draws.get_state().numpy().copy()}, {})

    def load_part_state(self, state: State) -> None:
        """Continue from a `part_state`, bit for bit."""
        self.used = True
        self.draws.set_state(torch.from_numpy(np.array(state.arrays["draws"])))

    def get_metrics(self) -> Any:
        """RLlib's metrics: none, the outcome is measured by the probe."""
        return self.metrics.reduce()

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How RLlib would rebuild this runner."""
        return (), {"config": self.config}

    def assert_healthy(self) -> None:
        """Fail when construction did not finish."""
        if self.module is None:
            raise RuntimeError("the answer runner has no module")

    def stop(self) -> None:
        """Nothing is held open."""


def _padded(column_BT: torch.Tensor, tokens: int, value: int) -> np.ndarray[Any, Any]:
    array = column_BT.cpu().numpy()
    return np.pad(array, ((0, 0), (0, tokens - array.shape[1])), constant_values=value)
