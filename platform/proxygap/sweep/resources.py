"""What the trials of a sweep ask of the cluster: the reservation of each, hosts shared by all, and what can never fit.

A trial is one actor of Ray Tune. It reserves ``compute.cpus_per_seed`` CPUs, once, because the seeds of a trial take
turns in its process. Everything else that they start is a child with resources of its own, and those of all seeds are
alive at the same time: RLlib's environment runners and remote Learners, and the hosts of models. They live in the
placement group of the trial, so it must hold them all: what it lacks would stay pending for ever, without an error.
CPUs are Ray's: what is reserved, not what is used.

RLlib asks for its runner number i at bundle i (`EnvRunnerGroup._make_worker`), so those come first. It lets a Learner
take any bundle, so a trial whose Learner could take another's place is kept on one node, where only the sum counts.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ray
from ray.tune import PlacementGroupFactory

from proxygap.base.errors import InfeasibleResources, InvalidExperiment
from proxygap.experiment import Experiment
from proxygap.loops.resources import Ask, added_up, asks, check_compute, pinned, process_bundle
from proxygap.serve.nodes import NODE_ID, Bundle, Node
from proxygap.serve.placement import bundle, cluster_nodes, driver_node, label_selectors, shortage
from proxygap.serve.premises import Premises, inside
from proxygap.serve.settings import Hosting
from proxygap.serve.shared import SharedHosts
from proxygap.sweep.load import LoadedSweep
from proxygap.sweep.settings import Sweep
from proxygap.sweep.space import corners, experiment_of

SIZING = frozenset({"collect", "fit", "loop", "optimize", "proxy", "serve", "task"})
"""Sections whose fields can change what a trial asks for."""


@dataclass(frozen=True, slots=True)
class TrialAsk:
    """The reservation of one trial: its process, and what all of its seeds start.

    Args:
        itself: what the process of the trial reserves.
        parts: what the seeds start, in the order of the bundles.
        strategy: of the placement group.
    """

    itself: Bundle
    parts: tuple[Ask, ...]
    strategy: str

    @property
    def bundles(self) -> list[Bundle]:
        """One for the process, then one for each actor; runners of the same number share theirs."""
        return [self.itself, *(ask.each for ask in self.parts for _ in range(ask.count))]

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Indices of the bundles that are for hosts, by kind."""
        found, start = dict[str, tuple[int, ...]](), 1
        for ask in self.parts:
            if ask.kind:
                found[ask.kind] = tuple(range(start, start + ask.count))
            start += ask.count
        return found

    def amount(self, resource: str) -> float:
        """Of a resource, by the whole trial."""
        return self.itself.resources.get(resource, 0.0) + sum(ask.amount(resource) for ask in self.parts)


def trial_ask(experiment: Experiment, sweep: Sweep, driver: Node | None = None) -> TrialAsk:
    """What one trial reserves.

    Args:
        experiment: that it runs.
        sweep: its section.
        driver: node that the process of the trial is kept on; None lets it run anywhere.

    Raises:
        InvalidExperiment: its hosts are to be placed by different strategies.
    """
    seeds, parts = len(experiment.seeds), list[Ask]()
    for ask in asks(experiment):
        if ask.option == "collect.env_runners":  # runner i of every seed goes to bundle i
            parts.append(replace(ask, each=Bundle({name: seeds * each for name, each in ask.each.resources.items()})))
        elif not (ask.kind and sweep.hosts == "shared"):
            parts.append(replace(ask, count=seeds * ask.count))
    itself = process_bundle(experiment)  # never empty: Tune would leave it out, which would shift the others
    if driver is not None:
        itself = replace(itself, labels={**itself.labels, NODE_ID: driver.labels[NODE_ID]})
    return TrialAsk(itself, tuple(parts), _strategy(experiment, parts))


def _strategy(experiment: Experiment, parts: Sequence[Ask]) -> str:
    chosen: set[str] = {experiment.hostings[ask.kind].strategy for ask in parts if ask.kind} or {"PACK"}
    learners = [ask for ask in parts if ask.option == "optimize.learners"]
    others = [ask.each.resources for ask in parts if ask.option != "optimize.learners"]
    if any(ask.each.resources.keys() <= other.keys() for ask in learners for other in others):
        chosen = {"STRICT_PACK"} | chosen - {"PACK"}
    if len(chosen) > 1:
        raise InvalidExperiment(
            f"one trial is to be placed by {' and '.join(sorted(chosen))}: its hosts are in one placement group, and a "
            "remote Learner keeps it on one node",
            field="serve",
            remedy="Give all hosts one strategy, STRICT_PACK beside a Learner; or set sweep.hosts to shared",
        )
    return chosen.pop()


