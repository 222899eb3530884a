"""The event loop of a host, which Ray turns into an actor: requests queue here and run in batches where allowed."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from proxygap.base.config import canonical_json
from proxygap.base.protocols import State
from proxygap.serve.host import Health, HostRecipe, Reply, Request, row_count
from proxygap.serve.tenants import Tenants


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
        asked = f"{request.method}@{request.version}/{canonical_json(dict(request.options))}"
        return f"{request.owner}/{asked}/{columns}"


class HostActor:
    """The event loop of a host: requests queue here, one worker thread runs them, in batches where allowed.

    Args:
        recipe: of its model; None for a shared host, whose owners bring theirs.
        name: for logs.
        gpus: that it holds.
        max_batch: rows that run together at most.
        models: that it keeps at most.
    """

    def __init__(self, recipe: HostRecipe | None, name: str, gpus: float, max_batch: int, models: int = 1) -> None:
        self._tenants, self._name, self._max_batch = Tenants(recipe, gpus=gpus, models=models), name, max_batch
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._queue: deque[_Waiting] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._most_waiting = 0

    def __repr__(self) -> str:
        """The name of the host, which Ray puts before its log lines."""
        return self._name

    async def load(self, version: int, state: State | None, owner: str = "", recipe: HostRecipe | None = None) -> str:
        """See `Tenants.load`; runs after the batch of this moment."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._tenants.load, version, state, owner, recipe)

    async def release(self, owner: str) -> None:
        """See `Tenants.release`; runs after the batch of this moment."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self._tenants.release, owner)

    async def call(self, request: Request, arrays: Mapping[str, NDArray[Any]]) -> Reply:
        """Queue a request and wait for its reply; errors of the model are raised to the caller alone."""
        waiting = _Waiting(request, arrays, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._most_waiting = max(self._most_waiting, len(self._queue))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.ensure_future(self._drain())
        return await waiting.future

    async def answer(self, method: str, arrays: Mapping[str, NDArray[Any]], owner: str = "") -> Reply:
        """As `call`, for whoever does not own the pool: a question that changes nothing, to whatever is loaded.

        The reply names its version. It is ``stale``, without arrays, while none is loaded: a host that was restarted
        knows nothing until its pool, at the pool's next call, loads it again.
        """
        return await self.call(Request(f"answer/{uuid.uuid4().hex}", method, None, owner=owner), arrays)

    async def health(self, owner: str = "") -> Health:
        """Answered by the event loop, so a busy model does not keep it waiting."""
        import ray

        shell, (busy_s, others_s) = self._tenants.shell(owner), self._tenants.busy_s(owner)
        return Health(
            pid=os.getpid(),
            node_id=ray.get_runtime_context().get_node_id(),
            incarnation=self._tenants.incarnation,
            version=shell.version if shell else None,
            requests=shell.requests if shell else 0,
            batches=shell.batches if shell else 0,
            rows=shell.rows if shell else 0,
            most_waiting=self._most_waiting,
            busy_s=busy_s,
            others_s=others_s,
            device=shell.device if shell else "",
        )

    async def _drain(self) -> None:
        while self._queue:
            batch = take_batch(self._queue, self._tenants, self._max_batch)
            if not await self._run(batch):
                for waiting in batch:  # one faulty request must not fail its neighbors
                    await self._run([waiting])

    async def _run(self, batch: Sequence[_Waiting]) -> bool:
        """Run a batch and hand out replies; False when it failed and its requests are yet to be run one by one."""
        requests, arrays = [waiting.request for waiting in batch], [waiting.arrays for waiting in batch]
        job = asyncio.get_running_loop().run_in_executor(self._worker, self._tenants.run, requests, arrays)
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


def take_batch(queue: deque[_Waiting], tenants: Tenants, max_batch: int) -> list[_Waiting]:
    """Take the oldest request, and those right behind it that may run with it, up to ``max_batch`` rows."""
    batch = [queue.popleft()]
    first = batch[0]
    if first.request.next_version is not None or not tenants.batchable(first.request):
        return batch
    rows = row_count(first.arrays)
    while queue and queue[0].request.next_version is None and queue[0].key == first.key:
        rows += row_count(queue[0].arrays)
        if rows > max_batch:
            break
        batch.append(queue.popleft())
    return batch
