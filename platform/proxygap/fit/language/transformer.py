"""A small causal transformer: pre-norm blocks, learned positions, no biases, one product for queries, keys and values.

Shape legend: B rows, L prompt tokens, T answer tokens, S = L + T - 1 tokens read, V vocabulary, D width, H heads,
E = D / H width of a head, R = B * H.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Continuation, Generation, ItemSpec
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.cache import Cache
from proxygap.fit.language.sampling import Draws, in_chunks, real_prompt
from proxygap.fit.language.settings import TinyTransformerLanguageModel

INITIAL_STD = 0.02
"""Deviation of fresh weights (Radford et al. 2019, GPT-2); layers that write to the residual stream get less."""


class Block(nn.Module):
    """Attention and feed-forward, each on the normalized stream and added to it."""

    def __init__(self, settings: TinyTransformerLanguageModel, generator: torch.Generator) -> None:
        super().__init__()
        width, inner = settings.width, settings.feed_forward * settings.width
        residual_std = INITIAL_STD / math.sqrt(2 * settings.layers)  # Radford et al. 2019, section 2.3
        self.heads = settings.heads
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = normal((3 * width, width), INITIAL_STD, generator)
        self.attention_out = normal((width, width), residual_std, generator)
        self.feed_norm = nn.Parameter(torch.ones(width))
        self.feed_in = normal((inner, width), INITIAL_STD, generator)
        self.feed_out = normal((width, inner), residual_std, generator)

    def forward(self, x_BSD: Tensor, mask_B1SS: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The stream after the block, and the keys and values (B, H, S, E) that later tokens attend to."""
        rows, seen, width = x_BSD.shape
        qkv_BSI = functional.linear(norm(x_BSD, self.attention_norm), self.qkv)
        q, k, v = qkv_BSI.view(rows, seen, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1SS, is_causal=mask_B1SS is None)
        joined_BSD = attended.transpose(1, 2).reshape(rows, seen, width)
        return self._feed(x_BSD + functional.linear(joined_BSD, self.attention_out)), k, v

    def step(self, x_BD: Tensor, cache: Cache, layer: int, column: int) -> Tensor:
        """The stream of one more token after the block, with its keys and values written to ``cache``."""
        rows, width = x_BD.shape
        qkv_BI = functional.linear(norm(x_BD, self.attention_norm), self.qkv)
        q, k, v = qkv_BI.view(rows, 3, self.heads, width // self.heads).unbind(1)
        cache.write(layer, column, k, v)
        attended_BD = cache.attend(layer, column, q).view(rows, width)
        return self._feed(torch.addmm(x_BD, attended_BD, self.attention_out.mT))

    def _feed(self, x: Tensor) -> Tensor:
        hidden = functional.silu(functional.linear(norm(x, self.feed_norm), self.feed_in))
        return x + functional.linear(hidden, self.feed_out)


class TinyTransformer(nn.Module):
    """The language model itself; ``continuation`` reads whole sequences, ``generate`` one token at a time."""

    def __init__(
        self, settings: TinyTransformerLanguageModel, spec: ItemSpec, *, end_token: int | None, seed: int
    ) -> None:
        super().__init__()
        generator = torch_generator(seed, "language/tiny_transformer/init")
        self.settings, self.spec, self.end_token = settings, spec, end_token
        self.longest = spec.prompt_length + spec.max_tokens - 1
        self.token_VD = normal((spec.vocabulary, settings.width), INITIAL_STD, generator)
        self.position_SD = normal((self.longest, settings.width), INITIAL_STD, generator)
        self.blocks = nn.ModuleList(Block(settings, generator) for _ in range(settings.layers))
        self.final_norm = nn.Parameter(torch.ones(settings.width))
        self.head_VD = None if settings.tied else normal((spec.vocabulary, settings.width), INITIAL_STD, generator)

    def continuation(self, prompt_BL: Tensor, token_BT: Tensor) -> Continuation:
        """Logits (B, T, V) and normalized final states (B, T, D). Raises InvalidExperiment for too long sequences."""
        answer = token_BT.shape[1]
        seen_BS = torch.cat((prompt_BL, token_BT[:, :-1]), dim=1)
        self._check_length(seen_BS.shape[1])
        real_BL = real_prompt(prompt_BL, self.spec.pad_token)
        x_BSD = self._embed(seen_BS, real_BL)
        mask_B1SS = None if real_BL is None else causal_mask(real_BL, answer - 1)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_B1SS)[0]
        hidden_BTD = norm(x_BSD[:, -answer:], self.final_norm)
        return Continuation(self._logits(hidden_BTD), hidden_BTD)

    forward = continuation

    def generate(
        self, prompt_BL: Tensor, max_tokens: int, *, generator: torch.Generator, temperature: float = 1.0
    ) -> Generation:
        """Sample answers with a cache of keys and values, until all have ended.

        Raises:
            InvalidExperiment: a sequence longer than the model has positions for.
            NonFiniteValue: no distribution to draw from.
        """
        columns = prompt_BL.shape[1] + max_tokens - 1
        self._check_length(columns)

        def generate(prompt_BL: Tensor) -> Generation:
            rows, device = len(prompt_BL), prompt_BL.device
            draws = Draws(
                rows, max_tokens, end_token=self.end_token, generator=generator, temperature=temperature, device=device
            )
            with torch.inference_mode():
                self._draw(prompt_BL, draws, columns)
            return draws.generation(self.spec.pad_token)

        return in_chunks(generate, prompt_BL)

    def _draw(self, prompt_BL: Tensor, draws: Draws, columns: int) -> None:
        rows, prompt = prompt_BL.shape
        blocks = cast(Sequence[Block], self.blocks)
        real_BL = real_prompt(prompt_BL, self.spec.pad_token)
        sizes = self.settings.heads, self.settings.width // self.settings.heads
        cache = Cache(len(self.blocks), rows, *sizes, columns, self.token_VD)
        cache.open(slice(0, prompt), real_BL)
        x_BD = self._read_prompt(prompt_BL, real_BL, cache)
        first_B = None if real_BL is None else (~real_BL).sum(dim=1)
        for column in range(prompt, columns + 1):
            token_B1 = draws.next(self._logits(norm(x_BD, self.final_norm)))
            if draws.over:
                return
            rows_A = draws.leave_out_ended()
            if rows_A is not None:
                cache.keep(rows_A)
                token_B1, first_B = token_B1[rows_A], None if first_B is None else first_B[rows_A]
            position = self.position_SD[column] if first_B is None else self.position_SD[column - first_B]
            x_BD = functional.embedding(token_B1[:, 0], self.token_VD) + position
            cache.open(slice(column, column + 1))
            for layer, block in enumerate(blocks):
                x_BD = block.step(x_BD, cache, layer, column)

    def _read_prompt(self, prompt_BL: Tensor, real_BL: Tensor | None, cache: Cache) -> Tensor:
        """The stream (B, D) at the prompt's last token; keys and values go to the cache."""
        x_BSD = self._embed(prompt_BL, real_BL)
        mask_B1SS = None if real_BL is None else causal_mask(real_BL, 0)
        for layer, block in enumerate(self.blocks):
            x_BSD, k, v = block(x_BSD, mask_B1SS)
            cache.fill(layer, k, v)
        return x_BSD[:, -1]

    def _embed(self, seen_BS: Tensor, real_BL: Tensor | None) -> Tensor:
        """Tokens and positions; a row's positions begin with 0 at its first real token."""
        x_BSD = functional.embedding(seen_BS, self.token_VD)
        columns = seen_BS.shape[1]
        if real_BL is None:
            return x_BSD + self.position_SD[:columns]
        first_B1 = (~real_BL).sum(dim=1, keepdim=True)
        position_BS = (torch.arange(columns, device=seen_BS.device) - first_B1).clamp_(min=0)
        return x_BSD + functional.embedding(position_BS, self.position_SD)

    def _logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.token_VD if self.head_VD is None else self.head_VD)

    def _check_length(self, columns: int) -> None:
        if columns > self.longest:
            raise InvalidExperiment(
                f"this transformer reads at most {self.longest} tokens, from the task's item_spec",
                field="tokens",
                value=columns,
                remedy="Raise the task's max_tokens, or ask for shorter answers",
            )


def causal_mask(real_BL: Tensor, more: int) -> Tensor:
    """What may be attended to, (B, 1, S, S) for S = L + ``more``: the past without padding, and always oneself."""
    real_BS = functional.pad(real_BL, (0, more), value=True)
    columns = real_BS.shape[1]
    past_SS = torch.ones(columns, columns, dtype=torch.bool, device=real_BL.device).tril()
    itself_SS = torch.eye(columns, dtype=torch.bool, device=real_BL.device)
    return (past_SS & real_BS[:, None, None]) | itself_SS


def norm(x: Tensor, weight_D: Tensor) -> Tensor:
    """Layer normalization without a shift (Ba et al. 2016)."""
    return functional.layer_norm(x, weight_D.shape, weight_D)


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> nn.Parameter:
    """A parameter drawn from a centered normal distribution."""
    return nn.Parameter(torch.empty(shape).normal_(0.0, std, generator=generator))
