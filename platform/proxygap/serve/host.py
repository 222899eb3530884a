"""What stands around one model in a host: its recipe, versions, request ids. Without Ray.

It does not know what the model is: a dynamics ensemble, a reward model and a policy are served by the same shell.
`proxygap.serve.tenants` keeps several shells in one process, `proxygap.serve.actor` makes an actor of them.
"""

from __future__ import annotations

import importlib
import math
import sys
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.errors import HostFailed
from proxygap.base.protocols import Arrays, HostedModel, State
from proxygap.serve.devices import device_for

REMEMBERED_UPDATES = 4
"""Answers to updating requests that a host keeps, so that a repeated request id is not run again."""


@dataclass(frozen=True, slots=True)
class HostRecipe:
    """How to build a model anew, anywhere: what a restarted host starts from.

    Args:
        factory: ``module:attribute`` of a callable that takes ``arguments`` and ``device``, gives a `HostedModel`.
        arguments: its JSON-able keyword arguments.
        threads: torch threads of the host; 0 leaves them as they are.
    """

    factory: str
    arguments: Mapping[str, Any]
    threads: int = 0

    def build(self, device: str = "cpu") -> HostedModel:
        """A fresh model on ``device``. Raises HostFailed for a factory that cannot be imported."""
        module, _, attribute = self.factory.partition(":")
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise HostFailed(
                f"the factory cannot be imported ({error})",
                field="factory",
                value=self.factory,
                remedy="name it as module:attribute, importable on every node",
            ) from error
        model: HostedModel = factory(**self.arguments, device=device)
        self.use_threads()
        return model

    def use_threads(self) -> None:
        """Give this process the torch threads that the model is to run with."""
        torch = sys.modules.get("torch")  # a model without torch does not load it
        if self.threads and torch is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a hosted model, for a ``version`` or, with None, for whichever is loaded.

    With ``next_version`` it is an update: it moves the model to that version. ``owner`` says whose model is meant where
    a host holds several; ``patience_s`` is the longest that a batch with it may run before the host counts as hung.
    """

    id: str
    method: str
    version: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    next_version: int | None = None
    owner: str = ""
    patience_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a host; an update's also carries the state it led to. Not for use when ``stale``."""

    arrays: Arrays
    incarnation: str
    loaded_version: int | None
    stale: bool = False
    state: State | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a host says about itself and the model of the owner who asks.

    ``busy_s`` is how long the batch that runs now has been running, if it is the owner's or longer than it may be;
    ``others_s`` is the same for a batch of another owner that keeps its time. ``device`` is that of the model.
    """

    pid: int
    node_id: str
    incarnation: str
    version: int | None
    requests: int
    batches: int
    rows: int
    most_waiting: int
    busy_s: float
    others_s: float = 0.0
    restarts: int = 0
    device: str = ""


class HostedShell:
    """A model with its version: answers only for what is loaded, runs an update once per request id. Without Ray."""

    def __init__(self, recipe: HostRecipe, *, gpus: float = 0.0, incarnation: str = "") -> None:
        self.recipe, self._gpus, self.device = recipe, gpus, ""
        self._model: HostedModel | None = None
        self._updates: OrderedDict[str, Reply] = OrderedDict()
        self.incarnation = incarnation or uuid.uuid4().hex
        self.version: int | None = None
        self.requests = self.batches = self.rows = 0

    def load(self, version: int, state: State | None) -> str:
        """Become ``version``: ``state``, or the model as the recipe builds it for None. Returns the incarnation.

        Raises what `device_for` and `HostRecipe.build` raise.
        """
        self.version = None
        if self._model is None or state is None:
            self.device = device_for(self._gpus)
            self._model = self.recipe.build(self.device)
        if state is not None:
            self._model.load_state(state)
        self.version = version
        return self.incarnation

    def batchable(self, method: str) -> bool:
        """Whether the model allows rows of several requests for ``method`` to run together."""
        return self._model is not None and self._model.batchable(method)

    def run(self, requests: Sequence[Request], arrays: Sequence[Mapping[str, NDArray[Any]]]) -> list[Reply]:
        """Answer requests that may run together (equal method, version, options). Model errors pass through."""
        first, model = requests[0], self._model
        self.requests += len(requests)
        if first.id in self._updates:
            return [self._updates[first.id]]
        if model is None or self.version is None or first.version not in (None, self.version):
            return [Reply({}, self.incarnation, self.version, stale=True) for _ in requests]
        if first.next_version is not None:
            return [self._update(model, first, first.next_version, arrays[0])]
        return [Reply(part, self.incarnation, self.version) for part in self._ask(model, first, arrays)]

    def _update(
        self, model: HostedModel, request: Request, next_version: int, arrays: Mapping[str, NDArray[Any]]
    ) -> Reply:
        self.version = None  # an update that fails halfway leaves no version to answer for
        answer = model.call(request.method, arrays, request.options)
        self.version = next_version
        self.batches += 1
        reply = Reply(answer, self.incarnation, next_version, state=model.state())
        self._updates[request.id] = reply
        if len(self._updates) > REMEMBERED_UPDATES:
            self._updates.popitem(last=False)
        return reply

    def _ask(self, model: HostedModel, request: Request, arrays: Sequence[Mapping[str, NDArray[Any]]]) -> list[Arrays]:
        counts = [row_count(part) for part in arrays]
        self.batches, self.rows = self.batches + 1, self.rows + sum(counts)
        if len(arrays) == 1:
            return [model.call(request.method, arrays[0], request.options)]
        together = {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}
        return split_rows(model.call(request.method, together, request.options), counts)


def row_count(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Length of the first axis; 0 without arrays, or where the first has no axis."""
    first = next(iter(arrays.values()), None)
    return 0 if first is None or first.ndim == 0 else len(first)


def split_rows(arrays: Arrays, counts: Sequence[int]) -> list[Arrays]:
    """Cut every array along its first axis into stretches of ``counts`` rows. Raises ValueError for other rows."""
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != sum(counts):
            raise ValueError(f"{name}{array.shape} of a batchable method must have {sum(counts)} rows first")
    borders = np.cumsum(counts)[:-1]
    pieces = {name: np.split(array, borders) for name, array in arrays.items()}
    return [{name: pieces[name][index] for name in arrays} for index in range(len(counts))]
