"""A trial of Ray Tune holds one reservation, and all that it starts lives there: nothing waits for ever."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.util.placement_group import placement_group_table

from proxygap.base.errors import InfeasibleResources
from proxygap.serve.pool import HostPool
from proxygap.serve.settings import Hosting
from proxygap.sweep.load import LoadedSweep, load_sweep
from proxygap.sweep.resources import start_shared, trial_bundles, trial_premises
from proxygap.testing.hosted import affine_recipe
from tests.loops.command import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]
Load = Callable[..., LoadedSweep]
RUNNERS = {**SMALL["collect"], "env_runners": 1, "cpus_per_runner": 0.5}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(sweep: dict[str, Any], **sections: Any) -> LoadedSweep:
        space = {"imagine.rollouts_per_step": {"kind": "choice", "values": [5, 10]}}
        file = tmp_path / "sweep.yaml"
        file.write_text(json.dumps({**SMALL, **sections, "sweep": {"space": space, **sweep}}))
        return load_sweep(file)

    return load


@pytest.fixture(autouse=True)
def quiet_tune(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="ray")
        yield


def tried(
    loaded: LoadedSweep, folder: Path, trial: Callable[[LoadedSweep], dict[str, Any]], count: int = 1
) -> list[dict[str, Any]]:
    """Run trials under Ray Tune as a sweep does, and give what each returned."""

    def function(_: dict[str, Any]) -> None:
        with trial_premises(loaded.base, loaded.sweep, "sweep"):
            tune.report(trial(loaded))

    tuner = tune.Tuner(
        tune.with_resources(function, trial_bundles(loaded.base, loaded.sweep)),
        param_space={"number": tune.grid_search(list(range(count)))},
        run_config=tune.RunConfig(storage_path=str(folder / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    return [dict(result.metrics or {}) for result in results]


def asked(pool: HostPool, value: float) -> list[float]:
    return [float(answer["y_BF"][0, 0]) for answer in pool.call_all("apply", {"x_BF": np.array([[value]])})]


def loops_and_hosts(loaded: LoadedSweep) -> dict[str, Any]:
    """Two seeds of a loop with a remote runner and hosts each, in turn, as in lockstep."""
    loops = [loaded.base.loop.start(loaded.base, seed) for seed in loaded.base.seeds]
    try:
        while any(loop.model.version == 0 for loop in loops):
            for loop in loops:
                loop.train()
        table = [each for each in placement_group_table().values() if each["state"] == "CREATED"]
        pids = [health.pid for loop in loops for health in loop.model.health()]
        return {
            "groups": len(table),
            "bundles": len(table[0]["bundles"]),
            "free": ray.available_resources().get("CPU", 0.0),
            "processes": len({os.getpid(), *pids}),
            "steps": sum(loop.clocks.real_step for loop in loops),
        }
    finally:
        for loop in loops:
            loop.stop()


@pytest.mark.long
def test_runners_and_hosts_of_all_seeds_fill_the_reservation_of_their_trial(load: Load, tmp_path: Path) -> None:
    loaded = load({}, seeds=[0, 1], collect=RUNNERS, serve={"dynamics": {"hosts": 2, "cpus": 0.5}})
    (found,) = tried(loaded, tmp_path, loops_and_hosts)
    # the process 1, the runners of both seeds 2 x 0.5 on one bundle, their hosts 4 x 0.5: all four CPUs
    assert found["groups"] == 1
    assert found["bundles"] == 1 + 1 + 4
    assert found["free"] == 0.0
    assert found["processes"] == 1 + 4
    assert found["steps"] >= 2 * 60


def pools_in_turn(loaded: LoadedSweep) -> dict[str, Any]:
    """More hosts than were reserved are refused at once; what a closed pool held can be had again."""
    hosting = loaded.base.serve.dynamics

    def pool(name: str, hosts: int) -> HostPool:
        recipes = [affine_recipe(2.0 + host) for host in range(hosts)]
        return HostPool(recipes, hosting, f"{name}/dynamics", lambda *_: None, option="serve.dynamics")

    first = pool("first", 2)
    answers = asked(first, 1.0)
    refused = ""
    try:
        pool("second", 1)
    except InfeasibleResources as error:
        refused = str(error)
    names = first.names
    first.close()
    again = pool("again", 2)
    answers += asked(again, 2.0)
    again.close()
    return {"answers": answers, "refused": refused, "names": names}


def test_hosts_beyond_the_reservation_are_refused_and_closed_ones_make_room(load: Load, tmp_path: Path) -> None:
    (found,) = tried(load({}, serve={"dynamics": {"hosts": 2, "cpus": 1.5}}), tmp_path, pools_in_turn)
    assert found["answers"] == [2.0, 3.0, 4.0, 6.0]
    assert "serve.dynamics.hosts = 1: the trial sweep has 0 free bundles for hosts of dynamics" in found["refused"]
    assert tuple(found["names"]) == ("sweep/first/dynamics-0", "sweep/first/dynamics-1")


def own_model_on_a_shared_host(loaded: LoadedSweep) -> dict[str, Any]:
    number = tune.get_context().get_trial_id()
    factor = float(int(number.rsplit("_", 1)[1]) + 2)
    recipes, hosting = [affine_recipe(factor)], Hosting(deadline_s=60.0)
    pool = HostPool(recipes, hosting, f"{number}/dynamics", lambda *_: None, option="serve.dynamics")
    right = [asked(pool, float(value)) == [factor * value] for value in range(20)]
    names, process = pool.names, pool.health()[0].pid
    pool.close()
    return {"right": all(right), "host": process, "names": names}


def test_trials_share_hosts_that_were_started_once(load: Load, tmp_path: Path) -> None:
    loaded = load({"hosts": "shared", "concurrency": 3}, serve={"dynamics": {"hosts": 1, "cpus": 1.0}})
    shared = start_shared(loaded, "sweep")
    try:
        assert shared.names == {"dynamics": ("sweep/dynamics-0",)}
        found = tried(loaded, tmp_path, own_model_on_a_shared_host, count=3)
    finally:
        shared.close()
    assert [each["right"] for each in found] == [True] * 3
    assert len({each["host"] for each in found}) == 1
    assert {tuple(each["names"]) for each in found} == {("sweep/dynamics-0",)}


def test_a_sweep_of_hosts_of_its_own_shares_none(load: Load) -> None:
    shared = start_shared(load({}, serve={"dynamics": {"hosts": 2, "cpus": 4.0}}), "sweep")
    assert shared.names == {}
    shared.close()
