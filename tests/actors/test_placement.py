"""What cannot be placed is refused within seconds and by name; what can be is placed as asked."""

from __future__ import annotations

import time
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table

from proxygap.base.errors import InfeasibleResources
from proxygap.serve.pool import HostPool
from proxygap.serve.settings import Hosting
from proxygap.testing.hosted import affine_recipe

pytestmark = [pytest.mark.ray]


def pool(hosting: Hosting, events: Any, hosts: int = 2, ready_timeout_s: float = 5.0) -> HostPool:
    recipes = [affine_recipe(2.0)] * hosts
    return HostPool(recipes, hosting, "run/affine", events, option="serve.affine", ready_timeout_s=ready_timeout_s)


@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus": 1.0}, r"serve.affine.gpus = 1.0: .*GPU 1 .*CPU 4.*lower serve.affine.hosts, or add a node with GPU"),
        ({"accelerator_type": "H100"}, r"serve.affine.accelerator_type = 'H100': .*accelerator_type:H100"),
        ({"cpus": 3.0}, r"serve.affine.cpus = 3.0: the hosts ask for CPU 6 together and the cluster has 4"),
        ({"strategy": "STRICT_SPREAD"}, r"serve.affine.strategy = 'STRICT_SPREAD': .*2 nodes.*only 1"),
    ],
)
def test_infeasible_requests_are_named_at_once(options: dict[str, Any], message: str, events: Any) -> None:
    began = time.monotonic()
    with pytest.raises(InfeasibleResources, match=message):
        pool(Hosting(**options), events)
    assert time.monotonic() - began < 5.0


@pytest.mark.usefixtures("nothing_leaks")
def test_a_busy_cluster_is_told_apart_and_nothing_stays_reserved(events: Any) -> None:
    first = pool(Hosting(cpus=1.5), events)
    with pytest.raises(InfeasibleResources, match=r"busy: after 1 s it has CPU 1 free"):
        HostPool([affine_recipe(1.0)], Hosting(cpus=2.0), "run/late", events, ready_timeout_s=1.0)
    first.close()
    late = HostPool([affine_recipe(1.0)], Hosting(cpus=4.0), "run/late", events)
    late.close()


@pytest.mark.usefixtures("nothing_leaks")
def test_hosts_that_ask_for_nothing_are_placed(events: Any) -> None:
    free = pool(Hosting(cpus=0.0), events)
    assert len({health.pid for health in free.health()}) == 2
    assert ray.available_resources()["CPU"] == 4.0
    free.close()


@pytest.mark.usefixtures("nothing_leaks")
def test_a_pool_inside_a_reserved_actor_uses_its_own_reservation() -> None:
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        group, placement_group_capture_child_tasks=True
    )
    trial = ray.remote(num_cpus=1)(_trial).options(scheduling_strategy=strategy)
    groups, answer = ray.get(trial.remote(), timeout=60)
    assert answer == [6.0, 6.0]
    assert {state for name, state in groups.items() if name == "trial/affine"} == {"CREATED"}
    ray.util.remove_placement_group(group)


def _trial() -> tuple[dict[str, str], list[float]]:
    import numpy as np

    inner = HostPool([affine_recipe(2.0)] * 2, Hosting(cpus=1.0), "trial/affine", lambda *_: None)
    answers = inner.call_all("apply", {"x_BF": np.array([[3.0]])})
    groups = {each["name"]: each["state"] for each in placement_group_table().values()}
    inner.close()
    return groups, [float(answer["y_BF"][0, 0]) for answer in answers]
