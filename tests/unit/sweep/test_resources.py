"""What trials ask for, added up by hand, on plain lists of nodes. Nothing is launched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from proxygap.base.errors import InfeasibleResources, InvalidExperiment
from proxygap.serve.nodes import NODE_ID, Node
from proxygap.serve.placement import shortage
from proxygap.sweep.load import LoadedSweep, load_sweep
from proxygap.sweep.resources import TrialAsk, check_sweep, trial_ask, trial_bundles
from tests.loops.command import SMALL

Load = Callable[..., LoadedSweep]
LANGUAGE: dict[str, Any] = {
    "name": "arms",
    "question": "Which penalty?",
    "task": {"kind": "bandit_lm"},
    "outcomes": ["gold_reward"],
    "proxy": {"kind": "mlp_reward", "members": 4},
    "loop": {"kind": "best_of_n", "real_steps": 4},
}
PENALTY = {"imagine.rollouts_per_step": {"kind": "choice", "values": [5, 10]}}
RUNNERS = {"env_runners": 2, "cpus_per_runner": 0.5}
HOSTS = {"dynamics": {"hosts": 2, "cpus": 0.25}}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(tree: dict[str, Any] = SMALL, sweep: dict[str, Any] | None = None, **sections: Any) -> LoadedSweep:
        section = {"space": PENALTY, "search": {"kind": "random"}, **(sweep or {})}
        file = tmp_path / "sweep.yaml"
        file.write_text(json.dumps({**tree, **sections, "sweep": section}))
        return load_sweep(file)

    return load


def nodes(*cpus: float, gpus: float = 0.0) -> list[Node]:
    return [Node({"CPU": cpu, "GPU": gpus, "memory": 1e9}) for cpu in cpus]


def amounts(ask: TrialAsk) -> list[Mapping[str, float]]:
    return [bundle.resources for bundle in ask.bundles]


def test_a_trial_of_nothing_but_its_process_is_one_bundle(load: Load) -> None:
    plain = load(compute={"cpus_per_seed": 0.5})
    ask = trial_ask(plain.base, plain.sweep)
    assert (amounts(ask), ask.places, ask.strategy) == ([{"CPU": 0.5}], {}, "PACK")


def test_runners_come_first_then_the_learner_then_hosts(load: Load) -> None:
    full = load(
        seeds=[0, 1, 2],
        collect={**SMALL["collect"], **RUNNERS},
        optimize={**SMALL["optimize"], "learners": 1},
        serve=HOSTS,
    )
    ask = trial_ask(full.base, full.sweep)
    runners, learners, hosts = [{"CPU": 1.5}] * 2, [{"CPU": 1.0}] * 3, [{"CPU": 0.25}] * 6
    assert amounts(ask) == [{"CPU": 1.0}, *runners, *learners, *hosts]
    assert ask.places == {"dynamics": (6, 7, 8, 9, 10, 11)}
    assert ask.strategy == "STRICT_PACK"  # a Learner may be put on any bundle with a CPU
    assert ask.amount("CPU") == 1.0 + 3.0 + 3.0 + 1.5
    assert trial_bundles(full.base, full.sweep).bundles == amounts(ask)


def test_a_learner_with_a_gpu_of_its_own_takes_no_other_place(load: Load) -> None:
    gpu = load(optimize={**SMALL["optimize"], "learners": 1, "gpus_per_learner": 0.5}, serve=HOSTS)
    ask = trial_ask(gpu.base, gpu.sweep)
    assert amounts(ask)[1] == {"GPU": 0.5}
    assert ask.strategy == "PACK"


def test_a_process_that_reserves_no_cpu_keeps_its_bundle(load: Load) -> None:
    """Ray Tune would drop an empty one, and every runner would ask for its neighbor's."""
    free = load(compute={"cpus_per_seed": 0.0}, collect={**SMALL["collect"], "env_runners": 1})
    assert trial_bundles(free.base, free.sweep).bundles == [{"memory": 1.0}, {"CPU": 1.0}]


def test_hosts_beyond_the_members_of_an_ensemble_are_not_reserved(load: Load) -> None:
    few = load(serve={"dynamics": {"hosts": 8, "cpus": 1.0}})  # of 3 members
    assert trial_ask(few.base, few.sweep).places == {"dynamics": (1, 2, 3)}
    rewards = load(
        LANGUAGE,
        {"space": {"proxy.members": {"kind": "integer", "low": 3, "high": 4}}},
        serve={"reward": {"hosts": 3, "cpus": 0.5}, "reference": {"hosts": 1, "cpus": 0.0}},
    )
    ask = trial_ask(rewards.base, rewards.sweep)
    assert ask.places == {"reward": (1, 2, 3), "reference": (4,)}
    assert amounts(ask)[4] == {"memory": 1.0}


