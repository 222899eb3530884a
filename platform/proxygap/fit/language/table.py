"""A table of logits: the language model of tasks whose answers are one token out of a few.

Shape legend: B rows, P prompts, L prompt tokens, T = 1 answer token, V vocabulary, D hidden width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Continuation, Float64, Generation, ItemSpec
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.sampling import Draws
from proxygap.fit.language.settings import TableLanguageModel

NEVER = -1e4
"""Logit of an answer that is not possible: its probability is exactly 0, and p log p stays finite."""


class TableModel(nn.Module):
    """One logit per prompt and token; a prompt's row is its last token. The hidden state is a fixed random code.

    The parameter ``logits_PV`` is all there is to learn.
    """

    def __init__(
        self, settings: TableLanguageModel, spec: ItemSpec, *, end_token: int | None, prompts: int, seed: int
    ) -> None:
        super().__init__()
        if spec.max_tokens != 1 or end_token is not None:
            raise InvalidExperiment(
                "a table answers with exactly one token, without an end token",
                field="kind",
                value=settings.kind,
                remedy="Choose tiny_transformer or hugging_face for this task",
            )
        dtype: torch.dtype = getattr(torch, settings.dtype)
        self.pad_token = spec.pad_token
        self.logits_PV = nn.Parameter(torch.zeros(prompts, spec.vocabulary, dtype=dtype))
        code_PD = torch.randn(prompts, settings.hidden_width, generator=torch_generator(seed, "language/table/code"))
        self.code_PD: Tensor
        self.register_buffer("code_PD", code_PD.to(dtype))

    def set_log_probs(self, log_prob_PK: Float64) -> None:
        """Answer with these probabilities; tokens from K on are never drawn. Raises InvalidExperiment for misfits."""
        prompts, vocabulary = self.logits_PV.shape
        if len(log_prob_PK) != prompts or log_prob_PK.shape[1] > vocabulary:
            raise InvalidExperiment(
                f"the task's enumeration does not fit a table of {prompts} prompts and {vocabulary} tokens",
                field="enumeration",
                value=log_prob_PK.shape,
                remedy="Build the table from the item_spec and the prompt table of the same task",
            )
        filled_PV = np.full((prompts, vocabulary), NEVER)
        filled_PV[:, : log_prob_PK.shape[1]] = np.maximum(log_prob_PK, NEVER)
        with torch.no_grad():
            self.logits_PV.copy_(torch.from_numpy(filled_PV))

    def continuation(self, prompt_BL: Tensor, token_BT: Tensor) -> Continuation:
        """Logits (B, 1, V) of each prompt's row, and its code (B, 1, D); answers do not matter before their end."""
        if token_BT.shape[1] != 1:
            remedy = "Use a transformer for longer ones"
            raise InvalidExperiment("a table answers one token", field="token_BT", value=token_BT.shape, remedy=remedy)
        row_B = prompt_BL[:, -1]
        return Continuation(self.logits_PV[row_B][:, None], self.code_PD[row_B][:, None])

    forward = continuation

    @torch.no_grad()
    def generate(
        self, prompt_BL: Tensor, max_tokens: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> Generation:
        """One token per row. Raises InvalidExperiment for another number of tokens."""
        rows, device = len(prompt_BL), prompt_BL.device
        draws = Draws(rows, 1, end_token=None, generator=generator, temperature=temperature, device=device)
        if max_tokens != 1:
            remedy = "Ask for one token"
            raise InvalidExperiment("a table answers one token", field="max_tokens", value=max_tokens, remedy=remedy)
        draws.next(self.logits_PV[prompt_BL[:, -1]])
        return draws.generation(self.pad_token)
