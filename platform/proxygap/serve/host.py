"""What stands around a model in a Ray actor: versions, request ids, dynamic batching, health.

`HostedShell` is a plain class without Ray; `HostActor` is the event loop around it that Ray turns into an actor.
Neither knows what the model is: a dynamics ensemble, a reward model and a policy are served by the same two.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxygap.base.config import canonical_json
from proxygap.base.errors import HostFailed
from proxygap.base.protocols import Arrays, HostedModel, State

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
        if self.threads and (torch := sys.modules.get("torch")) is not None:  # a model without torch does not load it
            torch.set_num_threads(self.threads)
        return model


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a hosted model, for a ``version`` or, with None, for whichever is loaded.

    With ``next_version`` it is an update: it moves the model to that version.
    """

    id: str
    method: str
    version: int | None
    options: Mapping[str, Any] = field(default_factory=dict)
    next_version: int | None = None


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
    """What a host says about itself. ``busy_s`` is how long the batch that runs now has been running."""

    pid: int
    node_id: str
    incarnation: str
    version: int | None
    requests: int
    batches: int
    rows: int
    most_waiting: int
    busy_s: float
    restarts: int = 0


class HostedShell:
    """A model with its version: answers only for what is loaded, runs an update once per request id. Without Ray."""

    def __init__(self, recipe: HostRecipe, *, gpus: float = 0.0) -> None:
        self._recipe, self._device = recipe, "cuda" if gpus > 0 else "cpu"
        self._model: HostedModel | None = None
        self._updates: OrderedDict[str, Reply] = OrderedDict()
        self.incarnation = uuid.uuid4().hex
        self.version: int | None = None
        self.requests = self.batches = self.rows = 0
        self._running_since: float | None = None

    @property
    def busy_s(self) -> float:
        """Seconds that the batch of this moment has been running; 0 when idle."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def load(self, version: int, state: State | None) -> str:
        """Become ``version``: ``state``, or the model as the recipe builds it for None. Returns the incarnation."""
        self.version = None
        if self._model is None or state is None:
            self._model = self._recipe.build(self._device)
        if state is not None:
            self._model.load_state(state)
        self.version = version
        return self.incarnation

    def batchable(self, method: str) -> bool:
        """Whether the model allows rows of several requests for ``method`` to run together."""
        return self._model is not None and self._model.batchable(method)

    def run(self, requests: Sequence[Request], arrays: Sequence[Mapping[str, NDArray[Any]]]) -> list[Reply]:
        """Answer requests that may run together (equal method, version and options). Model errors pass through."""
        first, model = requests[0], self._model
        self.requests += len(requests)
        if first.id in self._updates:
            return [self._updates[first.id]]
        if model is None or self.version is None or first.version not in (None, self.version):
            return [Reply({}, self.incarnation, self.version, stale=True) for _ in requests]
        self._running_since = time.monotonic()
        try:
            if first.next_version is not None:
                return [self._update(model, first, first.next_version, arrays[0])]
            return [Reply(part, self.incarnation, self.version) for part in self._ask(model, first, arrays)]
        finally:
            self._running_since = None

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


@dataclass(slots=True)
class _Waiting:
    """A request in the queue of a host, and the future its caller waits on."""

    request: Request
    arrays: Mapping[str, NDArray[Any]]
    future: asyncio.Future[Reply]

    @property
    def key(self) -> str:
        """Equal for requests that may run together."""
        columns = sorted((name, array.dtype.str, array.shape[1:]) for name, array in self.arrays.items())
        request = self.request
        return f"{request.method}@{request.version}/{canonical_json(dict(request.options))}/{columns}"


class HostActor:
    """The event loop of a host: requests queue here, one worker thread runs them, in batches where allowed."""

    def __init__(self, recipe: HostRecipe, name: str, gpus: float, max_batch: int) -> None:
        self._shell, self._name, self._max_batch = HostedShell(recipe, gpus=gpus), name, max_batch
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._queue: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._most_waiting = 0

    def __repr__(self) -> str:
        """The name of the host, which Ray puts before its log lines."""
        return self._name

    async def load(self, version: int, state: State | None) -> str:
        """See `HostedShell.load`; runs after the batch of this moment."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._shell.load, version, state)

    async def call(self, request: Request, arrays: Mapping[str, NDArray[Any]]) -> Reply:
        """Queue a request and wait for its reply; errors of the model are raised to the caller alone."""
        waiting = _Waiting(request, arrays, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._most_waiting = max(self._most_waiting, len(self._queue))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.ensure_future(self._drain())
        return await waiting.future

    async def answer(self, method: str, arrays: Mapping[str, NDArray[Any]]) -> Reply:
        """As `call`, for whoever does not own the pool: a question that changes nothing, to whatever is loaded.

        The reply names its version. It is ``stale``, without arrays, while none is loaded: a host that was restarted
        knows nothing until its pool, at the pool's next call, loads it again.
        """
        return await self.call(Request(f"answer/{uuid.uuid4().hex}", method, None), arrays)

    async def health(self) -> Health:
        """Answered by the event loop, so a busy model does not keep it waiting."""
        import ray

        shell = self._shell
        return Health(
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            incarnation=shell.incarnation,
            version=shell.version,
            requests=shell.requests,
            batches=shell.batches,
            rows=shell.rows,
            most_waiting=self._most_waiting,
            busy_s=shell.busy_s,
        )

    async def _drain(self) -> None:
        while self._queue:
            batch = take_batch(self._queue, self._shell, self._max_batch)
            if not await self._run(batch):
                for waiting in batch:  # one faulty request must not fail its neighbors
                    await self._run([waiting])

    async def _run(self, batch: Sequence[_Waiting]) -> bool:
        """Run a batch and hand out replies; False when it failed and its requests are yet to be run one by one."""
        requests, arrays = [waiting.request for waiting in batch], [waiting.arrays for waiting in batch]
        job = asyncio.get_running_loop().run_in_executor(self._worker, self._shell.run, requests, arrays)
        await asyncio.wait([job])
        error = job.exception()
        if error is not None and len(batch) > 1:
            return False
        for index, waiting in enumerate(batch):
            if waiting.future.cancelled():
                continue
            if error is not None:
                waiting.future.set_exception(error)
            else:
                waiting.future.set_result(job.result()[index])
        return True


def take_batch(queue: deque[_Waiting], shell: HostedShell, max_batch: int) -> list[_Waiting]:
    """Take the oldest request, and those right behind it that may run with it, up to ``max_batch`` rows."""
    batch = [queue.popleft()]
    first = batch[0]
    if first.request.next_version is not None or not shell.batchable(first.request.method):
        return batch
    rows = row_count(first.arrays)
    while queue and queue[0].request.next_version is None and queue[0].key == first.key:
        rows += row_count(queue[0].arrays)
        if rows > max_batch:
            break
        batch.append(queue.popleft())
    return batch