def test_each_reward_of_a_task_has_a_model_on_hosts_of_its_own(load: Load) -> None:
    tree = {**LANGUAGE, "task": {"kind": "multi_bandit_lm"}}
    space = {"proxy.members": {"kind": "integer", "low": 3, "high": 4}}
    vector = load(tree, {"space": space}, seeds=[0, 1], serve={"reward": {"hosts": 2, "cpus": 0.5}})
    count = len(vector.base.components)
    assert count > 1
    assert len(trial_ask(vector.base, vector.sweep).places["reward"]) == 2 * count * 2
    with pytest.raises(InfeasibleResources, match=rf"{2 * count:g} for hosts of reward"):
        check_sweep(vector, nodes(2.0))


def test_shared_hosts_are_no_part_of_a_trial(load: Load) -> None:
    shared = load(sweep={"hosts": "shared"}, serve=HOSTS)
    assert amounts(trial_ask(shared.base, shared.sweep)) == [{"CPU": 1.0}]


@pytest.mark.parametrize(
    ("sections", "learner", "named"),
    [
        ({"dynamics": {"hosts": 2, "strategy": "SPREAD"}}, 1, "SPREAD and STRICT_PACK"),
        ({"dynamics": {"hosts": 2, "strategy": "STRICT_PACK"}}, 1, ""),
        ({"dynamics": {"hosts": 2, "strategy": "SPREAD"}}, 0, ""),
    ],
)
def test_one_trial_has_one_strategy(load: Load, sections: dict[str, Any], learner: int, named: str) -> None:
    mixed = load(serve=sections, optimize={**SMALL["optimize"], "learners": learner})
    if named:
        with pytest.raises(InvalidExperiment, match=f"serve: one trial is to be placed by {named}"):
            trial_ask(mixed.base, mixed.sweep)
    else:
        assert trial_ask(mixed.base, mixed.sweep).strategy == sections["dynamics"]["strategy"]


def test_a_learner_with_a_resource_of_its_own_leaves_the_nodes_free(load: Load) -> None:
    one = {**SMALL["optimize"], "learners": 1}
    hosts = {"dynamics": {"hosts": 2, "strategy": "SPREAD"}}
    apart = load(optimize=one, serve=hosts, compute={"learner_resources": {"learner": 1.0}})
    ask = trial_ask(apart.base, apart.sweep)
    assert ask.strategy == "SPREAD"
    assert amounts(ask)[1] == {"CPU": 1.0, "learner": 1.0}
    with pytest.raises(InfeasibleResources, match=r"a host asks for learner 1 and no node has more than 0"):
        check_sweep(apart, nodes(8.0))


def test_each_bundle_of_a_trial_has_the_labels_of_what_it_is_for(load: Load) -> None:
    compute = {"labels": {"pool": "policy"}, "resources": {"seat": 0.5}, "runner_resources": {"simulator": 1.0}}
    hosts = {"dynamics": {"hosts": 1, "cpus": 0.25, "labels": {"pool": "in(a, b)"}}}
    labeled = load(collect={**SMALL["collect"], "env_runners": 1}, compute=compute, serve=hosts)
    factory = trial_bundles(labeled.base, labeled.sweep)
    assert factory.bundles == [{"CPU": 1.0, "seat": 0.5}, {"CPU": 1.0, "simulator": 1.0}, {"CPU": 0.25}]
    assert factory._kwargs == {"bundle_label_selector": [{"pool": "policy"}, {}, {"pool": "in(a,b)"}]}
    policy = Node({"CPU": 2.0, "seat": 1.0, "simulator": 1.0}, {"pool": "policy"})
    check_sweep(labeled, [policy, Node({"CPU": 1.0}, {"pool": "b"})])
    with pytest.raises(InfeasibleResources, match=r"pool=in\(a, b\) and no node has .*of 1, pool is policy on 1"):
        check_sweep(labeled, [policy])
    with pytest.raises(InvalidExperiment, match=r"compute.labels.pool = 'in\(': no selector"):
        check_sweep(load(compute={"labels": {"pool": "in("}}), nodes(8.0))


def test_a_trial_that_is_kept_on_a_node_counts_against_that_node_alone(load: Load) -> None:
    loaded = load(serve={"dynamics": {"hosts": 1, "cpus": 2.0}})
    here, there = (Node({"CPU": 2.0}, {NODE_ID: name}) for name in ("aa", "bb"))
    ask = trial_ask(loaded.base, loaded.sweep, here)
    assert [bundle.labels for bundle in ask.bundles] == [{NODE_ID: "aa"}, {}]
    assert shortage(ask.bundles, ask.strategy, [here, there])[0] == ""
    name, sentence = shortage(ask.bundles * 3, "PACK", [here, *[there] * 9])
    assert (name, sentence) == ("CPU", f"the hosts ask for CPU 3 together and the nodes with {NODE_ID}=aa have 2")


