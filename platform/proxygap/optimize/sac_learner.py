"""A Learner that does several lean SAC updates per call.

RLlib's own path spends about 30 of 84 ms per update around the arithmetic: connectors, batch conversion, finite checks
of each tensor, metrics (`docs/decisions.md`). Here one call takes the rows of all its updates at once, and nothing
is brought back to Python between them. Shape legend: B batch, O observation size, A action size, U updates in a call,
K critics (two, unless the loss gives each of them members).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import State
from proxygap.base.seeds import torch_generator
from proxygap.optimize.settings import SacSettings
from proxygap.rllib import DEFAULT_MODULE_ID, TorchLearner

COLUMNS = ("obs", "action", "next_obs", "proxy_reward", "terminated")
"""Columns of a batch; row u * B + b belongs to update u."""


class SacLearner(TorchLearner):
    """Soft actor-critic (Haarnoja et al. 2018, 1812.05905, algorithm 1) with ``SacSettings`` in ``learner_config``."""

    def build(self) -> None:
        """Build module, optimizers and the generator of this Learner's noise."""
        super().build()
        self.settings: SacSettings = self.config.learner_config_dict["settings"]
        self.critic_loss = self.settings.critic_loss
        self.networks = self.module[DEFAULT_MODULE_ID].unwrapped()
        networks = self.networks
        self.actor, self.critics, self.targets = (  # listing them anew would cost a small update a few percent
            list(part.parameters()) for part in (networks.actor, networks.critics, networks.targets)
        )
        action_size = networks.action_space.shape[0]
        target = self.settings.target_entropy
        self.target_entropy = -float(action_size) if target is None else target
        self.noise = torch_generator(
            self.config.learner_config_dict["seed"], "optimize/noise", str(self._device or "cpu")
        )

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One fused Adam each for the critics, the actor and the temperature."""
        module = self.module[module_id].unwrapped()
        rate = config.learner_config_dict["settings"].learning_rate
        groups = {
            "critics": list(module.critics.parameters()),
            "actor": list(module.actor.parameters()),
            "temperature": [module.log_temperature],
        }
        for name, params in groups.items():
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(params, lr=rate, fused=True),
                params=params,
            )

    def update(self, training_data: Any = None, **_: Any) -> dict[str, float]:
        """Run as many updates as the batch has rows for.

        Returns:
            Means over the call: ``critic_loss``, ``actor_loss``, ``entropy`` (nats), ``temperature``, ``mean_value``,
            and what the critics' loss tells.

        Raises:
            NonFiniteValue: when a loss is NaN or infinite; weights are then no longer to be used.
        """
        training_data.solve_refs()
        rows = training_data.batch[DEFAULT_MODULE_ID]
        columns = {name: torch.as_tensor(rows[name]).to(self._device) for name in COLUMNS}
        size = self.settings.batch_size
        updates = len(columns["proxy_reward"]) // size
        noise_U2BA = torch.randn(
            (updates, 2, size, columns["action"].shape[-1]), generator=self.noise, device=self._device
        )
        totals = torch.zeros(5 + len(self.critic_loss.told), device=self._device)
        for index in range(updates):
            batch = {name: column[index * size : (index + 1) * size] for name, column in columns.items()}
            totals += self._one_update(batch, noise_U2BA[index])
        self._weights_seq_no += 1
        return self._summary(totals / max(updates, 1))

    def _one_update(self, batch: dict[str, Tensor], noise_2BA: Tensor) -> Tensor:
        temperature = self.networks.log_temperature.detach().exp()
        critic_loss, mean_value, *told = self._step_critics(batch, noise_2BA[0], temperature)
        actor_loss, entropy = self._step_actor(batch["obs"], noise_2BA[1], temperature)
        self._step_temperature(entropy)
        with torch.no_grad():  # Polyak averaging of the targets, algorithm 1, last line
            torch._foreach_lerp_(self.targets, self.critics, self.settings.target_rate)
        return torch.stack((critic_loss, actor_loss, entropy, temperature, mean_value, *told))

    def _step_critics(self, batch: dict[str, Tensor], noise_BA: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        networks = self.networks
        with torch.no_grad():
            next_action_BA, next_log_prob_B = networks.sample(batch["next_obs"], noise_BA)
            next_value = networks.targets.paired(networks.targets(batch["next_obs"], next_action_BA))
            soft_value = next_value - temperature * next_log_prob_B  # Eq. 3
            going_on_B = 1.0 - batch["terminated"].float()
            target = batch["proxy_reward"] + self.settings.discount * going_on_B * soft_value  # Eq. 2, (B,) or (K, B)
        value_KB, shape_KB = networks.critics.heads(batch["obs"], batch["action"])
        loss = self.critic_loss(value_KB, shape_KB, target)  # Eq. 5, all critics
        told = self.critic_loss.tell(value_KB, shape_KB, target) if self.critic_loss.told else ()
        self._apply("critics", loss, self.critics)
        return loss.detach(), value_KB.detach().mean(), *told

    def _step_actor(self, obs_BO: Tensor, noise_BA: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        networks = self.networks
        action_BA, log_prob_B = networks.sample(obs_BO, noise_BA)
        value_B = networks.critics.smaller(networks.critics(obs_BO, action_BA))
        loss = (temperature * log_prob_B - value_B).mean()  # Eq. 7 with reparameterization
        self._apply("actor", loss, self.actor)
        return loss.detach(), -log_prob_B.detach().mean()

    def _step_temperature(self, entropy: Tensor) -> None:
        """Eq. 18 in log space, as the reference implementation does it: d/d(log alpha) = entropy - target."""
        self.networks.log_temperature.grad = entropy - self.target_entropy
        self.get_optimizer(DEFAULT_MODULE_ID, "temperature").step()

    def _apply(self, name: str, loss: Tensor, params: list[Tensor]) -> None:
        """Differentiate with respect to these parameters only: an actor step computes no critic gradients."""
        for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
            param.grad = gradient
        self.get_optimizer(DEFAULT_MODULE_ID, name).step()

    def _summary(self, means: Tensor) -> dict[str, float]:
        names = ("critic_loss", "actor_loss", "entropy", "temperature", "mean_value", *self.critic_loss.told)
        summary = dict(zip(names, means.tolist(), strict=True))
        if not np.isfinite(list(summary.values())).all():
            raise NonFiniteValue(
                "the policy's losses are not finite",
                field="optimize",
                value=summary,
                remedy="Lower optimize.learning_rate, or look for extreme rewards of the task",
            )
        return summary

    def compute_loss_for_module(self, **_: Any) -> Tensor:
        """RLlib's per-module hook. It is not on this Learner's path, and says so rather than train differently."""
        raise RuntimeError("SacLearner updates through update(); RLlib's generic path would not step the temperature")

    def part_state(self) -> State:
        """Everything that the next update depends on: networks, targets, temperature, optimizers, noise."""
        arrays = {f"module/{name}": _copy(tensor) for name, tensor in self.networks.state_dict().items()}
        for name in self._optimizer_names():
            for index, slots in self._slots(name).items():
                arrays |= {f"optimizer/{name}/{index}/{slot}": _copy(tensor) for slot, tensor in slots.items()}
        arrays["noise"] = self.noise.get_state().numpy().copy()
        return State(arrays, {})

    def load_part_state(self, state: State) -> None:
        """Continue from a `part_state`, bit for bit."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.arrays.items()}
        self.networks.load_state_dict({name: tensors[f"module/{name}"] for name in self.networks.state_dict()})
        for name in self._optimizer_names():
            optimizer = self.get_optimizer(DEFAULT_MODULE_ID, name)
            prefix = f"optimizer/{name}/"
            slots: dict[int, dict[str, Tensor]] = {}
            for key in (key for key in tensors if key.startswith(prefix)):
                index, slot = key.removeprefix(prefix).split("/")
                slots.setdefault(int(index), {})[slot] = tensors[key]
            optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        self.noise.set_state(tensors["noise"])

    def _slots(self, name: str) -> dict[int, dict[str, Tensor]]:
        found: dict[int, dict[str, Tensor]] = self.get_optimizer(DEFAULT_MODULE_ID, name).state_dict()["state"]
        return found

    def _optimizer_names(self) -> tuple[str, ...]:
        return ("critics", "actor", "temperature")


def _copy(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.detach().cpu().numpy().copy()