def trial_bundles(experiment: Experiment, sweep: Sweep) -> PlacementGroupFactory:
    """The reservation of one trial, for `ray.tune.with_resources`; called in the driver.

    Where no storage carries its records, the process of the trial is kept on the driver's node.
    """
    ask = trial_ask(experiment, sweep, driver_node() if pinned(experiment) else None)
    labels = label_selectors(ask.bundles)
    options = {} if labels is None else {"bundle_label_selector": labels}
    return PlacementGroupFactory([dict(each.resources) for each in ask.bundles], strategy=ask.strategy, **options)


@contextlib.contextmanager
def trial_premises(experiment: Experiment, sweep: Sweep, name: str) -> Iterator[None]:
    """In the process of a trial: have the pools of the block find their hosts where the sweep has put them.

    Args:
        experiment: that the trial runs; `trial_bundles` has reserved for it.
        sweep: its section.
        name: of the sweep, as given to `start_shared`.
    """
    group, shared = ray.util.get_current_placement_group() if ray.is_initialized() else None, {}
    if sweep.hosts == "shared":
        for kind, hosting in _hostings(experiment).items():
            shared[kind] = tuple(f"{name}/{kind}-{index}" for index in range(hosting.hosts))
    with inside(Premises(name, group=group, places=trial_ask(experiment, sweep).places, shared=shared)):
        yield


def start_shared(loaded: LoadedSweep, name: str) -> SharedHosts:
    """Start the hosts that all trials ask; none for ``hosts: per_trial``. Close them when the sweep ends.

    Args:
        loaded: the sweep.
        name: of the sweep: hosts are named ``{name}/{kind}-{index}``.

    Raises:
        InfeasibleResources: the cluster cannot hold them, or is busy.
        HostFailed: a host did not start.
    """
    candidates, seeds = _candidates(loaded), len(loaded.base.seeds)
    hostings = _shared(loaded.sweep, candidates)
    parts = [ask for each in candidates for ask in asks(each) if ask.kind in hostings]
    models = max((math.ceil(ask.count / hostings[ask.kind].hosts) for ask in parts), default=1)
    return SharedHosts(hostings, name, models=models * seeds * (loaded.sweep.concurrency + 1))  # one on its way out


def _shared(sweep: Sweep, candidates: Sequence[Experiment]) -> dict[str, Hosting]:
    """What is shared, by kind; ``serve`` is the same for all trials, but their loops may need different kinds."""
    if sweep.hosts != "shared":
        return {}
    return {kind: hosting for each in candidates for kind, hosting in _hostings(each).items()}


def _hostings(experiment: Experiment) -> dict[str, Hosting]:
    return {kind: hosting for kind, hosting in experiment.hostings.items() if hosting.hosts}


def check_sweep(loaded: LoadedSweep, nodes: Sequence[Node] | None = None) -> None:
    """Refuse, before launch, trials and numbers of trials that the cluster can never hold, for the largest setting.

    Args:
        loaded: the sweep.
        nodes: default: the live nodes of the connected cluster, or this machine.

    Raises:
        InfeasibleResources: with the arithmetic, and the largest number of trials that fits.
        InvalidExperiment: seeds of a trial in actors, or hosts to be shared where there are none.
    """
    base, sweep = loaded.base, loaded.sweep
    if base.parallel_seeds > 1:
        raise InvalidExperiment(
            "seeds of a trial take turns in its process",
            field="compute.parallel_seeds",
            value=base.compute.parallel_seeds,
            remedy="Set it to 1, and raise sweep.concurrency to run more at the same time",
        )
    candidates = _candidates(loaded)
    shared = _shared(sweep, candidates)
    if sweep.hosts == "shared" and not shared:
        raise InvalidExperiment(
            "no model of this experiment is on a host, so there is nothing to share",
            field="sweep.hosts",
            value=sweep.hosts,
            remedy="Set e.g. serve.reward.hosts to 1, or leave sweep.hosts out",
        )
    driver = driver_node() if nodes is None and pinned(base) else None
    nodes = cluster_nodes() if nodes is None else nodes
    for candidate in candidates:
        check_compute(candidate)
        _check_fits(candidate, sweep, shared, nodes)
        if driver is not None:
            _check_fits(candidate, sweep, shared, nodes, driver)


