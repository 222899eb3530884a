"""A Learner that improves a language policy on one iteration's answers per call, whatever the optimizer.

RLlib calls a Learner with rows; here the rows are answers, all of an iteration at once, so that penalty, advantages,
passes and minibatches are one call and rewards were asked for once. Padding is cut to the longest answer.
Shape legend: B answers, L prompt tokens, T answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxygap.base.errors import InvalidDataset, NonFiniteValue
from proxygap.base.language import answer_mask, token_log_probs
from proxygap.base.protocols import Arrays, State
from proxygap.base.seeds import torch_generator
from proxygap.optimize.language.advantages import (
    generalized_advantages,
    group_relative,
    leave_one_out,
    normalized,
    returns_to_go,
    token_rewards,
)
from proxygap.optimize.language.kl import AdaptiveKl, kl_loss, kl_values
from proxygap.optimize.language.losses import policy_loss, token_entropy, value_loss
from proxygap.optimize.language.settings import Grpo, LanguageOptimizer, Reinforce, Rloo, TokenPpo
from proxygap.rllib import DEFAULT_MODULE_ID, TorchLearner

COLUMNS = ("prompt_token", "token", "length", "log_prob", "proxy_reward", "group")
"""Columns of an iteration, one row per answer; ``reference_log_prob`` (B, T) is the seventh where there is a penalty.

