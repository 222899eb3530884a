"""Any causal language model of `transformers`, from a local directory or built here, behind our own generation loop.

Shape legend: B rows, L prompt tokens, T answer tokens, S = L + T - 1 tokens read, V the task's vocabulary, D width.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicCache

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Continuation, Generation, ItemSpec
from proxygap.fit.language.directory import loaded
from proxygap.fit.language.llama import random_llama
from proxygap.fit.language.llama_steps import LlamaSteps, can_step
from proxygap.fit.language.sampling import Draws, in_chunks, real_prompt
from proxygap.fit.language.settings import HuggingFaceLanguageModel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel


class HuggingFaceModel(nn.Module):
    """A `PreTrainedModel` as ``network``, without dropout; tokens beyond the task's vocabulary are never drawn.

    Probabilities are normalized over the task's vocabulary where the model's own is larger.
    """

    def __init__(self, settings: HuggingFaceLanguageModel, spec: ItemSpec, *, end_token: int | None, seed: int) -> None:
        super().__init__()
        self.spec, self.end_token = spec, end_token
        self.network: PreTrainedModel
        if settings.directory is None:
            self.network = random_llama(settings, spec, seed)
        else:
            self.network = loaded(settings.directory, settings.dtype)
        self._check_sizes(settings.directory)
        self._takes_positions = "position_ids" in inspect.signature(self.network.forward).parameters
        self._direct = _head_is_all(self.network)
        self._steps = can_step(self.network)

    def continuation(self, prompt_BL: Tensor, token_BT: Tensor) -> Continuation:
        """Logits (B, T, V) and the states that the output layer reads, (B, T, D).

        Raises:
            InvalidExperiment: a sequence longer than the model reads.
        """
        answer = token_BT.shape[1]
        self._check_length(prompt_BL.shape[1] + answer)
        real_BL = real_prompt(prompt_BL, self.spec.pad_token)
        real_BS = None if real_BL is None else functional.pad(real_BL, (0, answer - 1), value=True)
        return self._read(torch.cat((prompt_BL, token_BT[:, :-1]), dim=1), real_BS, None, answer)

    forward = continuation

    def generate(
        self, prompt_BL: Tensor, max_tokens: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> Generation:
        """Sample answers with the cache of `transformers`, until all have ended.

        Raises:
            InvalidExperiment: a sequence longer than the model reads.
            NonFiniteValue: no distribution to draw from.
        """
        self._check_length(prompt_BL.shape[1] + max_tokens)

        def generate(prompt_BL: Tensor) -> Generation:
            rows, device = len(prompt_BL), prompt_BL.device
            draws = Draws(
                rows, max_tokens, end_token=self.end_token, generator=generator, temperature=temperature, device=device
            )
            with torch.inference_mode():
                real_BL = real_prompt(prompt_BL, self.spec.pad_token)
                draw = self._draw_lean if self._steps and rows else self._draw
                draw(prompt_BL, real_BL, draws, prompt_BL.shape[1] + max_tokens - 1)
            return draws.generation(self.spec.pad_token)

        return in_chunks(generate, prompt_BL)

    def _draw_lean(self, prompt_BL: Tensor, real_BL: Tensor | None, draws: Draws, columns: int) -> None:
        steps = LlamaSteps(cast("LlamaForCausalLM", self.network), prompt_BL, real_BL, columns)
        logits_BV = steps.logits_BV
        while True:
            token_B1 = draws.next(_at_least_float32(logits_BV[:, : self.spec.vocabulary]))
            if draws.over:
                return
            rows_A = draws.leave_out_ended()
            if rows_A is not None:
                steps.keep(rows_A)
                token_B1 = token_B1[rows_A]
            logits_BV = steps.step(token_B1[:, 0])

    def _draw(self, prompt_BL: Tensor, real_BL: Tensor | None, draws: Draws, columns: int) -> None:
        real_BS = None if real_BL is None else functional.pad(real_BL, (0, columns - real_BL.shape[1]), value=True)
        seen, token_B1, cache = 0, prompt_BL, DynamicCache(config=self.network.config)
        while True:
            seen += token_B1.shape[1]
            view = self._read(token_B1, None if real_BS is None else real_BS[:, :seen], cache, 1)
            token_B1 = draws.next(view.logits_BTV[:, 0])
            if draws.over:
                return
            rows_A = draws.leave_out_ended()
            if rows_A is not None:
                cache.batch_select_indices(rows_A)
                token_B1, real_BS = token_B1[rows_A], None if real_BS is None else real_BS[rows_A]

    def _read(self, token_BS: Tensor, real_BS: Tensor | None, cache: DynamicCache | None, last: int) -> Continuation:
        """The view of the ``last`` tokens; ``real_BS`` covers what the cache holds, too."""
        if not len(token_BS):  # most of transformers takes no empty batch
            one = self._read(token_BS.new_zeros(1, token_BS.shape[1]), None, None, last)
            return Continuation(one.logits_BTV[:0], one.hidden_BTD[:0])
        options: dict[str, Any] = {"use_cache": cache is not None, "past_key_values": cache}
        if real_BS is not None:
            options["attention_mask"] = real_BS.long()
            if self._takes_positions:
                position_BS = (real_BS.long().cumsum(dim=1) - 1).clamp_(min=0)
                options["position_ids"] = position_BS[:, -token_BS.shape[1] :]
        if self._direct:
            hidden_BTD = self.network.base_model(input_ids=token_BS, **options).last_hidden_state[:, -last:]
            logits_BTV = self.network.get_output_embeddings()(hidden_BTD)
        else:
            output = self.network(input_ids=token_BS, output_hidden_states=True, **options)
            hidden_BTD, logits_BTV = output.hidden_states[-1][:, -last:], output.logits[:, -last:]
        return Continuation(_at_least_float32(logits_BTV[..., : self.spec.vocabulary]), hidden_BTD)

    def _check_sizes(self, directory: str | None) -> None:
        known = self.network.get_input_embeddings().weight.shape[0]
        if known < self.spec.vocabulary:
            raise InvalidExperiment(
                f"this model knows {known} tokens, the task has {self.spec.vocabulary}",
                field="directory",
                value=directory,
                remedy="Choose the model that belongs to the task's tokenizer",
            )
        self._check_length(self.spec.prompt_length + self.spec.max_tokens)

    def _check_length(self, tokens: int) -> None:
        positions = getattr(self.network.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and positions < tokens:
            raise InvalidExperiment(
                f"this model reads {positions} tokens, prompt and answer have {tokens}",
                field="max_tokens",
                value=tokens,
                remedy="Shorten the task's answers, or choose a model with more positions",
            )


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@torch.no_grad()
def _head_is_all(network: PreTrainedModel) -> bool:
    """Whether the output layer on the last states gives the model's logits to the last bit, found by trying.

    It does not for models that scale or cap their logits; those are called as a whole, at some cost.
    """
    head = network.get_output_embeddings()
    if not isinstance(head, nn.Linear) or network.base_model is network:
        return False
    token_BS = torch.arange(3, device=network.device)[None] % network.get_input_embeddings().weight.shape[0]
    hidden_BSD = getattr(network.base_model(input_ids=token_BS, use_cache=False), "last_hidden_state", None)
    whole_BSV = network(input_ids=token_BS, use_cache=False).logits
    return (
        hidden_BSD is not None and hidden_BSD.shape[-1] == head.in_features and torch.equal(head(hidden_BSD), whole_BSV)
    )
