"""What a run asks for, added up. Nothing is launched."""

from __future__ import annotations

from typing import Any

import pytest

from proxygap.base.errors import InfeasibleResources, InvalidExperiment
from proxygap.experiment import validate
from proxygap.loops import resources
from tests.loops.command import SMALL

TWO_CPUS = [{"CPU": 1.0}, {"CPU": 1.0}]


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "cluster_nodes", lambda: TWO_CPUS)


def check(**sections: Any) -> None:
    resources.check_resources(validate({**SMALL, **sections}))


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


def test_gpus_need_a_remote_learner() -> None:
    with pytest.raises(InvalidExperiment, match=r"Set learners to 1"):
        check(optimize={"gpus_per_learner": 1.0})