``log_prob`` is that of sampling, ``group`` numbers the prompts; tokens and log-probabilities may be padded at will.
"""
OPTIMIZER = "policy"

Batch = dict[str, Tensor]


class LanguageLearner(TorchLearner):
    """Token-level PPO, GRPO, RLOO or REINFORCE: ``settings`` and ``seed`` are in ``learner_config``."""

    def build(self) -> None:
        """Build module, optimizer, the controller of the penalty, and the generator of the minibatches."""
        super().build()
        options = self.config.learner_config_dict
        self.settings: LanguageOptimizer = options["settings"]
        self.networks = self.module[DEFAULT_MODULE_ID].unwrapped()
        self.kl = AdaptiveKl(self.settings.kl)
        self.order = torch_generator(options["seed"], "optimize/minibatches")
        self.updates_done = 0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One fused AdamW for the model and the value head."""
        settings: LanguageOptimizer = config.learner_config_dict["settings"]
        params = [param for param in self.module[module_id].unwrapped().parameters() if param.requires_grad]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.register_optimizer(
            module_id=module_id,
            optimizer_name=OPTIMIZER,
            optimizer=torch.optim.AdamW(params, lr=rate, weight_decay=decay, fused=True),
            params=params,
        )
        self.params = params

    def update(self, training_data: Any = None, **_: Any) -> dict[str, float]:
        """Improve the policy on one iteration's answers.

        Returns:
            Means over the gradient steps of the call: ``policy_loss``, ``entropy`` (nats per token), ``clip_share``,
            ``grad_norm`` (before clipping), ``value_loss`` (PPO), ``kl_loss`` (a penalty in the loss, without its
            coefficient). Of the answers as they came: ``advantage_std`` over real tokens, and, where the reference is
            known, ``kl_k1`` and ``kl_k3`` in nats per answer. Then ``kl_coefficient`` as used, and ``updates``.

        Raises:
            InvalidDataset: a column is missing, or an answer has no token or more than the columns hold.
            NonFiniteValue: a reward or log-probability is not finite (nothing has changed then), or a loss or gradient
                is not; weights are then no longer to be used.
        """
        training_data.solve_refs()
        batch = self._batch(training_data.batch[DEFAULT_MODULE_ID])
        coefficient = self.kl.coefficient
        summary = self._run(batch)
        summary |= {"kl_coefficient": coefficient}
        if "reference_log_prob" in batch:
            kls = torch.stack(kl_values(batch["log_prob"], batch["reference_log_prob"]))
            summary |= dict(zip(("kl_k1", "kl_k3"), kls.tolist(), strict=True))
        self._require_finite(summary)
        if "kl_k1" in summary:
            self.kl.update(summary["kl_k1"], len(batch["length"]))
        self._weights_seq_no += 1
        return summary

    def _run(self, batch: Batch) -> dict[str, float]:
        """All passes over the answers; the gradient steps' means."""
        size = self.settings.minibatch or len(batch["length"])
        # A single step sees the values that the advantages need: one forward pass serves both.
        single = self.settings.epochs == 1 and size >= len(batch["length"])
        view = self.networks.view(batch["prompt_token"], batch["token"]) if single else None
        with torch.no_grad():
            batch |= self._advantages(batch, self._values(batch, view, size))
        steps: list[dict[str, Tensor]] = []
        for rows in [None] if single else self._minibatches(len(batch["length"]), size):
            part = batch if rows is None else _rows(batch, rows)
            steps.append(self._step(part, view or self.networks.view(part["prompt_token"], part["token"])))
        self.updates_done += len(steps)
        means = torch.stack([torch.stack(list(step.values())) for step in steps]).mean(dim=0)
        spread = normalized(batch["advantage"], batch["mask"], divide=False).square().sum() / batch["mask"].sum()
        summary = dict(zip(steps[0], means.tolist(), strict=True))
        return summary | {"advantage_std": float(spread.sqrt()), "updates": float(len(steps))}

    def _values(self, batch: Batch, view: tuple[Tensor, Tensor | None] | None, size: int) -> Tensor | None:
        """Values at sampling, shape (B, T); None for optimizers without a value head."""
        if self.networks.value_head is None:
            return None
        if view is not None and view[1] is not None:
            return view[1].detach()
        columns = zip(torch.split(batch["prompt_token"], size), torch.split(batch["token"], size), strict=True)
        return torch.cat([self.networks.view(*part)[1] for part in columns])

    def _advantages(self, batch: Batch, value_BT: Tensor | None) -> Batch:
        """What the losses need beside the columns; tokens of one answer may differ in advantage."""
        settings, reward_B, mask_BT = self.settings, batch["proxy_reward"], batch["mask"]
        penalty_BT = torch.zeros_like(batch["log_prob"])
        if settings.kl.place == "reward" and settings.needs_reference:
            penalty_BT = self.kl.coefficient * (batch["log_prob"] - batch["reference_log_prob"])
        if isinstance(settings, Grpo | Rloo):
            whole_B = reward_B - penalty_BT.sum(dim=-1)
            if isinstance(settings, Grpo):
                whole_B = group_relative(whole_B, batch["group"], divide_by_std=settings.divide_by_std)
            else:
                whole_B = leave_one_out(whole_B, batch["group"])
            return {"advantage": whole_B[:, None] * mask_BT}
        reward_BT = token_rewards(reward_B, penalty_BT, batch["length"])
        if isinstance(settings, Reinforce):
            return_BT = returns_to_go(reward_BT, settings.discount) * mask_BT
            return {"advantage": normalized(return_BT, mask_BT, divide=settings.normalize)}
        assert value_BT is not None
        advantage_BT = generalized_advantages(reward_BT, value_BT, mask_BT, settings.discount, settings.gae_lambda)
        found = {"value": value_BT, "return": (advantage_BT + value_BT) * mask_BT}
        return found | {"advantage": normalized(advantage_BT, mask_BT) if settings.normalize else advantage_BT}

    def _step(self, batch: Batch, view: tuple[Tensor, Tensor | None]) -> dict[str, Tensor]:
        """One gradient step; its losses as scalars, in one order for every step of an optimizer."""
        settings, mask_BT = self.settings, batch["mask"]
        logits_BTV, value_BT = view
        log_prob_BT = token_log_probs(logits_BTV, batch["token"], batch["length"])
        loss, clip_share = policy_loss(
            log_prob_BT,
            batch["log_prob"],
            batch["advantage"],
            mask_BT,
            clip=settings.clip,
            aggregation=settings.aggregation,
        )
        step = {"policy_loss": loss.detach(), "clip_share": clip_share, "entropy": token_entropy(logits_BTV, mask_BT)}
        if isinstance(settings, TokenPpo) and value_BT is not None:
            error = value_loss(value_BT, batch["value"], batch["return"], mask_BT, clip=settings.value_clip)
            loss, step["value_loss"] = loss + settings.value_coefficient * error, error.detach()
        if settings.kl.place == "loss" and settings.needs_reference:
            penalty = kl_loss(settings.kl, log_prob_BT, batch["reference_log_prob"], mask_BT, settings.aggregation)
            loss, step["kl_loss"] = loss + self.kl.coefficient * penalty, penalty.detach()
        return step | {"grad_norm": self._descend(loss)}

    def _descend(self, loss: Tensor) -> Tensor:
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID, OPTIMIZER)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        limit = float("inf") if self.settings.grad_clip is None else self.settings.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.params, limit)
        optimizer.step()
        return norm.detach()

    def _minibatches(self, rows: int, size: int) -> Iterator[Tensor]:
        """Rows of each gradient step, in a new order in each pass."""
        for _ in range(self.settings.epochs):
            yield from torch.split(torch.randperm(rows, generator=self.order).to(self._device), size)

    def _batch(self, columns: Mapping[str, Any]) -> Batch:
        """Checked columns on the device, without padding that nobody needs, and the mask of real tokens."""
        needed = (*COLUMNS, "reference_log_prob") if self.settings.needs_reference else COLUMNS
        missing = [name for name in needed if name not in columns]
        if missing:
            raise InvalidDataset(
                "columns of the iteration are missing", field="optimize", value=missing, remedy="Give all of them"
            )
        names = (*COLUMNS, "reference_log_prob") if "reference_log_prob" in columns else COLUMNS
        batch = {name: torch.as_tensor(columns[name]).to(self._device) for name in names}
        length_B = batch["length"]
        if not 1 <= int(length_B.min()) <= int(length_B.max()) <= batch["token"].shape[1]:
            raise InvalidDataset(
                f"answers must have 1 to {batch['token'].shape[1]} tokens",
                field="length",
                value=(int(length_B.min()), int(length_B.max())),
                remedy="Leave out empty answers; the end token counts",
            )
        batch["mask"] = answer_mask(length_B, batch["token"].shape[1])
        for name in ("log_prob", "reference_log_prob"):
            if name in batch:
                batch[name] = batch[name].masked_fill(~batch["mask"], 0.0)
        batch["proxy_reward"] = batch["proxy_reward"].to(batch["log_prob"].dtype)
        self._require_finite_columns(batch)
        return _trimmed(batch, self.networks.model_config["spec"].pad_token)

    def _require_finite_columns(self, batch: Batch) -> None:
        for name in ("proxy_reward", "log_prob", "reference_log_prob"):
            if name in batch and not bool(batch[name].isfinite().all()):
                bad = int((~batch[name].isfinite()).sum())
                remedy = (
                    "Look at the answers that the reward model scored, or at the policy that gave the log-probabilities"
                )
                raise NonFiniteValue("a column has values that are not finite", field=name, value=bad, remedy=remedy)

    def _require_finite(self, summary: Mapping[str, float]) -> None:
        if not np.isfinite(list(summary.values())).all():
            raise NonFiniteValue(
                "the policy's losses are not finite",
                field="optimize",
                value=dict(summary),
                remedy="Lower optimize.learning_rate, or strengthen the KL penalty",
            )

    def compute_loss_for_module(self, **_: Any) -> Tensor:
        """RLlib's per-module hook. It is not on this Learner's path, and says so rather than train differently."""
        raise RuntimeError("LanguageLearner updates through update(); RLlib's generic path knows no groups of answers")

    def policy_state(self) -> State:
        """A copy of the language model's weights alone: what a policy needs elsewhere."""
        return State({name: _copy(tensor) for name, tensor in self.networks.model.state_dict().items()}, {})

    def load_policy(self, state: State) -> None:
        """Start from given weights, those of the reference policy; the value head and the optimizer stay."""
        self.networks.model.load_state_dict(_tensors(state.arrays))
        self._weights_seq_no += 1

    def part_state(self) -> State:
        """Everything that the next update depends on: weights, optimizer, order of minibatches, coefficient."""
        arrays = {f"module/{name}": _copy(tensor) for name, tensor in self.networks.state_dict().items()}
        for index, slots in self._optimizer().state_dict()["state"].items():
            arrays |= {f"optimizer/{index}/{slot}": _copy(tensor) for slot, tensor in slots.items()}
        arrays["order"] = self.order.get_state().numpy().copy()
        return State(arrays, {"kl": self.kl.state().structure, "updates_done": self.updates_done})

    def load_part_state(self, state: State) -> None:
        """Continue from a `part_state`, bit for bit."""
        tensors = _tensors(state.arrays)
        self.networks.load_state_dict({name: tensors[f"module/{name}"] for name in self.networks.state_dict()})
        slots: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in tensors if key.startswith("optimizer/")):
            _, index, slot = key.split("/")
            slots.setdefault(int(index), {})[slot] = tensors[key]
        optimizer = self._optimizer()
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        self.order.set_state(tensors["order"])
        self.kl.load_state(State({}, state.structure["kl"]))
        self.updates_done = int(state.structure["updates_done"])
        self._weights_seq_no += 1

    def _optimizer(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = self.get_optimizer(DEFAULT_MODULE_ID, OPTIMIZER)
        return found


def _rows(batch: Batch, rows: Tensor) -> Batch:
    """Some answers, cut to the longest of them."""
    part = {name: column[rows] for name, column in batch.items()}
    return _cut(part, int(part["length"].max()))


def _trimmed(batch: Batch, pad_token: int) -> Batch:
    """Without columns that are padding in every row: of the answers on the right, of the prompts on the left."""
    prompt_BL = batch["prompt_token"]
    used_L = (prompt_BL != pad_token).any(dim=0).nonzero()
    first = (
        int(used_L[0]) if len(used_L) else prompt_BL.shape[1] - 1
    )  # a table's only prompt token may look like padding
    return _cut(batch, int(batch["length"].max())) | {"prompt_token": prompt_BL[:, first:]}


def _cut(batch: Batch, tokens: int) -> Batch:
    kept = {"prompt_token"}
    return {name: col if col.dim() == 1 or name in kept else col[:, :tokens] for name, col in batch.items()}


def _tensors(arrays: Arrays) -> Batch:
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def _copy(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()  # NumPy knows no bfloat16; float32 holds it exactly
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
