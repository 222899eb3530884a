"""The layers of a stack for training: differentiated by hand, in memory that is used again at every step.

Fresh memory for activations and gradients, and copies of gradients to where Adam reads them, cost about a third of a
training step. Here both passes write in place, and weights' gradients are written where they belong.

Shape legend: M members, B rows, I inputs, W units of a layer, X outputs of the last layer, T predicted targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import softplus

from proxygap.fit.dynamics.network import Weights

_SILU, _SILU_BACKWARD = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input


@dataclass(frozen=True, slots=True)
class _Memory:
    """What one forward pass leaves for the backward pass, layer by layer, (M, B, W)."""

    before: list[torch.Tensor]
    after: list[torch.Tensor]


class Layers:
    """Affine layers with SiLU between, and the soft bounds of log-variances behind, as `network.forward` has them.

    One gradient step is `begin`, any number of calls, and one backward pass of autograd through all of them, which
    writes the gradients (adds, from the second call on) into ``grads``; those of the bounds are autograd's answer.

    Args:
        weights: parameters of all members; used in place.
        grads: where their gradients go, same names and shapes.
    """

    def __init__(self, weights: Weights, grads: Weights) -> None:
        self._count = sum(name.startswith("weight") for name in weights)
        self._weight, self._bias, self._grad_weight, self._grad_bias = (
            [tensors[f"{kind}_{layer}"] for layer in range(self._count)]
            for tensors in (weights, grads)
            for kind in ("weight", "bias")
        )
        self._kept: dict[tuple[int, int], _Memory] = {}
        self._scratch: dict[int, list[torch.Tensor]] = {}
        self._calls, self._fresh = 0, True

    def begin(self) -> None:
        """A new step: memory is free again, and old gradients are overwritten."""
        self._calls, self._fresh = 0, True

    def __call__(
        self, input_MBI: torch.Tensor, upper_M1T: torch.Tensor, lower_M1T: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Means and bounded log-variances (M, B, T), and all other outputs, differentiable in input and bounds."""
        told: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        told = _Differentiable.apply(input_MBI, upper_M1T, lower_M1T, self)  # type: ignore[no-untyped-call]
        return told

    def forward(self, input_MBI: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Outputs, in memory that the next step uses again, and the number of this call."""
        call, self._calls = self._calls, self._calls + 1
        memory, hidden = self._memory(call, input_MBI.shape[1]), input_MBI
        for layer in range(self._count):
            out = torch.baddbmm(self._bias[layer], hidden, self._weight[layer], out=memory.before[layer])
            if layer + 1 < self._count:
                hidden = _SILU(out, out=memory.after[layer])
        return memory.before[-1], call

    def backward(self, call: int, input_MBI: torch.Tensor, grad_MBX: torch.Tensor, *, to_input: bool) -> Any:
        """Gradients of the parameters in place, and that of the input, if asked for, as the answer."""
        memory, grad = self._kept[call, input_MBI.shape[1]], grad_MBX
        scratch = self._scratch[input_MBI.shape[1]]
        for layer in reversed(range(self._count)):
            hidden = memory.after[layer - 1] if layer else input_MBI
            self._accumulate(layer, hidden, grad)
            if layer:
                grad = torch.bmm(grad, self._weight[layer].transpose(1, 2), out=scratch[layer - 1])
                grad = _SILU_BACKWARD(grad, memory.before[layer - 1], grad_input=grad)
        self._fresh = False
        return torch.bmm(grad, self._weight[0].transpose(1, 2)) if to_input else None

    def _accumulate(self, layer: int, hidden: torch.Tensor, grad: torch.Tensor) -> None:
        weight, bias = self._grad_weight[layer], self._grad_bias[layer]
        if self._fresh:
            torch.bmm(hidden.transpose(1, 2), grad, out=weight)
            torch.sum(grad, dim=1, keepdim=True, out=bias)
        else:
            weight.baddbmm_(hidden.transpose(1, 2), grad)
            bias.add_(grad.sum(dim=1, keepdim=True))

    def _memory(self, call: int, rows: int) -> _Memory:
        """Activations of one call of a step with so many rows; gradients of them are shared by all calls."""
        if (call, rows) not in self._kept:
            before, after = (
                [bias.new_empty(len(bias), rows, bias.shape[-1]) for bias in self._bias[:last]]
                for last in (self._count, self._count - 1)
            )
            self._kept[call, rows] = _Memory(before, after)
        if rows not in self._scratch:
            self._scratch[rows] = [bias.new_empty(len(bias), rows, bias.shape[-1]) for bias in self._bias[:-1]]
        return self._kept[call, rows]


class _Differentiable(torch.autograd.Function):
    """`Layers` as autograd sees them: a function of the input and the bounds."""

    @staticmethod
    def forward(ctx: Any, input_MBI: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor, layers: Layers) -> Any:
        out_MBX, ctx.call = layers.forward(input_MBI)
        out_MBX, targets = out_MBX.detach(), upper.shape[-1]
        ctx.layers, ctx.rows = layers, input_MBI.detach()
        ctx.below = upper - out_MBX[..., targets : 2 * targets]
        ctx.above = upper - softplus(ctx.below) - lower
        return out_MBX[..., :targets], lower + softplus(ctx.above), out_MBX[..., 2 * targets :]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        grad_mean, grad_log_var, grad_rest = grads
        inner = grad_log_var * ctx.above.sigmoid()  # what reaches the first softplus: softplus' is sigmoid
        raw = inner * ctx.below.sigmoid()
        to_upper, to_lower = (
            (more - less).sum(dim=1, keepdim=True) for more, less in ((inner, raw), (grad_log_var, inner))
        )
        grad_MBX = torch.cat([grad_mean, raw, grad_rest], dim=-1)
        to_input = ctx.layers.backward(ctx.call, ctx.rows, grad_MBX, to_input=ctx.needs_input_grad[0])
        return to_input, to_upper, to_lower, None
