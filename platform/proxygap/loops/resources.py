"""What a run asks of the cluster, added up and compared with what there is, before anything is launched.

CPUs count as Ray counts them: a number that an actor reserves while it lives, whatever it does with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from proxygap.base.errors import InfeasibleResources
from proxygap.experiment import Experiment
from proxygap.serve.nodes import (
    NODE_ID,
    SLACK,
    Bundle,
    Node,
    check_labels,
    check_names,
    listed_labels,
    matches,
    ray_selector,
    unlabeled,
)
from proxygap.serve.placement import (
    bundle,
    check_feasible,
    check_request,
    cluster_nodes,
    driver_node,
    shortage,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Equal actors that a run of one seed starts beside its own process.

    Args:
        what: they are, in words.
        option: dotted field that says how many.
        count: how many.
        each: what one of them reserves.
        kind: name of their section under ``serve``, for hosts.
    """

    what: str
    option: str
    count: int
    each: Bundle
    kind: str = ""

    def amount(self, resource: str) -> float:
        """Of a resource, by all of them together."""
        return self.count * self.each.resources.get(resource, 0.0)


def asks(experiment: Experiment) -> tuple[Ask, ...]:
    """What a run of one seed starts: environment runners, Learners, then hosts by kind; those of no actors left out."""
    collect, compute, (learners, gpus) = experiment.collect, experiment.compute, experiment.learners
    cpus = {"CPU": collect.cpus_per_runner} if collect.cpus_per_runner else {}
    runner = Bundle({**cpus, **compute.runner_resources} or {"memory": 1.0})
    itself = {"GPU": gpus} if gpus else {"CPU": 1.0}  # as RLlib's num_cpus_per_learner = "auto"
    learner = Bundle({**itself, **compute.learner_resources})
    found = [
        Ask("environment runners", "collect.env_runners", collect.env_runners, runner),
        Ask("the Learner", "optimize.learners", learners, learner),
    ]
    for kind, hosting in experiment.hostings.items():
        count = _models(experiment, kind) * _hosts(experiment, kind)
        found.append(Ask(f"hosts of {kind}", f"serve.{kind}.hosts", count, bundle(hosting), kind))
    return tuple(ask for ask in found if ask.count)


def _models(experiment: Experiment, kind: str) -> int:
    """A task that pays several rewards has one reward model for each."""
    task: Any = experiment.task
    return max(1, len(task.components)) if kind == "reward" else 1


def _hosts(experiment: Experiment, kind: str) -> int:
    """Hosts of one model: members, or whole models, are dealt to no more of them than there are."""
    ensembles: dict[str, Any] = {"dynamics": experiment.dynamics, "reward": experiment.proxy}
    dealt: int = getattr(ensembles.get(kind), "members", experiment.hostings[kind].hosts)
    return min(experiment.hostings[kind].hosts, getattr(experiment.loop, "at_once", dealt))


def process_bundle(experiment: Experiment) -> Bundle:
    """What the process of a seed, or of a trial, reserves; never nothing, so that it can be placed."""
    compute = experiment.compute
    cpus = {"CPU": compute.cpus_per_seed} if compute.cpus_per_seed else {}
    return Bundle({**cpus, **compute.resources} or {"memory": 1.0}, compute.labels)


def pinned(experiment: Experiment) -> bool:
    """Whether whatever writes records must run on the driver's node: nothing else carries them there."""
    return not (experiment.record.storage or os.environ.get("PROXYGAP_STORAGE", "").strip())


def seed_options(experiment: Experiment, *, pinned: bool) -> dict[str, Any]:
    """What ``ray.remote(...).options(...)`` takes for the process of a seed in an actor.

    Args:
        experiment: its ``compute`` says what the process reserves, and on which nodes it may be.
        pinned: to the node of this process, where the records are.

    Raises:
        InfeasibleResources: pinned to a node that lacks a label or a resource.
    """
    compute, node = experiment.compute, driver_node() if pinned else None
    options: dict[str, Any] = {"num_cpus": compute.cpus_per_seed, "resources": dict(compute.resources)}
    if node is None:
        return {**options, "scheduling_strategy": "DEFAULT", "label_selector": ray_selector(compute.labels) or None}
    _check_here(experiment, node, 1)
    return {**options, "scheduling_strategy": NodeAffinitySchedulingStrategy(node.labels[NODE_ID], soft=False)}