def _candidates(loaded: LoadedSweep) -> list[Experiment]:
    """The base, and settings that ask for something else: combinations of such values that go together."""
    axes: list[list[dict[str, object]]] = []
    for field, distribution in loaded.sweep.space.items():
        known, values = [asks(loaded.base)], list[object]()
        for value in corners(distribution) if field.partition(".")[0] in SIZING else ():
            for asked in map(asks, _valid(loaded, {field: value})):
                if asked not in known:
                    known.append(asked)
                    values.append(value)
        axes.append([{}, *({field: value} for value in values)])
    settings = [{field: value for part in parts for field, value in part.items()} for parts in itertools.product(*axes)]
    return [loaded.base, *(each for setting in settings if setting for each in _valid(loaded, setting))]


def _valid(loaded: LoadedSweep, setting: Mapping[str, object]) -> list[Experiment]:
    """The experiment of a setting; none where its fields do not go together, since no trial will run it."""
    try:
        return [experiment_of(loaded, setting, 0)]
    except InvalidExperiment:
        return []


def _check_fits(
    experiment: Experiment,
    sweep: Sweep,
    shared: Mapping[str, Hosting],
    nodes: Sequence[Node],
    driver: Node | None = None,
) -> None:
    trial, wanted = trial_ask(experiment, sweep, driver), min(sweep.concurrency, sweep.trial_count)
    resource, sentence = _shortage(trial, wanted, shared, nodes)
    if not sentence:
        return
    fits = bisect.bisect_left(range(1, wanted), True, key=lambda n: bool(_shortage(trial, n, shared, nodes)[1]))
    if driver is not None:
        arithmetic = f"trials write their records on the driver's node: {sentence}"
    elif resource not in ("CPU", "GPU"):
        arithmetic = sentence
    else:
        arithmetic = _arithmetic(trial, wanted, shared, resource, len(experiment.seeds))
        amounts = [node.resources.get(resource, 0.0) for node in nodes]
        arithmetic += f"; the cluster has {sum(amounts):g}, {max(amounts, default=0.0):g} on its largest node"
    options = [ask.option for ask in trial.parts if ask.amount(resource) or resource == "node"]
    options = options or ["compute.cpus_per_seed"]
    options += [f"serve.{kind}.hosts" for kind, hosting in shared.items() if bundle(hosting).resources.get(resource)]
    lower = f"Lower {', '.join(options)}, or {'add nodes' if driver is None else 'set record.storage'}"
    raise InfeasibleResources(
        f"{arithmetic}; at most {fits} of them fit at the same time",
        field="sweep.concurrency",
        value=sweep.concurrency,
        remedy=f"Lower sweep.concurrency to {fits}; or l{lower[1:]}" if fits else lower,
    )


def _shortage(trial: TrialAsk, count: int, shared: Mapping[str, Hosting], nodes: Sequence[Node]) -> tuple[str, str]:
    """Why so many trials and the shared hosts can never be there together: (resource or "", sentence or "")."""
    hosts = [bundle(hosting) for hosting in shared.values() for _ in range(hosting.hosts)]
    together = Bundle({name: trial.amount(name) for each in trial.bundles for name in each.resources})
    asked = [([*trial.bundles * count, *hosts], "PACK"), (trial.bundles, trial.strategy)]
    if trial.strategy == "STRICT_PACK":
        asked.append(([*[together] * count, *hosts], "PACK"))
    asked.extend(([bundle(hosting)] * hosting.hosts, hosting.strategy) for hosting in shared.values())
    return next((found for each, strategy in asked if (found := shortage(each, strategy, nodes))[1]), ("", ""))


def _arithmetic(trial: TrialAsk, count: int, shared: Mapping[str, Hosting], resource: str, seeds: int) -> str:
    each = added_up(trial.parts, resource, ("the trial itself", trial.itself.resources.get(resource, 0.0)))
    said = f"trials ask for {resource} {count} x ({each}) = {count * trial.amount(resource):g}"
    if seeds > 1 and trial.parts:
        said += f", for {seeds} seeds at a time"
    for kind, hosting in shared.items():
        if amount := hosting.hosts * bundle(hosting).resources.get(resource, 0.0):
            said += f", and the shared hosts of {kind} for {amount:g}"
    return said
