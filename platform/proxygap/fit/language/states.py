"""Weights of a module to and from a `State`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from proxygap.base.errors import CheckpointRefused
from proxygap.base.protocols import State


def module_state(module: nn.Module) -> State:
    """A copy of all parameters and saved buffers, on the CPU; shared tensors are kept once per name.

    NumPy knows no bfloat16: such tensors travel as float32, which holds them exactly.
    """
    return State({name: _array(tensor) for name, tensor in module.state_dict().items()}, {})


def load_module_state(module: nn.Module, state: State) -> None:
    """Put the weights of `module_state` into a module of the same shape, in place.

    Raises:
        CheckpointRefused: names or shapes differ from the module's.
    """
    own = module.state_dict()
    wrong = sorted(own.keys() ^ state.arrays.keys())
    wrong += [name for name, tensor in own.items() if name not in wrong and tensor.shape != state.arrays[name].shape]
    if wrong:
        raise CheckpointRefused(
            f"these weights do not fit the {type(module).__name__}",
            field="weights",
            value=wrong[:8],
            remedy="Load them with the settings that they were saved with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.array(state.arrays[name], order="C")))


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy().copy()
