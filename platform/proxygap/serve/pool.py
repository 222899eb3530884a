"""A pool of hosts, one per shard of a model: created, moved from version to version, and closed together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from numpy.typing import NDArray

from proxygap.base.errors import HostFailed, InfeasibleResources, ProxyGapError
from proxygap.base.protocols import Arrays, State
from proxygap.serve.client import Call, HostClient, OnEvent, Parcel, copied
from proxygap.serve.grounds import Found, Ground, ground_for
from proxygap.serve.host import Health, HostRecipe, Reply
from proxygap.serve.settings import Hosting

ShardArrays = Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]] | None]
"""The same arrays for every host, or one item per host; None leaves a host out."""


class HostPool:
    """Hosts of one model. All methods may be called from several threads; ``update_all`` and ``load_all`` from one.

    Args:
        recipes: one per shard; a restarted host is rebuilt from its recipe and given the last version's state.
        hosting: resources, placement, deadlines and limits of each host (``hosting.hosts`` is not looked at).
        name: ``{run}/{kind}``; hosts of its own are named ``{run}/{kind}-{index}``, in a trial behind its own.
        on_event: told ``host_restarted`` with its details, and ``host_on_cpu`` where a reserved GPU is a number only.
        option: dotted name of ``hosting`` in the experiment, for errors.
        ready_timeout_s: longest wait for the reservation of the resources.
        start_deadline_s: longest wait for all hosts to have built their model.

    Raises:
        InfeasibleResources: the cluster can never hold the hosts, or stays busy; torch sees no GPU of those reserved.
        HostFailed: a host did not start.
    """

    def __init__(
        self,
        recipes: Sequence[HostRecipe],
        hosting: Hosting,
        name: str,
        on_event: OnEvent,
        *,
        option: str = "serve",
        ready_timeout_s: float = 30.0,
        start_deadline_s: float = 120.0,
    ) -> None:
        self.version, self._hosting, self._option = 0, hosting, option
        self._states: list[State] | None = None
        self._clients: list[HostClient] = []
        self._ground: Ground | None = ground_for(
            hosting, len(recipes), name=name, option=option, timeout_s=ready_timeout_s
        )
        with ExitStack() as undo:
            undo.callback(self.close)
            for index, recipe in enumerate(recipes):
                self._clients.append(self._client(self._ground.host(recipe, index), on_event))
            self._start(start_deadline_s, on_event)
            undo.pop_all()

    def __len__(self) -> int:
        """The number of hosts."""
        return len(self._clients)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the hosts, in shard order."""
        return tuple(client.name for client in self._clients)

    def call_all(
        self,
        method: str,
        arrays: ShardArrays,
        options: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> list[Arrays]:
        """Ask every host (or those with an item in ``arrays``); answers in shard order, empty for hosts left out.

        Raises the model's own error unchanged, or HostFailed; then no answer of any host is returned.
        """
        return [reply.arrays if reply else {} for reply in self._ask(method, arrays, options or {}, deadline_s, None)]

    def update_all(
        self,
        method: str,
        arrays: ShardArrays,
        options: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
    ) -> list[Arrays]:
        """Run an update on every host and move the pool to the next version, all hosts or none.

        A host that is restarted on the way repeats the update from the last version's state; one that has done it
        answers from memory. After an error the pool still stands, and answers, at the old version.
        """
        replies = self._ask(method, arrays, options or {}, deadline_s, self.version + 1)
        if any(reply is None for reply in replies):
            raise ValueError("an update must reach every host")
        states = [copied(reply.state) for reply in replies if reply is not None and reply.state is not None]
        for client, state in zip(self._clients, states, strict=True):
            client.adopt(self.version + 1, Parcel.of_state(state))
        self.version, self._states = self.version + 1, states
        return [reply.arrays for reply in replies if reply is not None]

    def load_all(self, version: int, states: Sequence[State]) -> None:
        """Give every host the state of its shard and make ``version`` what the pool answers for, all hosts or none.

        A state that is the same object for several hosts travels once. Where a host refuses its state, or fails, the
        pool stays at the old version, which every host loads again before it answers.
        """
        if len(states) != len(self):
            raise ValueError(f"{len(states)} states for {len(self)} hosts")
        before = self.version, self._states
        copies = {id(state): copied(state) for state in states}
        self.version, self._states = version, [copies[id(state)] for state in states]
        try:
            self._install(self._states, self._hosting.deadline_s)
        except ProxyGapError:
            self.version, self._states = before
            for client, parcel in zip(self._clients, _by_state(self._states or [None] * len(self)), strict=True):
                client.adopt(self.version, parcel, loaded=False)
            raise

    def states(self) -> list[State] | None:
        """The last version's state of each shard; None while all are as their recipes built them."""
        return None if self._states is None else [copied(state) for state in self._states]

    def health(self, timeout_s: float = 10.0) -> list[Health]:
        """What each host says about itself. Raises HostFailed for a host that says nothing."""
        return [client.health(timeout_s) for client in self._clients]

    def close(self) -> None:
        """End the pool's own hosts, have shared ones forget its models, free what it reserved; twice is fine."""
        for client in self._clients:
            client.end()
        self._clients = []
        if self._ground is not None:
            self._ground.close()
            self._ground = None

    def _client(self, found: Found, on_event: OnEvent) -> HostClient:
        return HostClient(
            found.actor,
            name=found.name,
            option=self._option,
            max_pending=self._hosting.max_pending,
            on_event=on_event,
            tenant=found.tenant,
        )

    def _start(self, deadline_s: float, on_event: OnEvent) -> None:
        """Have every host build its model, and report those that do it on a CPU in place of a GPU."""
        try:
            self._install([None] * len(self), deadline_s)
        except InfeasibleResources as error:  # a host does not know by which field it was given GPUs
            field = f"{self._option}.{error.field}"
            raise InfeasibleResources(error.problem, field=field, value=error.value, remedy=error.remedy) from error
        for name, health in zip(self.names, self.health() if self._hosting.gpus else (), strict=False):
            if health.device == "cpu":
                on_event("host_on_cpu", {"host": name, "gpus": self._hosting.gpus, "node": health.node_id})

    def _install(self, states: Sequence[State | None], deadline_s: float) -> None:
        until = time.monotonic() + deadline_s
        refs = [
            client.install(self.version, parcel)
            for client, parcel in zip(self._clients, _by_state(states), strict=True)
        ]
        for client, ref in zip(self._clients, refs, strict=True):
            client.installed(ref, until)

    def _ask(
        self,
        method: str,
        arrays: ShardArrays,
        options: Mapping[str, Any],
        deadline_s: float | None,
        next_version: int | None,
    ) -> list[Reply | None]:
        if not self._clients:
            raise HostFailed("the pool is closed", field=self._option, remedy="build the model anew")
        until = time.monotonic() + (self._hosting.deadline_s if deadline_s is None else deadline_s)
        calls: list[Call | None] = []
        replies: list[Reply | None] = []
        try:
            for client, parcel in zip(self._clients, self._parcels(arrays), strict=True):
                sent = None if parcel is None else client.submit(method, parcel, options, until, next_version)
                calls.append(sent)
            for client, call in zip(self._clients, calls, strict=True):
                replies.append(None)
                replies[-1] = None if call is None else client.finish(call)
        finally:
            for client, call in list(zip(self._clients, calls, strict=False))[len(replies) :]:
                if call is not None:
                    client.abandon(call)
        return replies

    def _parcels(self, arrays: ShardArrays) -> list[Parcel | None]:
        if isinstance(arrays, Mapping):
            return [Parcel.of_arrays(arrays)] * len(self)
        if len(arrays) != len(self):
            raise ValueError(f"{len(arrays)} items for {len(self)} hosts")
        return [None if each is None else Parcel.of_arrays(each) for each in arrays]


def _by_state(states: Sequence[State | None]) -> list[Parcel]:
    """One for each host, the same one where the state is the same object: that travels to every node once."""
    parcels = {id(state): Parcel.of_state(state) for state in states}
    return [parcels[id(state)] for state in states]
