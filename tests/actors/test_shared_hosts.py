"""Hosts that several trials ask: each owner gets the answers of its own model, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from proxygap.base.errors import HostFailed
from proxygap.base.language import ItemSpec, Preferences
from proxygap.base.protocols import State
from proxygap.fit.language.settings import TinyTransformerLanguageModel
from proxygap.fit.reward.settings import MlpReward, RewardTraining
from proxygap.serve.language import build_language
from proxygap.serve.pool import HostPool
from proxygap.serve.premises import Premises, inside
from proxygap.serve.reward import build_reward
from proxygap.serve.settings import Hosting
from proxygap.serve.shared import SharedHosts
from proxygap.testing.hosted import affine_recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks", "one_thread")]
Start = Callable[..., SharedHosts]
Make = Callable[..., HostPool]
SPEC = ItemSpec(vocabulary=9, pad_token=0, prompt_length=3, max_tokens=5, features=4)
REWARD = MlpReward(members=3, hidden=(8,), training=RewardTraining(epochs=2, batch_size=16))
LANGUAGE = TinyTransformerLanguageModel(layers=1, width=16, heads=2)


@pytest.fixture
def start(local_ray: None) -> Iterator[Start]:
    started: list[SharedHosts] = []

    def start(kind: str = "affine", models: int = 8, **options: Any) -> SharedHosts:
        hosting = Hosting(**{"hosts": 1, "cpus": 0.5, **options})
        started.append(SharedHosts({kind: hosting}, "sweep", models=models))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def make(events: Any) -> Iterator[Make]:
    pools: list[HostPool] = []

    def make(shared: SharedHosts, run: str, factor: float, **options: Any) -> HostPool:
        """What a trial does: the pool that it would build for itself, inside of its premises."""
        hosting = Hosting(**{"deadline_s": 30.0, **options})
        with inside(Premises("sweep", shared=shared.names)):
            recipes = [affine_recipe(factor)]
            pools.append(HostPool(recipes, hosting, f"{run}/affine", events, option="serve.affine"))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def x(*values: float) -> dict[str, Any]:
    return {"x_BF": np.array(values, np.float64)[:, None]}


def y(pool: HostPool, *values: float, **options: Any) -> list[float]:
    (answer,) = pool.call_all("apply", x(*values), options)
    return [float(value) for value in answer["y_BF"][:, 0]]


def items(count: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    length_B = rng.integers(1, 6, size=count)
    return {
        "prompt": rng.integers(0, 4, size=count),
        "prompt_token": rng.integers(1, 9, size=(count, 3)),
        "token": np.where(np.arange(5) < length_B[:, None], rng.integers(1, 9, size=(count, 5)), 0),
        "length": length_B,
        "feature": rng.normal(size=(count, 1, 4)).astype(np.float32),
    }


def preferences(seed: int) -> Preferences:
    nothing = np.full(40, np.nan, np.float32)
    return Preferences(
        chosen=items(40, seed),
        rejected=items(40, seed + 1),
        tie_N=np.zeros(40, np.bool_),
        strength_N=np.ones(40, np.float32),
        annotator_N=np.zeros(40, np.int64),
        chosen_rating_N=nothing,
        rejected_rating_N=nothing,
    )


def test_two_rewards_on_the_same_hosts_equal_their_twins(start: Start, events: Any) -> None:
    shared = start("reward", hosts=2)
    assert shared.names == {"reward": ("sweep/reward-0", "sweep/reward-1")}
    hosting, asked = Hosting(hosts=2, deadline_s=120.0), items(17, seed=5)

    def build(seed: int, hosting: Hosting) -> Any:
        options: dict[str, Any] = {"spec": SPEC, "task": None, "seed": seed, "run_name": f"run-{seed}"}
        return build_reward(REWARD, hosting, **options, on_event=events)

    with inside(Premises("sweep", shared=shared.names)):
        hosted = [build(seed, hosting) for seed in (1, 2)]
    twins = [build(seed, Hosting()) for seed in (1, 2)]
    pids = [[health.pid for health in model.health()] for model in hosted]
    assert pids[0] == pids[1]
    assert len(set(pids[0])) == 2
    for seed, pair in enumerate(zip(hosted, twins, strict=True)):
        reports = [model.fit(preferences(seed)) for model in pair]
        assert reports[0] == reports[1]
    for one, twin in zip(hosted, twins, strict=True):  # both were fitted, with other data and other weights
        assert torch.equal(one.score(asked), twin.score(asked))
        ours, theirs = one.state(), twin.state()
        assert ours.structure == theirs.structure
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name])
    assert not torch.equal(hosted[0].score(asked), hosted[1].score(asked))
    for model in hosted:
        model.close()
    assert not events


def test_two_language_models_on_one_host_equal_their_twins(start: Start, events: Any) -> None:
    shared = start("reference")
    rng = np.random.default_rng(0)
    prompt_BL, token_BT = rng.integers(1, 9, size=(6, 3)), rng.integers(1, 9, size=(6, 5))
    columns = prompt_BL, token_BT, np.full(6, 5)

    def build(seed: int, hosts: int) -> Any:
        options: dict[str, Any] = {"spec": SPEC, "end_token": None, "prompts": 4, "seed": seed, "state": None}
        hosting = Hosting(hosts=hosts, deadline_s=120.0)
        return build_language(LANGUAGE, hosting, **options, run_name=f"run-{seed}", on_event=events)

    with inside(Premises("sweep", shared=shared.names)):
        hosted = [build(seed, 1) for seed in (1, 2)]
    for _ in range(2):
        for seed, model in zip((1, 2), hosted, strict=True):
            assert torch.equal(model.log_probs(*columns), build(seed, 0).log_probs(*columns))
    for model in hosted:
        model.close()


def test_interleaved_requests_of_two_owners_are_never_mixed_up(start: Start, make: Make) -> None:
    shared = start()
    pools = {factor: make(shared, f"run-{factor:g}", factor) for factor in (2.0, 3.0)}

    def ask(number: int) -> bool:
        factor = 2.0 + number % 2
        rows = [float(row) for row in range(1 + number % 5)]
        return y(pools[factor], *rows, seconds=0.005) == [factor * row for row in rows]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(64)))
    pools[2.0].update_all("fit", x(8.0))
    assert (y(pools[2.0], 1.0), y(pools[3.0], 1.0)) == ([10.0], [3.0])
    assert (pools[2.0].version, pools[3.0].version) == (1, 0)


def test_a_killed_host_comes_back_for_every_owner(start: Start, make: Make, events: Any) -> None:
    shared = start()
    one, two = make(shared, "one", 2.0), make(shared, "two", 3.0)
    one.update_all("fit", x(2.0))
    for round_ in range(2):
        os.kill(one.health()[0].pid, signal.SIGKILL)
        assert (y(two, 1.0), y(one, 1.0), two.version, one.version) == ([3.0], [4.0], 0, 1)
        assert len(events) == 2 * (round_ + 1)
    assert {(kind, detail["host"]) for kind, detail in events} == {("host_restarted", "sweep/affine-0")}
    assert sorted(detail["restarts"] for _, detail in events) == [1, 1, 2, 2]


def test_more_models_than_a_host_keeps_are_loaded_again_and_stay_right(start: Start, make: Make, events: Any) -> None:
    shared = start(models=2)
    pools = [make(shared, f"run-{factor}", float(factor)) for factor in (2, 3, 4)]
    pools[0].update_all("fit", x(8.0))
    for _ in range(3):
        assert [y(pool, 1.0) for pool in pools] == [[10.0], [3.0], [4.0]]
    assert not events  # the host was not restarted, and nobody says so


def test_a_wait_behind_others_counts_against_no_deadline(start: Start, make: Make, events: Any) -> None:
    shared = start()
    slow, quick = make(shared, "slow", 2.0), make(shared, "quick", 3.0, deadline_s=2.0)
    pid = quick.health()[0].pid
    with ThreadPoolExecutor(1) as threads:
        fit = threads.submit(slow.update_all, "fit", x(1.0), {"seconds": 6.0})
        while not quick.health()[0].others_s:
            time.sleep(0.01)
        began = time.monotonic()
        assert y(quick, 1.0) == [3.0]
        assert time.monotonic() - began > 2.5
        fit.result()
    assert (y(slow, 1.0), quick.health()[0].pid) == ([3.0], pid)
    assert not events


def test_a_host_that_hangs_for_one_owner_is_killed_and_serves_the_others(
    start: Start, make: Make, events: Any, tmp_path: Path
) -> None:
    shared = start()
    stuck, other = make(shared, "stuck", 2.0, deadline_s=3.0), make(shared, "other", 3.0)
    hung: dict[str, Any] = {"seconds": 600.0, "once": str(tmp_path / "hung")}
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(stuck.call_all, "apply", x(1.0), hung, 24.0)
        while not other.health()[0].others_s:
            time.sleep(0.01)
        assert y(other, 1.0) == [3.0]
        assert float(asked.result()[0]["y_BF"][0, 0]) == 2.0
    assert any("hung in apply" in detail["cause"] for _, detail in events)
    with pytest.raises(HostFailed, match=r"host sweep/affine-0 failed in (apply|load): .*deadline"):
        stuck.call_all("apply", x(1.0), {"seconds": 600.0}, deadline_s=3.0)
    assert y(other, 2.0) == [6.0]


def test_closing_forgets_the_model_and_leaves_the_host(start: Start, make: Make) -> None:
    shared = start()
    first, second = make(shared, "first", 2.0), make(shared, "second", 3.0)
    pid = first.health()[0].pid
    first.close()
    with pytest.raises(HostFailed, match="closed"):
        y(first, 1.0)
    assert (y(second, 1.0), second.health()[0].pid) == ([3.0], pid)
    actor = ray.get_actor("sweep/affine-0")
    assert ray.get(actor.health.remote("sweep/first/affine-0")).version is None
    assert ray.get(actor.health.remote("sweep/second/affine-0")).version == 0
    again = make(shared, "first", 4.0)
    state = State({"factor": np.array(9.0), "shift": np.array(0.0)}, {"fits": 5})
    again.load_all(5, [state])
    assert (y(again, 1.0), again.version) == ([9.0], 5)


def test_a_shared_host_that_is_gone_is_named(start: Start, make: Make) -> None:
    shared = start()
    names = dict(shared.names)
    shared.close()
    assert shared.names == {}
    time.sleep(0.5)
    gone = SharedHosts({}, "sweep", models=1)
    gone.names = names
    with pytest.raises(HostFailed, match=r"serve.affine = 'sweep/affine-0': the shared host is not there"):
        make(gone, "late", 2.0)
