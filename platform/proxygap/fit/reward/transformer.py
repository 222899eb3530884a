"""A small causal transformer with a scalar head: all members in one stack, written out as batched matrix products.

Shape legend: M members, R rows (items), S columns of a sequence (prompt then answer), D width, E heads, K width of a
head, V vocabulary, P floats of one member's parameters.

Only the last real token is scored, so the last block computes keys and values everywhere but queries, attention and
its MLP at that token alone: with one block nearly all the MLP's work is gone, and no number changes.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Items, ItemSpec
from proxygap.fit.reward.items import token_columns
from proxygap.fit.reward.networks import Columns, Initial, Layout, Leaf, head_scores, stacked_leaves
from proxygap.fit.reward.settings import TinyNetwork

_HIDDEN = -1e9
"""Added to the attention logit of a column that must not be seen."""
_INITIAL_STD = 0.02
"""Deviation of fresh embeddings, as GPT-2 and Llama have it, times `_EMBEDDING_GAIN`."""
_EMBEDDING_GAIN = 5.0
"""A narrow network needs embeddings that reach beyond the noise of its first updates."""


class TinyTransformer:
    """Pre-norm blocks (layer norm without gain, attention without bias, SiLU MLP), learned positions by column.

    Prompts are padded on the left, so an answer starts in the same column for every prompt; padding is not attended
    to. Raises InvalidExperiment for items without tokens.
    """

    frozen: frozenset[str] = frozenset()
    head = frozenset({"head_weight", "head_bias"})
    normalized = 0

    def __init__(self, spec: ItemSpec, settings: TinyNetwork) -> None:
        if spec.vocabulary == 0:
            raise InvalidExperiment(
                "the task's items have no tokens",
                field="fit.kind",
                value="transformer_reward",
                remedy="use mlp_reward, or a task whose items are sequences",
            )
        self._spec, self.settings = spec, settings
        width, hidden = settings.width, settings.feedforward
        shapes: dict[str, tuple[int, ...]] = {
            "token": (spec.vocabulary, width),
            "position": (spec.prompt_length + spec.max_tokens, width),
        }
        for layer in range(settings.layers):
            shapes |= {
                f"query_{layer}": (width, width),
                f"key_value_{layer}": (width, 2 * width),
                f"attended_{layer}": (width, width),
                f"expand_{layer}": (width, hidden),
                f"contract_{layer}": (hidden, width),
            }
        self.layout = Layout(shapes | {"head_weight": (width, 1), "head_bias": (1, 1)})

    def widest(self, rows: int) -> int:
        """Keys and values, or the hidden layer of an MLP that is not the last, at every column."""
        inner = self.settings.feedforward if self.settings.layers > 1 else 0
        return rows * self.layout.shapes["position"][0] * max(2 * self.settings.width, inner)

    def initial(self, rng: np.random.Generator) -> Initial:
        """Fresh weights of one member: normal; matrices of variance 1 / fan_in, into the stream less by the depth."""
        depth = math.sqrt(2.0 * self.settings.layers)
        drawn: Initial = {}
        for name, shape in self.layout.shapes.items():
            scale = _EMBEDDING_GAIN * _INITIAL_STD if name in ("token", "position") else 1.0 / math.sqrt(shape[0])
            scale /= depth if name.startswith(("attended", "contract")) else 1.0
            drawn[name] = (rng.normal(size=shape) * (0.0 if name == "head_bias" else scale)).astype(np.float32)
        return drawn

    def columns(self, items: Items) -> dict[str, torch.Tensor]:
        """``token`` (B, S), ``last`` (B,), ``first`` (B,): see `token_columns`."""
        return token_columns(items, self._spec)

    def bind(self, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None = None) -> BoundTransformer:
        """Scores by these weights."""
        return BoundTransformer(self, flat_MP, grad_MP)


class BoundTransformer:
    """`TinyTransformer` bound to weights."""

    def __init__(self, network: TinyTransformer, flat_MP: torch.Tensor, grad_MP: torch.Tensor | None) -> None:
        self._layers, self._heads = network.settings.layers, network.settings.heads
        self._w, self.leaves = stacked_leaves(network.layout, flat_MP, grad_MP, ("token",))
        # A token table per member: looking up rows then needs no copy of the stack, and no gradient of its size.
        self._tables = list(self._w.pop("token").unbind())
        if grad_MP is not None:
            grads = network.layout.stacked(grad_MP)["token"].unbind()
            self.leaves += [Leaf(table.requires_grad_(), grad) for table, grad in zip(self._tables, grads, strict=True)]

    def __call__(self, columns: Columns) -> torch.Tensor:
        """Raw scores (M, R) of token (M, R, S), last (M, R), first (M, R)."""
        token_MRS, last_MR, first_MR = columns["token"], columns["last"], columns["first"]
        bias = self._causal(token_MRS, first_MR)
        x = self._embedded(token_MRS)
        for layer in range(self._layers - 1):
            x = self._block(layer, x, bias)
        x_MRD = self._last_block(self._layers - 1, x, last_MR, first_MR)
        state_MRD = torch.nn.functional.layer_norm(x_MRD, x_MRD.shape[-1:])
        return head_scores(state_MRD, self._w["head_weight"], self._w["head_bias"])

    def next_token_loss(self, columns: Columns) -> torch.Tensor:
        """Mean negative log-likelihood of each real token after the first, in nats, shape (M,); embeddings are tied."""
        token_MRS, last_MR, first_MR = columns["token"], columns["last"], columns["first"]
        bias, x = self._causal(token_MRS, first_MR), self._embedded(token_MRS)
        for layer in range(self._layers):
            x = self._block(layer, x, bias)
        members, rows, length, width = x.shape
        state_MXD = torch.nn.functional.layer_norm(x, (width,))[:, :, :-1].reshape(members, -1, width)
        logits_MXV = torch.stack([state @ table.T for state, table in zip(state_MXD, self._tables, strict=True)])
        target_MX1 = token_MRS[:, :, 1:].reshape(members, -1, 1)
        nll_MX = logits_MXV.logsumexp(dim=-1) - logits_MXV.gather(-1, target_MX1)[..., 0]
        column_S = torch.arange(1, length, device=token_MRS.device)
        real_MRS = (column_S > first_MR[..., None]) & (column_S <= last_MR[..., None])
        nll_MRS = nll_MX.view(members, rows, length - 1) * real_MRS
        return nll_MRS.sum(dim=(1, 2)) / real_MRS.sum(dim=(1, 2))

    def _embedded(self, token_MRS: torch.Tensor) -> torch.Tensor:
        """Token plus position, (M, R, S, D)."""
        tokens = torch.stack(
            [torch.nn.functional.embedding(token, table) for token, table in zip(token_MRS, self._tables, strict=True)]
        )
        return tokens + self._w["position"][:, None, : token_MRS.shape[-1]]

    def _causal(self, token_MRS: torch.Tensor, first_MR: torch.Tensor) -> torch.Tensor | None:
        """Additive mask of attention (M, R, 1, S, S) where a prompt has padding; None where causality is all.

        A padded column sees itself, so that its softmax is defined; no real column sees it.
        """
        if self._layers == 1 or not bool(first_MR.any()):
            return None
        column_S = torch.arange(token_MRS.shape[-1], device=token_MRS.device)
        seen = (column_S <= column_S[:, None]) & (column_S >= first_MR[..., None, None])
        return torch.where(seen | (column_S == column_S[:, None]), 0.0, _HIDDEN)[:, :, None]

    def _block(self, layer: int, x_MRSD: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A whole block, at every column."""
        members, rows, length, width = x_MRSD.shape
        normal = torch.nn.functional.layer_norm(x_MRSD, (width,)).view(members, rows * length, width)
        query = self._split(torch.bmm(normal, self._w[f"query_{layer}"]), rows, length)
        key, value = (
            self._split(part, rows, length)
            for part in torch.bmm(normal, self._w[f"key_value_{layer}"]).chunk(2, dim=-1)
        )
        mask = None if bias is None else bias.reshape(members * rows, 1, length, length)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=bias is None
        )
        mixed_MXD = mixed.transpose(1, 2).reshape(members, rows * length, width)
        x = x_MRSD.view(members, rows * length, width) + torch.bmm(mixed_MXD, self._w[f"attended_{layer}"])
        return self._feedforward(layer, x).view(members, rows, length, width)

    def _last_block(
        self, layer: int, x_MRSD: torch.Tensor, last_MR: torch.Tensor, first_MR: torch.Tensor
    ) -> torch.Tensor:
        """The block at each row's last real column only, (M, R, D)."""
        members, rows, length, width = x_MRSD.shape
        normal = torch.nn.functional.layer_norm(x_MRSD, (width,))
        at_MR1D = last_MR[..., None, None].expand(-1, -1, 1, width)
        query_MRD = torch.bmm(normal.gather(2, at_MR1D)[:, :, 0], self._w[f"query_{layer}"])
        pair = torch.bmm(normal.view(members, rows * length, width), self._w[f"key_value_{layer}"])
        shape = (members * rows, length, 2, self._heads, width // self._heads)
        key, value = pair.view(shape).permute(2, 0, 3, 1, 4)  # each (M * R, E, S, K)
        query = query_MRD.view(members * rows, self._heads, 1, -1)
        column_S = torch.arange(length, device=x_MRSD.device)
        seen_MRS = (column_S <= last_MR[..., None]) & (column_S >= first_MR[..., None])
        logit = (query @ key.transpose(-1, -2)) * (width // self._heads) ** -0.5
        logit = logit + torch.where(seen_MRS, 0.0, _HIDDEN).view(members * rows, 1, 1, length)
        mixed_MRD = (logit.softmax(dim=-1) @ value).view(members, rows, width)
        x_MRD = x_MRSD.gather(2, at_MR1D)[:, :, 0] + torch.bmm(mixed_MRD, self._w[f"attended_{layer}"])
        return self._feedforward(layer, x_MRD)

    def _feedforward(self, layer: int, x_MXD: torch.Tensor) -> torch.Tensor:
        """The MLP of a block, residual included."""
        normal = torch.nn.functional.layer_norm(x_MXD, x_MXD.shape[-1:])
        hidden = torch.nn.functional.silu(torch.bmm(normal, self._w[f"expand_{layer}"]))
        return x_MXD + torch.bmm(hidden, self._w[f"contract_{layer}"])

    def _split(self, x_MXD: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        """(M, R * S, D) as heads (M * R, E, S, K)."""
        members, _, width = x_MXD.shape
        return x_MXD.reshape(members * rows, length, self._heads, width // self._heads).transpose(1, 2)