def check_resources(experiment: Experiment, nodes: Sequence[Node] | None = None) -> None:
    """Refuse what the cluster, or this machine while no cluster is joined, can never hold.

    Args:
        experiment: validated.
        nodes: default: the live nodes of the connected cluster, or this machine.

    Raises:
        InfeasibleResources: with the missing resource or label, and the arithmetic.
        InvalidExperiment: labels that are no selectors, resources that are not custom.
    """
    check_compute(experiment)
    driver = driver_node() if nodes is None else None
    nodes = cluster_nodes() if nodes is None else nodes
    seeds, parts = experiment.parallel_seeds, asks(experiment)
    itself = process_bundle(experiment) if experiment.seeds_in_actors else Bundle({})  # the command reserves nothing
    for kind, hosting in experiment.hostings.items():
        hosts = _hosts(experiment, kind)
        beside = {"CPU": sum(ask.amount("CPU") for ask in parts) + _amount(itself, "CPU") - hosts * hosting.cpus}
        check_feasible(hosting, field=f"serve.{kind}", hosts=hosts, nodes=nodes, reserved=beside)
    if itself.resources:
        _check_process(experiment, itself, nodes)
        if driver is not None and pinned(experiment):
            _check_here(experiment, driver, seeds)
    _check_total(parts, itself, seeds, nodes)


def check_compute(experiment: Experiment) -> None:
    """Refuse labels that are no selectors and resources that are not custom. Raises InvalidExperiment."""
    compute = experiment.compute
    check_labels(compute.labels, "compute.labels")
    for name in ("resources", "runner_resources", "learner_resources"):
        check_names(getattr(compute, name), f"compute.{name}")
    for kind, hosting in experiment.hostings.items():
        if hosting.hosts:
            check_request(hosting, f"serve.{kind}")


def _check_process(experiment: Experiment, itself: Bundle, nodes: Sequence[Node]) -> None:
    """The process of one seed on an empty cluster."""
    name, sentence = shortage([itself], "PACK", nodes)
    if sentence:
        option = "labels" if name == "labels" else "resources" if name in experiment.compute.resources else ""
        raise InfeasibleResources(
            sentence.replace("a host asks", "a seed asks"),
            field=f"compute.{option or 'cpus_per_seed'}",
            value=getattr(experiment.compute, option or "cpus_per_seed"),
            remedy=f"Change it, or start a node with {itself}",
        )


def _check_here(experiment: Experiment, node: Node, seeds: int) -> None:
    """The processes of so many seeds on the driver's node."""
    compute, elsewhere = experiment.compute, "or set record.storage, and seeds may run on other nodes"
    if not matches(compute.labels, node):
        raise InfeasibleResources(
            f"seeds write their records on the driver's node, which has not {listed_labels(compute.labels)}: "
            f"{unlabeled(compute.labels, [node])}",
            field="compute.labels",
            value=compute.labels,
            remedy=f"Start the command on a node with these labels, {elsewhere}",
        )
    for name, amount in process_bundle(experiment).resources.items():
        have = node.resources.get(name, 0.0)
        if seeds * amount > have + SLACK:
            raise InfeasibleResources(
                f"{seeds} at once ask for {name} {seeds * amount:g} on the driver's node, where their records are, "
                f"and it has {have:g}",
                field="compute.parallel_seeds",
                value=experiment.compute.parallel_seeds,
                remedy=f"Lower compute.parallel_seeds, {elsewhere}",
            )


def _check_total(parts: tuple[Ask, ...], itself: Bundle, seeds: int, nodes: Sequence[Node]) -> None:
    """All that the seeds of one moment start, against all there is."""
    named = [name for each in (itself, *(ask.each for ask in parts)) for name in each.resources]
    for resource in dict.fromkeys(("CPU", "GPU", *named)):
        asked = _amount(itself, resource) + sum(ask.amount(resource) for ask in parts)
        have = sum(node.resources.get(resource, 0.0) for node in nodes)
        if seeds * asked > have + SLACK and not resource.startswith("accelerator_type:"):
            arithmetic = added_up(parts, resource, ("the seed itself", _amount(itself, resource)))
            raise _too_many(
                f"{seeds} at once ask for {resource} {seeds * asked:g} ({arithmetic} each); the cluster has {have:g}",
                seeds,
            )
    together = [ask.each for ask in parts for _ in range(ask.count)] + ([itself] if itself.resources else [])
    _, sentence = shortage(together * seeds, "PACK", nodes)
    if sentence:
        raise _too_many(f"what {seeds} at once start does not fit: {sentence}", seeds)


def _too_many(problem: str, seeds: int) -> InfeasibleResources:
    return InfeasibleResources(
        problem,
        field="compute.parallel_seeds",
        value=seeds,
        remedy="Lower compute.parallel_seeds, or what each of them asks for",
    )


def _amount(each: Bundle, resource: str) -> float:
    return each.resources.get(resource, 0.0)


def added_up(parts: tuple[Ask, ...], resource: str, itself: tuple[str, float]) -> str:
    """The sum of a resource in words: the process itself, then what it starts."""
    amounts = [itself, *((ask.what, ask.amount(resource)) for ask in parts)]
    return " + ".join(f"{amount:g} for {what}" for what, amount in amounts if amount) or "0"