def test_the_arithmetic_of_too_many_trials_is_shown(load: Load) -> None:
    loaded = load(
        sweep={"concurrency": 4}, collect={**SMALL["collect"], **RUNNERS}, serve={"dynamics": {"hosts": 1, "cpus": 2.0}}
    )
    message = (
        r"sweep.concurrency = 4: trials ask for CPU 4 x \(1 for the trial itself \+ 1 for environment runners \+ "
        r"2 for hosts of dynamics\) = 16; the cluster has 9, 6 on its largest node; at most 2 of them fit .*"
        r"Lower sweep.concurrency to 2; or lower collect.env_runners, serve.dynamics.hosts, or add nodes"
    )
    with pytest.raises(InfeasibleResources, match=message):
        check_sweep(loaded, nodes(3.0, 6.0))
    check_sweep(loaded, nodes(8.0, 8.0))


def test_one_trial_that_does_not_fit_is_told_so(load: Load) -> None:
    loaded = load(seeds=[0, 1], serve={"dynamics": {"hosts": 1, "cpus": 1.0}})
    message = (
        r"CPU 1 x \(1 for the trial itself \+ 2 for hosts of dynamics\) = 3, for 2 seeds at a time; the cluster has 2"
        r".*at most 0 of them fit.*Lower serve.dynamics.hosts, or add nodes"
    )
    with pytest.raises(InfeasibleResources, match=message):
        check_sweep(loaded, nodes(2.0))
    check_sweep(loaded, nodes(3.0))


def test_what_fits_in_total_and_on_no_node_is_refused(load: Load) -> None:
    wide = load(serve={"dynamics": {"hosts": 1, "cpus": 3.0}})
    with pytest.raises(InfeasibleResources, match=r"the cluster has 4, 2 on its largest node; at most 0"):
        check_sweep(wide, nodes(2.0, 2.0))
    together = load(serve={"dynamics": {"hosts": 2, "cpus": 1.0, "strategy": "STRICT_PACK"}}, sweep={"concurrency": 2})
    with pytest.raises(InfeasibleResources, match=r"STRICT_PACK asks for one node with CPU 3 .*at most 0 of them"):
        check_sweep(together, nodes(2.0, 2.0, 2.0, 2.0))
    with pytest.raises(InfeasibleResources, match=r"= 6; the cluster has 7, 5 on its largest node; at most 1 of them"):
        check_sweep(together, nodes(5.0, 2.0))
    check_sweep(together, nodes(3.0, 3.0))


def test_missing_accelerators_are_named(load: Load) -> None:
    loaded = load(serve={"dynamics": {"hosts": 1, "accelerator_type": "H100"}})
    with pytest.raises(InfeasibleResources, match=r"accelerator_type:H100 .*Lower serve.dynamics.hosts, or add nodes"):
        check_sweep(loaded, nodes(64.0))


def test_trials_beyond_those_there_are_cost_nothing(load: Load) -> None:
    check_sweep(load(sweep={"concurrency": 64, "trials": 2}), nodes(2.0))


def test_shared_hosts_are_counted_once(load: Load) -> None:
    serve = {"dynamics": {"hosts": 2, "cpus": 1.0}}
    check_sweep(load(sweep={"hosts": "shared", "concurrency": 4}, serve=serve), nodes(6.0))
    with pytest.raises(InfeasibleResources, match=r"CPU 4 x \(1 for .*\) = 4, and the shared hosts of dynamics for 2;"):
        check_sweep(load(sweep={"hosts": "shared", "concurrency": 4}, serve=serve), nodes(5.0))
    with pytest.raises(InfeasibleResources, match=r"CPU 4 x .* = 12; .*at most 2"):
        check_sweep(load(sweep={"hosts": "per_trial", "concurrency": 4}, serve=serve), nodes(6.0))
    with pytest.raises(InvalidExperiment, match=r"sweep.hosts = 'shared': no model .* is on a host"):
        check_sweep(load(sweep={"hosts": "shared"}), nodes(6.0))


def test_the_largest_setting_of_the_space_must_fit(load: Load) -> None:
    space = {
        "collect.env_runners": {"kind": "integer", "low": 0, "high": 2},
        "collect.cpus_per_runner": {"kind": "choice", "values": [0.5, 1.0]},
        "optimize.learners": {"kind": "choice", "values": [0, 1]},
    }
    loaded = load(sweep={"space": space})
    message = r"1 x \(1 for the trial itself \+ 2 for environment runners \+ 1 for the Learner\) = 4"
    with pytest.raises(InfeasibleResources, match=message):
        check_sweep(loaded, nodes(3.0))
    check_sweep(loaded, nodes(4.0))


def test_seeds_in_actors_are_refused_inside_of_a_sweep(load: Load) -> None:
    loaded = load(seeds=[0, 1], compute={"parallel_seeds": 2})
    with pytest.raises(InvalidExperiment, match=r"compute.parallel_seeds = 2: .*raise sweep.concurrency"):
        check_sweep(loaded, nodes(64.0))
    check_sweep(load(seeds=[0], compute={"parallel_seeds": 2}), nodes(64.0))


def test_a_thousand_trials_are_checked_in_no_time(load: Load) -> None:
    began = time.monotonic()
    with pytest.raises(InfeasibleResources, match="at most 500 of them"):
        check_sweep(load(sweep={"concurrency": 1000, "trials": 1000}), nodes(*[10.0] * 50))
    assert time.monotonic() - began < 5.0
