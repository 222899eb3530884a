"""What a run asks of the cluster, added up and compared with what there is, before anything is launched."""

from __future__ import annotations

from proxygap.base.errors import InfeasibleResources
from proxygap.experiment import Experiment
from proxygap.serve.placement import check_feasible, cluster_nodes


def check_resources(experiment: Experiment) -> None:
    """Refuse what the cluster, or this machine while no cluster is joined, can never hold.

    Raises:
        InfeasibleResources: with the missing resource and the arithmetic.
    """
    nodes, hostings = cluster_nodes(), experiment.hostings
    parts = _cpus_per_seed(experiment)
    for name, hosting in hostings.items():
        beside = sum(parts.values()) - hosting.hosts * hosting.cpus
        check_feasible(hosting, field=f"serve.{name}", nodes=nodes, reserved={"CPU": beside})
    learners, gpus_per_learner = experiment.learners
    gpus = learners * gpus_per_learner + sum(hosting.hosts * hosting.gpus for hosting in hostings.values())
    seeds = experiment.parallel_seeds
    totals = {"CPU": seeds * sum(parts.values()), "GPU": seeds * gpus}
    for resource, asked in totals.items():
        have = sum(node.get(resource, 0.0) for node in nodes)
        if asked > have + 1e-6:
            arithmetic = ", ".join(f"{amount:g} for {what}" for what, amount in parts.items() if amount)
            raise InfeasibleResources(
                f"{seeds} at once ask for {resource} {asked:g} ({arithmetic} each, in CPUs); the cluster has {have:g}",
                field="compute.parallel_seeds",
                value=seeds,
                remedy="Lower compute.parallel_seeds, or what each of them asks for",
            )


def _cpus_per_seed(experiment: Experiment) -> dict[str, float]:
    """A seed that runs in the process of the command reserves nothing for itself."""
    collect = experiment.collect
    hosts = {f"hosts of {name}": hosting.hosts * hosting.cpus for name, hosting in experiment.hostings.items()}
    return {
        "the seed itself": experiment.compute.cpus_per_seed if experiment.parallel_seeds > 1 else 0.0,
        "environment runners": collect.env_runners * collect.cpus_per_runner,
        "the Learner": float(experiment.learners[0]),
        **hosts,
    }
