"""A tiny hosted model whose answers are known beforehand, and the clauses that every `HostedModel` must keep.

Shape legend: B rows, F features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import Arrays, HostedModel, State
from proxygap.serve.host import HostRecipe


class Affine:
    """``y_BF = factor * x_BF + shift``; ``fit`` adds the mean of ``x_BF`` to the factor and counts a version.

    Methods: ``apply`` and ``checked`` (batchable; ``checked`` refuses NaN) and ``fit`` (an update). With the option
    ``seconds`` a method sleeps first; with ``once``, only where that file does not exist yet, and then creates it.
    """

    def __init__(self, *, factor: float, shift: float = 0.0, device: str = "cpu") -> None:
        self.device = device
        self._factor, self._shift, self._fits = np.float64(factor), np.float64(shift), 0

    def call(self, method: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> Arrays:
        """Run ``apply``, ``checked`` or ``fit``. Raises NonFiniteValue from ``checked``."""
        _sleep(options)
        x_BF = arrays["x_BF"]
        if method == "checked" and not np.isfinite(x_BF).all():
            raise NonFiniteValue("the input is not finite", field="x_BF", value=float("nan"), remedy="check the input")
        if method == "fit":
            self._factor, self._fits = self._factor + x_BF.mean(), self._fits + 1
            return {"fits": np.asarray(self._fits)}
        return {"y_BF": self._factor * x_BF + self._shift}

    def batchable(self, method: str) -> bool:
        """Rows of ``apply`` and ``checked`` are independent of each other."""
        return method in ("apply", "checked")

    def state(self) -> State:
        """Factor and shift as arrays, the number of fits as structure."""
        return State({"factor": np.array(self._factor), "shift": np.array(self._shift)}, {"fits": self._fits})

    def load_state(self, state: State) -> None:
        """Become the model that ``state`` was taken from."""
        self._factor, self._shift = np.float64(state.arrays["factor"]), np.float64(state.arrays["shift"])
        self._fits = int(state.structure["fits"])


def _sleep(options: Mapping[str, Any]) -> None:
    once = Path(options["once"]) if "once" in options else None
    if "seconds" not in options or (once is not None and once.exists()):
        return
    if once is not None:
        once.touch()
    time.sleep(float(options["seconds"]))


def affine_recipe(factor: float, shift: float = 0.0) -> HostRecipe:
    """The recipe of an `Affine`."""
    return HostRecipe("proxygap.testing.hosted:Affine", {"factor": factor, "shift": shift})


def check_pure(make: Callable[[], HostedModel], method: str, arrays: Arrays, options: Mapping[str, Any]) -> None:
    """Clause: the same call on the same version gives the same answer, and changes neither the inputs nor the state."""
    model = make()
    before, inputs = model.state(), {name: array.copy() for name, array in arrays.items()}
    first, second = model.call(method, arrays, options), model.call(method, arrays, options)
    assert_arrays_equal(first, second)
    assert_arrays_equal(arrays, inputs)
    assert_arrays_equal(model.state().arrays, before.arrays)


def check_read_only_inputs(
    make: Callable[[], HostedModel], method: str, arrays: Arrays, options: Mapping[str, Any]
) -> None:
    """Clause: inputs may be read-only, as arrays out of Ray's object store are."""
    frozen = {name: array.copy() for name, array in arrays.items()}
    for array in frozen.values():
        array.flags.writeable = False
    assert_arrays_equal(make().call(method, frozen, options), make().call(method, arrays, options))


def check_rows_independent(
    make: Callable[[], HostedModel], method: str, arrays: Arrays, options: Mapping[str, Any]
) -> None:
    """Clause of a batchable method: rows asked together equal rows asked in two parts, to float tolerance."""
    model = make()
    assert model.batchable(method), f"{method} is not batchable"
    whole = model.call(method, arrays, options)
    cut = len(next(iter(arrays.values()))) // 2
    parts = [
        model.call(method, {k: v[rows] for k, v in arrays.items()}, options) for rows in (slice(cut), slice(cut, None))
    ]
    for name, array in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(array, joined, rtol=1e-5, atol=1e-6, err_msg=name)


def check_state_round_trip(
    make: Callable[[], HostedModel], update: str, method: str, arrays: Arrays, options: Mapping[str, Any]
) -> None:
    """Clause: a state loaded into a fresh model continues bit for bit, and is not changed by later updates."""
    model, fresh = make(), make()
    model.call(update, arrays, options)
    taken = model.state()
    kept = {name: array.copy() for name, array in taken.arrays.items()}
    fresh.load_state(taken)
    for each in (model, fresh):
        each.call(update, arrays, options)
    assert_arrays_equal(fresh.call(method, arrays, options), model.call(method, arrays, options))
    assert_arrays_equal(taken.arrays, kept)


def assert_arrays_equal(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> None:
    """The same names and the same bits."""
    if sorted(left) != sorted(right):
        raise AssertionError(f"names differ: {sorted(left)} and {sorted(right)}")
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)
