"""One token at a time through a Llama of `transformers`, with its own weights and few operations.

The prompt is read by the module itself. At small widths most of the time of its forward, token by token, goes into
calls around the arithmetic; here are the same equations (Touvron et al. 2023, section 2.2) without them.

Shape legend: B rows, L prompt tokens, S columns, V vocabulary, D width, H heads, G key-value heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from proxygap.fit.language.cache import Cache

WIDEST = 1024
"""Wider models spend their time in the products; they are stepped by transformers itself, and nothing is copied."""


def can_step(network: PreTrainedModel) -> bool:
    """Whether `LlamaSteps` computes what this network computes."""
    if type(network) is not LlamaForCausalLM or network.dtype not in (torch.float32, torch.float64):
        return False
    config = network.config
    fixed_positions = network.model.rotary_emb.rope_type in ("default", "linear", "llama3")
    return fixed_positions and not config.attention_bias and not config.mlp_bias and config.hidden_size <= WIDEST


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of a decoder layer, those that read the same input joined into one product."""

    norm_D: Tensor
    qkv: Tensor
    out: Tensor
    feed_norm_D: Tensor
    gate_up: Tensor
    down: Tensor
    activation: Callable[[Tensor], Tensor]

    @staticmethod
    def of(layer: LlamaDecoderLayer) -> _Layer:
        """Copies of the joined weights, views of the others."""
        attention, feed = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        gate_up = torch.cat([feed.gate_proj.weight, feed.up_proj.weight])
        norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        return _Layer(
            norms[0], qkv, attention.o_proj.weight.mT, norms[1], gate_up, feed.down_proj.weight.mT, feed.act_fn
        )


class LlamaSteps:
    """The state of one generation: reads the prompt when made, then one token per call. Use within inference mode."""

    def __init__(self, network: LlamaForCausalLM, prompt_BL: Tensor, real_BL: Tensor | None, columns: int) -> None:
        config, model = network.config, network.model
        rows, self._column = prompt_BL.shape
        self._network = network
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._eps: float = config.rms_norm_eps
        self._layers = [_Layer.of(layer) for layer in model.layers]
        self._cache = Cache(
            len(self._layers), rows, self._heads, model.layers[0].self_attn.head_dim, columns, network.lm_head.weight
        )
        self._cache.open(slice(0, self._column), real_BL)
        first_B1 = prompt_BL.new_zeros(1, 1) if real_BL is None else (~real_BL).sum(dim=1, keepdim=True)
        position_BS = (torch.arange(columns, device=prompt_BL.device) - first_B1).clamp_(min=0)
        cos_BSE, sin_BSE = model.rotary_emb(network.lm_head.weight, position_BS)
        self._cos_SB1E, self._sin_SB1E = (table.transpose(0, 1)[:, :, None] for table in (cos_BSE, _signed(sin_BSE)))
        self.logits_BV = self._read_prompt(prompt_BL, real_BL, position_BS[:, : self._column])

    def _read_prompt(self, prompt_BL: Tensor, real_BL: Tensor | None, position_BL: Tensor) -> Tensor:
        """Logits of the first answer token; the module's keys and values are moved to our cache."""
        theirs = DynamicCache()
        mask_BL = None if real_BL is None else real_BL.long()
        output = self._network(
            prompt_BL, attention_mask=mask_BL, position_ids=position_BL, past_key_values=theirs, logits_to_keep=1
        )
        for number, layer in enumerate(theirs.layers):
            self._cache.fill(number, self._spread(layer.keys), self._spread(layer.values))
        return output.logits[:, 0]  # type: ignore[no-any-return]

    def step(self, token_B: Tensor) -> Tensor:
        """Logits (B, V) after one more token per row."""
        rows = len(token_B)
        x_BD = functional.embedding(token_B, self._network.model.embed_tokens.weight)
        cos_B1E, sin_B1E = self._cos_SB1E[self._column], self._sin_SB1E[self._column]
        self._cache.open(slice(self._column, self._column + 1))
        for number, layer in enumerate(self._layers):
            qkv_BXE = functional.linear(self._norm(x_BD, layer.norm_D), layer.qkv).view(
                rows, self._heads + 2 * self._groups, -1
            )
            qk_BXE = qkv_BXE[:, : -self._groups]
            # Rotary positions (Su et al. 2021, Eq. 34), in the two-halves layout of transformers.
            qk_BXE = torch.addcmul(qk_BXE * cos_B1E, qk_BXE.roll(qk_BXE.shape[-1] // 2, -1), sin_B1E)
            k, v = self._spread(qk_BXE[:, self._heads :]), self._spread(qkv_BXE[:, -self._groups :])
            self._cache.write(number, self._column, k, v)
            attended = self._cache.attend(number, self._column, qk_BXE[:, : self._heads]).view(rows, -1)
            x_BD = torch.addmm(x_BD, attended, layer.out)
            gate, up = functional.linear(self._norm(x_BD, layer.feed_norm_D), layer.gate_up).chunk(2, dim=-1)
            x_BD = torch.addmm(x_BD, layer.activation(gate) * up, layer.down)
        self._column += 1
        return functional.linear(self._norm(x_BD, self._network.model.norm.weight), self._network.lm_head.weight)

    def keep(self, rows_A: Tensor) -> None:
        """Go on with some of the rows."""
        self._cache.keep(rows_A)
        if self._cos_SB1E.shape[1] > 1:
            self._cos_SB1E, self._sin_SB1E = self._cos_SB1E[:, rows_A], self._sin_SB1E[:, rows_A]

    def _norm(self, x_BD: Tensor, weight_D: Tensor) -> Tensor:
        return functional.rms_norm(x_BD, weight_D.shape, weight_D, self._eps)  # Zhang & Sennrich 2019, Eq. 4

    def _spread(self, grouped: Tensor) -> Tensor:
        """Keys or values (B, G, ...) for each of H heads (Ainslie et al. 2023)."""
        return grouped if self._groups == self._heads else grouped.repeat_interleave(self._heads // self._groups, dim=1)


def _signed(sin_BSE: Tensor) -> Tensor:
    """The sine with the sign that turns rolling by half a head into the rotation of transformers."""
    half = sin_BSE.shape[-1] // 2
    return torch.cat((-sin_BSE[..., :half], sin_BSE[..., half:]), dim=-1)
