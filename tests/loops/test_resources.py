"""What a run asks for, added up. Nothing is launched."""

from __future__ import annotations

from typing import Any

import pytest

from proxygap.base.errors import InfeasibleResources, InvalidExperiment
from proxygap.experiment import validate
from proxygap.loops import resources
from proxygap.serve.nodes import Node
from tests.loops.command import SMALL

TWO_CPUS = [Node({"CPU": 1.0}), Node({"CPU": 1.0})]
POOLS = [
    Node({"CPU": 2.0, "seat": 1.0}, {"pool": "policy"}),
    Node({"CPU": 2.0, "simulator": 1.0}, {"pool": "dynamics"}),
]


def check(nodes: list[Node] = TWO_CPUS, **sections: Any) -> None:
    resources.check_resources(validate({**SMALL, **sections}), nodes)


def test_what_fits_is_allowed() -> None:
    check(serve={"dynamics": {"hosts": 2, "cpus": 1.0}})
    check(
        seeds=[0, 1],
        compute={"parallel_seeds": 2, "cpus_per_seed": 0.75},
        serve={"dynamics": {"hosts": 1, "cpus": 0.25}},
    )


def test_more_parallel_seeds_than_seeds_cost_nothing() -> None:
    check(compute={"parallel_seeds": 64})


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"serve": {"dynamics": {"hosts": 1, "gpus": 1.0}}}, r"serve\.dynamics\.gpus.*GPU"),
        ({"serve": {"dynamics": {"hosts": 1, "cpus": 1.5}}}, r"serve\.dynamics.*CPU 1\.5"),
        ({"serve": {"dynamics": {"hosts": 3, "cpus": 1.0}}}, r"serve\.dynamics.*CPU 3"),
        ({"serve": {"dynamics": {"hosts": 1, "accelerator_type": "H100"}}}, r"accelerator_type:H100"),
        ({"seeds": [0, 1, 2], "compute": {"parallel_seeds": 3}}, r"compute\.parallel_seeds = 3.*CPU 3.*has 2"),
        (
            {"collect": {"env_runners": 3}, "loop": {**SMALL["loop"], "real_steps": 240}, "probe": {"every": 60}},
            r"CPU 3 .*3 for environment runners",
        ),
        ({"optimize": {"learners": 1, "gpus_per_learner": 1.0}}, r"GPU 1 .*has 0"),
    ],
)
def test_what_cannot_fit_is_refused_with_its_arithmetic(sections: dict[str, Any], named: str) -> None:
    with pytest.raises(InfeasibleResources, match=named):
        check(**sections)


def test_pools_and_custom_resources_that_are_there_are_allowed() -> None:
    check(
        POOLS,
        compute={"labels": {"pool": "policy"}, "resources": {"seat": 1.0}, "runner_resources": {"simulator": 0.5}},
        collect={**SMALL["collect"], "env_runners": 2, "cpus_per_runner": 0.5},
        serve={"dynamics": {"hosts": 1, "labels": {"pool": "!policy"}}},
    )


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        (
            {"serve": {"dynamics": {"hosts": 1, "labels": {"pool": "reward"}}}},
            r"serve\.dynamics\.labels = \{'pool': 'reward'\}: a host asks for pool=reward and no node has pool=reward: "
            r"of 2, pool is policy on 1, dynamics on 1 .*change serve\.dynamics\.labels, or add a node",
        ),
        (
            {"serve": {"dynamics": {"hosts": 3, "labels": {"pool": "dynamics"}}}},
            r"serve\.dynamics\.cpus .*the hosts ask for CPU 3 together and the nodes with pool=dynamics have 2",
        ),
        (
            {"serve": {"dynamics": {"hosts": 1, "resources": {"hbm": 1.0}}}},
            r"serve\.dynamics\.resources = \{'hbm': 1\.0\}: a host asks for hbm 1 and no node has more than 0",
        ),
        ({"compute": {"labels": {"zone": "a"}}}, r"compute\.labels = .*none of 2 has a label zone"),
        ({"compute": {"resources": {"seat": 2.0}}}, r"compute\.resources = .*a seed asks for seat 2 .* more than 1"),
        (
            {"seeds": [0, 1], "compute": {"parallel_seeds": 2, "resources": {"seat": 1.0}}},
            r"2 at once ask for seat 2 \(1 for the seed itself each\); the cluster has 1",
        ),
        (
            {"collect": {**SMALL["collect"], "env_runners": 1}, "compute": {"runner_resources": {"simulator": 2.0}}},
            r"1 at once ask for simulator 2 \(2 for environment runners each\); the cluster has 1",
        ),
        (
            {"optimize": {**SMALL["optimize"], "learners": 1}, "compute": {"learner_resources": {"learner": 1.0}}},
            r"learner 1 \(1 for the Learner each\); the cluster has 0",
        ),
        (  # two and a half CPUs of four, but two for hosts and two seeds all want the same node
            {
                "seeds": [0, 1],
                "compute": {"parallel_seeds": 2, "cpus_per_seed": 0.5, "labels": {"pool": "dynamics"}},
                "serve": {"dynamics": {"hosts": 1, "cpus": 0.75, "labels": {"pool": "dynamics"}}},
            },
            r"what 2 at once start does not fit: the hosts ask for CPU 2\.5 .*nodes with pool=dynamics have 2",
        ),
    ],
)
def test_what_no_node_has_is_refused_by_name(sections: dict[str, Any], named: str) -> None:
    with pytest.raises(InfeasibleResources, match=named):
        check(POOLS, **sections)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"serve": {"dynamics": {"hosts": 1, "labels": {"pool": "in(a"}}}}, r"serve\.dynamics\.labels\.pool = 'in\(a'"),
        ({"compute": {"labels": {"-pool": "a"}}}, r"compute\.labels = '-pool': a key of a label"),
        ({"compute": {"runner_resources": {"GPU": 1.0}}}, r"compute\.runner_resources\.GPU = 1\.0: not a custom"),
        ({"serve": {"dynamics": {"hosts": 1, "resources": {"CPU": 1.0}}}}, r"serve\.dynamics\.resources\.CPU"),
    ],
)
def test_labels_and_resources_that_mean_nothing_are_refused(sections: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidExperiment, match=named):
        check(POOLS, **sections)


def test_seeds_go_to_actors_when_they_are_placed() -> None:
    def placed(**compute: Any) -> bool:
        return validate({**SMALL, "seeds": [0, 1], "compute": compute}).seeds_in_actors

    assert [placed(), placed(parallel_seeds=2), placed(labels={"pool": "a"}), placed(resources={"seat": 1.0})] == [
        False,
        True,
        True,
        True,
    ]


def test_gpus_need_a_remote_learner() -> None:
    with pytest.raises(InvalidExperiment, match=r"Set learners to 1"):
        check(optimize={"gpus_per_learner": 1.0})
