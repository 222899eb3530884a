"""The ground that a pool's hosts stand on: a reservation of its own, bundles of its trial, or hosts of all trials."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Protocol

import ray
from ray.exceptions import ActorAlreadyExistsError

from proxygap.base.errors import HostFailed
from proxygap.serve.actor import HostActor
from proxygap.serve.client import Tenant
from proxygap.serve.host import HostRecipe
from proxygap.serve.placement import reserve, scheduling
from proxygap.serve.premises import Premises, current
from proxygap.serve.settings import Hosting

CONTROL_CALLS = 16
"""Calls beyond ``max_pending`` that Ray lets through: health and loading, which must not wait behind requests."""
_NAME_FREED_S = 10.0
"""Longest wait for the name of a host that was closed a moment ago."""


class Found(NamedTuple):
    """A host: its handle, its name, and whose model is meant where it holds several."""

    actor: Any
    name: str
    tenant: Tenant | None = None


class Ground(Protocol):
    """Gives a pool its hosts, and takes back what it lent."""

    def host(self, recipe: HostRecipe, index: int) -> Found:
        """The host of a shard, started where it is the pool's own. Raises HostFailed."""
        ...

    def close(self) -> None:
        """Free what was reserved; the pool has ended its hosts."""
        ...


def ground_for(hosting: Hosting, hosts: int, *, name: str, option: str, timeout_s: float) -> Ground:
    """The ground of a new pool: what the process was given (`proxygap.serve.premises`), else a new reservation.

    Args:
        hosting: resources, placement and limits of each host.
        hosts: how many of them.
        name: of the pool, ``{run}/{kind}``.
        option: dotted name of ``hosting`` in the experiment; its last part is the kind.
        timeout_s: longest wait for a new reservation.

    Raises:
        InfeasibleResources: the cluster can never hold the hosts or stays busy, or the trial has no room for them.
        HostFailed: another pool of this name is alive.
    """
    premises, kind = current(), option.rpartition(".")[2]
    if premises is None:
        return _Reserved(hosting, hosts, name, option, timeout_s)
    if kind in premises.shared:
        return _Shared(premises, kind, name, option)
    return _Leased(premises, kind, hosting, hosts, name, option)


class _Reserved:
    """A placement group of the pool's own."""

    def __init__(self, hosting: Hosting, hosts: int, name: str, option: str, timeout_s: float) -> None:
        self._hosting, self._name, self._option = hosting, name, option
        self._group = reserve(hosting, hosts, name=name, field=option, timeout_s=timeout_s)

    def host(self, recipe: HostRecipe, index: int) -> Found:
        """Start it on the bundle of its index."""
        name = f"{self._name}-{index}"
        return Found(start_host(recipe, self._hosting, name, self._option, (self._group, index)), name)

    def close(self) -> None:
        """Remove the group."""
        ray.util.remove_placement_group(self._group)


class _Leased:
    """Bundles out of the placement group of the trial that this process runs."""

    def __init__(self, premises: Premises, kind: str, hosting: Hosting, hosts: int, name: str, option: str) -> None:
        self._premises, self._kind, self._hosting, self._option = premises, kind, hosting, option
        self._name = f"{premises.name}/{name}"
        self._indices = premises.take(kind, hosts)

    def host(self, recipe: HostRecipe, index: int) -> Found:
        """Start it on the bundle that was taken for it."""
        name, place = f"{self._name}-{index}", (self._premises.group, self._indices[index])
        return Found(start_host(recipe, self._hosting, name, self._option, place), name)

    def close(self) -> None:
        """Give the bundles back to the trial."""
        self._premises.give_back(self._kind, self._indices)


class _Shared:
    """Hosts that were started for all trials of a sweep; the pool's name is the owner of what it loads there."""

    def __init__(self, premises: Premises, kind: str, name: str, option: str) -> None:
        self._names, self._option = premises.shared[kind], option
        self._owner = f"{premises.name}/{name}"

    def host(self, recipe: HostRecipe, index: int) -> Found:
        """Find the one that holds shards of this index."""
        name = self._names[index % len(self._names)]
        owner = f"{self._owner}-{index}"
        try:
            return Found(ray.get_actor(name), name, Tenant(owner, recipe))
        except ValueError as error:
            raise HostFailed(
                "the shared host is not there",
                field=self._option,
                value=name,
                remedy="run the sweep again; or set sweep.hosts to per_trial",
            ) from error

    def close(self) -> None:
        """The hosts are not the pool's."""


def start_host(
    recipe: HostRecipe | None,
    hosting: Hosting,
    name: str,
    option: str,
    place: tuple[Any, int],
    *,
    owners: int = 1,
) -> Any:
    """Start the actor of a host on a bundle of a placement group.

    Args:
        recipe: of its model; None for a host whose owners bring theirs. Such a host is always restarted.
        hosting: resources and limits.
        name: of the actor.
        option: dotted name of ``hosting``, for errors.
        place: placement group, and index of the bundle.
        owners: models that it keeps at most; each owner may have ``hosting.max_pending`` requests waiting.

    Raises:
        HostFailed: another host of this name is alive.
    """
    waiting = hosting.max_pending + CONTROL_CALLS
    host = ray.remote(HostActor).options(
        name=name,
        num_cpus=hosting.cpus,
        num_gpus=hosting.gpus,
        accelerator_type=hosting.accelerator_type,
        resources=dict(hosting.resources),
        scheduling_strategy=scheduling(*place),
        max_restarts=hosting.max_restarts if recipe is not None else -1,
        max_task_retries=0,
        max_pending_calls=waiting,
        max_concurrency=waiting * owners,
    )
    until = time.monotonic() + _NAME_FREED_S
    while True:
        try:
            return host.remote(recipe, name, hosting.gpus, hosting.max_batch, owners)
        except ActorAlreadyExistsError as error:
            if time.monotonic() > until:
                raise HostFailed(
                    "another host of this name is alive",
                    field=option,
                    value=name,
                    remedy="close the other pool first, or run under another name",
                ) from error
            time.sleep(0.1)
