"""One generator per named component, derived from (experiment seed, component name), never from call order."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def derived_seed(seed: int, component: str) -> int:
    """A 63-bit seed for a component: stable across processes, machines and Python's hash seed."""
    digest = hashlib.sha256(f"{seed}/{component}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, component: str) -> np.random.Generator:
    """A NumPy generator of its own for ``component``."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, component)))


def torch_generator(seed: int, component: str, device: str = "cpu") -> torch.Generator:
    """A torch generator of its own for ``component`` on ``device``."""
    import torch

    return torch.Generator(device=device).manual_seed(derived_seed(seed, component))


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """The generator's position as plain JSON-able data."""
    state = dict(rng.bit_generator.state)
    return {**state, "state": {name: str(number) for name, number in state["state"].items()}}


def restore_generator(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """Put a generator back to a position taken by `generator_state`."""
    numbers = {name: int(number) for name, number in state["state"].items()}
    rng.bit_generator.state = {**state, "state": numbers}
