"""The reference policy: a language model fitted to a task's demonstrations, or set to a task's enumeration.

Shape legend: B answers of a batch, L prompt tokens, T answer tokens, P prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Answers, token_log_probs
from proxygap.base.protocols import LanguageModel, LanguageTask
from proxygap.base.seeds import generator
from proxygap.fit.language.settings import LanguageModelSettings, Pretraining, TableLanguageModel

if TYPE_CHECKING:
    from proxygap.fit.language.table import TableModel


@dataclass(frozen=True, slots=True)
class PretrainingReport:
    """What pretraining did. Losses are negative log-likelihoods in nats per answer token.

    A table is set, not fitted: it reports 0 steps, no rows, and NaN losses; so does a model used as it was loaded.
    """

    steps: int
    training_rows: int
    held_out_rows: int
    held_out_loss_before: float
    held_out_loss: float


@dataclass(frozen=True, slots=True)
class _Rows:
    """Answers as tensors on the model's device, with their prompts' tokens."""

    prompt_BL: Tensor
    token_BT: Tensor
    length_B: Tensor

    def __len__(self) -> int:
        return len(self.length_B)

    def __getitem__(self, rows: Tensor | slice) -> _Rows:
        return _Rows(self.prompt_BL[rows], self.token_BT[rows], self.length_B[rows])


def pretrained(settings: LanguageModelSettings, task: LanguageTask, seed: int, device: str = "cpu") -> nn.Module:
    """The reference policy of a task, in eval mode; equal arguments give equal weights.

    Raises:
        InvalidExperiment: a model and a task that do not fit.
        CheckpointRefused: a damaged model directory.
        NonFiniteValue: the fit diverged.
    """
    return pretrained_with_report(settings, task, seed, device)[0]


def pretrained_with_report(
    settings: LanguageModelSettings, task: LanguageTask, seed: int, device: str = "cpu"
) -> tuple[nn.Module, PretrainingReport]:
    """`pretrained`, and what it took."""
    prompts = len(task.prompt_tokens())
    module = settings.build(task.item_spec, end_token=task.end_token, prompts=prompts, seed=seed, device=device)
    if isinstance(settings, TableLanguageModel):
        report = _set_table(cast("TableModel", module), task)
    else:
        report = _fit(module, settings.plan, task, seed, device)
    return module.eval(), report


def _set_table(table: TableModel, task: LanguageTask) -> PretrainingReport:
    enumeration = task.enumeration()
    if enumeration is None:
        remedy = "Choose tiny_transformer or hugging_face"
        raise InvalidExperiment(
            f"the answers of {task.name} are not enumerated", field="kind", value="table", remedy=remedy
        )
    table.set_log_probs(enumeration.reference_log_prob_PK)
    return PretrainingReport(0, 0, 0, math.nan, math.nan)


def _fit(module: nn.Module, plan: Pretraining, task: LanguageTask, seed: int, device: str) -> PretrainingReport:
    """Maximum likelihood with AdamW (Loshchilov & Hutter 2019) on a cosine schedule."""
    if plan.steps == 0:
        return PretrainingReport(0, 0, 0, math.nan, math.nan)
    training, held_out = _demonstrations(plan, task, seed, device)
    before = _held_out_loss(module, held_out)
    rng = generator(seed, "language/pretraining/batches")
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.steps)
    module.train()
    for _ in range(plan.steps):
        rows = torch.from_numpy(rng.integers(len(training), size=plan.batch_size)).to(device)
        optimizer.zero_grad()
        _loss(module, training[rows]).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(module.parameters(), plan.max_gradient_norm)
        if not bool(norm.isfinite()):
            remedy = "Lower learning_rate"
            raise NonFiniteValue("pretraining diverged", field="pretraining.gradient", value=float(norm), remedy=remedy)
        optimizer.step()
        schedule.step()
    module.zero_grad()
    after = _held_out_loss(module.eval(), held_out)
    return PretrainingReport(plan.steps, len(training), len(held_out), before, after)


def _demonstrations(plan: Pretraining, task: LanguageTask, seed: int, device: str) -> tuple[_Rows, _Rows]:
    """Training and held-out rows, in a random order."""
    answers = task.demonstrations(generator(seed, "language/pretraining/demonstrations"), plan.demonstrations)
    held_out = max(1, round(plan.held_out * len(answers)))
    if len(answers) <= held_out:
        raise InvalidExperiment(
            f"{task.name} has {len(answers)} demonstrations, too few to pretrain on",
            field="pretraining.demonstrations",
            value=plan.demonstrations,
            remedy="Choose kind: table for an enumerated task, or set pretraining.steps to 0",
        )
    order = generator(seed, "language/pretraining/held_out").permutation(len(answers))
    rows = _rows(answers[order], task, device)
    return rows[held_out:], rows[:held_out]


def _rows(answers: Answers, task: LanguageTask, device: str) -> _Rows:
    arrays = task.prompt_tokens()[answers.prompt_B], answers.token_BT, answers.length_B
    return _Rows(*(torch.from_numpy(array.copy()).to(device) for array in arrays))


def _loss(module: nn.Module, rows: _Rows) -> Tensor:
    """Negative log-likelihood in nats per token, all answers' tokens alike; nothing is computed beyond the longest."""
    token_BT = rows.token_BT[:, : int(rows.length_B.max())]
    view = cast(LanguageModel, module).continuation(rows.prompt_BL, token_BT)
    return -token_log_probs(view.logits_BTV, token_BT, rows.length_B).sum() / rows.length_B.sum()


@torch.no_grad()
def _held_out_loss(module: nn.Module, rows: _Rows, batch_size: int = 512) -> float:
    """Negative log-likelihood of rows, in nats per token."""
    parts = [rows[slice(first, first + batch_size)] for first in range(0, len(rows), batch_size)]
    total = sum(float(_loss(module, part)) * int(part.length_B.sum()) for part in parts)
    return total / int(rows.length_B.sum())
