"""A reward ensemble on hosts gives the numbers of the in-process twin, or a clear error: never a made-up score."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from proxygap.base.errors import (
    CheckpointRefused,
    HostFailed,
    InfeasibleResources,
    InvalidDataset,
    InvalidExperiment,
    NonFiniteValue,
)
from proxygap.base.language import ItemSpec, Preferences
from proxygap.base.protocols import State
from proxygap.fit.reward.ensemble import RewardEnsemble
from proxygap.fit.reward.settings import (
    CorrelatedProxies,
    Gold,
    MlpReward,
    RewardTraining,
    TinyNetwork,
    TransformerReward,
)
from proxygap.serve.reward import HostedReward, build_reward
from proxygap.serve.settings import Hosting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks", "one_thread")]

SPEC = ItemSpec(vocabulary=9, pad_token=0, prompt_length=3, max_tokens=5, features=4)
TRAINING = RewardTraining(epochs=3, batch_size=16, bootstrap=True)
MLP = MlpReward(members=5, hidden=(16, 16), training=TRAINING)
TRANSFORMER = TransformerReward(members=5, network=TinyNetwork(), training=TRAINING, pretrain_steps=3)
Model = RewardEnsemble | HostedReward
Make = Callable[..., Model]


def items(count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    length_B = rng.integers(1, 6, size=count)
    token_BT = np.where(np.arange(5) < length_B[:, None], rng.integers(1, 9, size=(count, 5)), 0)
    return {
        "prompt": rng.integers(0, 4, size=count),
        "prompt_token": rng.integers(1, 9, size=(count, 3)),
        "token": token_BT,
        "length": length_B,
        "feature": rng.normal(size=(count, 1, 4)).astype(np.float32),
    }


def preferences(count: int, seed: int = 0) -> Preferences:
    """The item with the larger first feature and the longer answer is preferred, loosely."""
    rng = np.random.default_rng(seed)
    nothing = np.full(count, np.nan, np.float32)
    chosen, rejected = items(count, seed + 1), items(count, seed + 2)
    chosen["feature"][:, :, 0] += 1.0
    return Preferences(
        chosen=chosen,
        rejected=rejected,
        tie_N=rng.random(count) < 0.1,
        strength_N=np.ones(count, np.float32),
        annotator_N=np.zeros(count, np.int64),
        chosen_rating_N=nothing,
        rejected_rating_N=nothing,
    )


PAIRS, ITEMS = preferences(120), items(17, seed=9)


@pytest.fixture
def make(events: Any) -> Iterator[Make]:
    models: list[Model] = []

    def build(hosts: int, settings: Any = MLP, run_name: str = "run", **options: Any) -> Model:
        hosting = Hosting(**{"hosts": hosts, "cpus": 1.0, "deadline_s": 120.0, **options})
        model = build_reward(settings, hosting, spec=SPEC, task=None, seed=7, run_name=run_name, on_event=events)
        assert isinstance(model, RewardEnsemble if hosts == 0 else HostedReward)
        models.append(model)
        return model

    yield build
    for model in models:
        if isinstance(model, HostedReward):
            model.close()


def assert_twins(one: Model, other: Model) -> None:
    """Bit for bit: scores, state, version."""
    assert torch.equal(one.score(ITEMS), other.score(ITEMS))
    assert one.score(ITEMS).shape == (5, 17)
    ours, yours = one.state(), other.state()
    assert ours.structure == yours.structure
    assert sorted(ours.arrays) == sorted(yours.arrays)
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, yours.arrays[name], err_msg=name)
    assert (one.version, one.members) == (other.version, other.members)


def spoiled(state: State, member: int) -> State:
    """The state with NaN in the weights of one member."""
    arrays = {name: array.copy() for name, array in state.arrays.items()}
    for name, array in arrays.items():
        if name.startswith("weights."):
            array[member] = np.nan
    return State(arrays, state.structure)


@pytest.mark.parametrize(
    ("settings", "hosts"),
    [
        pytest.param(MLP, 1, id="mlp-1", marks=pytest.mark.long),
        pytest.param(MLP, 2, id="mlp-2", marks=pytest.mark.long),
        pytest.param(MLP, 3, id="mlp-3"),
        pytest.param(TRANSFORMER, 2, id="tokens-2"),
    ],
)
def test_hosts_equal_the_twin(make: Make, settings: Any, hosts: int) -> None:
    twin, hosted = make(0, settings), make(hosts, settings)
    assert_twins(twin, hosted)  # as built
    assert twin.fit(PAIRS) == hosted.fit(PAIRS)
    assert_twins(twin, hosted)
    for model in (twin, hosted):
        model.calibrate(items(64, seed=3))
    assert hosted.version == 2
    assert_twins(twin, hosted)
    scores_MB = hosted.score(items(64, seed=3))
    torch.testing.assert_close(scores_MB.mean(dim=1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores_MB.std(dim=1, unbiased=False), torch.ones(5), atol=1e-4, rtol=0)
    more = Preferences.concatenate([PAIRS, preferences(40, seed=5)])
    assert twin.fit(more) == hosted.fit(more)
    assert_twins(twin, hosted)
    assert hosted.score(items(0)).shape == (5, 0)


def test_a_checkpoint_of_two_hosts_resumes_on_none_and_on_three(make: Make) -> None:
    two = make(2)
    two.fit(PAIRS)
    two.calibrate(ITEMS)
    state = two.state()
    assert isinstance(two, HostedReward)
    two.close()
    none, three = make(0), make(3)
    for resumed in (none, three):
        resumed.load_state(state)
        assert resumed.version == 2
    assert_twins(none, three)
    assert none.fit(PAIRS) == three.fit(PAIRS)
    assert_twins(none, three)


def test_a_host_killed_while_training_changes_nothing(make: Make, events: Any, kill_at_work: Any) -> None:
    twin, hosted = make(0, TRANSFORMER), make(2, TRANSFORMER)
    assert isinstance(hosted, HostedReward)
    for model in (twin, hosted):
        model.fit(PAIRS)
    data = preferences(400, seed=11)
    expected = twin.fit(data)
    with kill_at_work(hosted, 1):
        assert hosted.fit(data) == expected
    assert [(kind, detail["host"], detail["method"]) for kind, detail in events] == [
        ("host_restarted", "run/reward-1", "fit")
    ]
    assert_twins(twin, hosted)
    assert hosted.health()[1].restarts == 1


@pytest.mark.long
def test_a_host_killed_while_scoring_changes_nothing(make: Make, events: Any, kill_at_work: Any) -> None:
    twin, hosted = make(0, TRANSFORMER), make(2, TRANSFORMER)
    assert isinstance(hosted, HostedReward)
    for model in (twin, hosted):
        model.fit(PAIRS)
        model.calibrate(ITEMS)
    many = items(12_000, seed=4)
    expected = twin.score(many)
    with kill_at_work(hosted, 0):
        assert torch.equal(hosted.score(many), expected)
    assert [(kind, detail["host"], detail["method"], detail["version"]) for kind, detail in events] == [
        ("host_restarted", "run/reward-0", "score", 2)
    ]


@pytest.mark.long
def test_all_hosts_killed_between_calls_answer_with_the_last_version(make: Make, events: Any) -> None:
    twin, hosted = make(0), make(2)
    assert isinstance(hosted, HostedReward)
    for model in (twin, hosted):
        model.fit(PAIRS)
        model.calibrate(ITEMS)
    for health in hosted.health():
        os.kill(health.pid, signal.SIGKILL)
    assert_twins(twin, hosted)
    assert sorted(detail["host"] for _, detail in events) == ["run/reward-0", "run/reward-1"]


def test_spent_restarts_raise_and_give_no_score(make: Make, events: Any) -> None:
    hosted = make(2, max_restarts=0)
    assert isinstance(hosted, HostedReward)
    os.kill(hosted.health()[1].pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(HostFailed, match=r"serve.reward = 'run/reward-1': .*restarts are spent"):
            hosted.score(ITEMS)
    with pytest.raises(HostFailed, match=r"restarts are spent"):
        hosted.fit(PAIRS)
    assert hosted.version == 0
    assert not events


@pytest.mark.parametrize("hosts", [0, 2])
def test_nan_of_one_member_is_named_and_the_host_stays_usable(make: Make, events: Any, hosts: int) -> None:
    model = make(hosts)
    model.fit(PAIRS)
    model.calibrate(ITEMS)
    good, before = model.state(), model.score(ITEMS)
    model.load_state(spoiled(good, 4))  # the second member of the second host
    for _ in range(2):
        with pytest.raises(NonFiniteValue, match=r"\b4\b"):
            model.score(ITEMS)
    with pytest.raises(NonFiniteValue, match=r"\b4\b"):
        model.fit(PAIRS)
    model.load_state(good)
    assert torch.equal(model.score(ITEMS), before)
    assert not events


@pytest.mark.parametrize("hosts", [0, 2])
def test_items_that_cannot_be_scored_fail_alone(make: Make, hosts: int) -> None:
    model = make(hosts, TRANSFORMER)
    before = model.score(ITEMS)
    wrong = {**ITEMS, "token": ITEMS["token"] + 9}
    with pytest.raises(InvalidDataset, match=r"items.token"):
        model.score(wrong)
    with pytest.raises(InvalidDataset, match=r"no pairs"):
        model.fit(PAIRS[:0])
    assert model.version == 0
    assert torch.equal(model.score(ITEMS), before)


def test_callers_in_many_threads_each_get_their_own_rows(make: Make) -> None:
    twin, hosted = make(0), make(2)
    parts = [items(count, seed=count) for count in range(1, 25)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(hosted.score, parts))
    for part, answer in zip(parts, answers, strict=True):  # rows of several callers may run together: float tolerance
        torch.testing.assert_close(answer, twin.score(part), rtol=1e-5, atol=1e-6)


def test_a_deadline_ends_in_one_clear_error(make: Make) -> None:
    hosted = make(1, deadline_s=3.0, max_restarts=0)
    assert isinstance(hosted, HostedReward)
    os.kill(hosted.health()[0].pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(HostFailed, match=r"run/reward-0 failed in score") as caught:
        hosted.score(ITEMS)
    assert time.monotonic() - began < 8.0
    assert "serve.reward.hosts to 0" in caught.value.remedy


def test_infeasible_hosts_are_refused_with_the_arithmetic(make: Make) -> None:
    began = time.monotonic()
    with pytest.raises(InfeasibleResources, match=r"serve.reward.gpus = 1.0: .*GPU 1 .*lower serve.reward.hosts"):
        make(2, gpus=1.0)
    with pytest.raises(InfeasibleResources, match=r"serve.reward.cpus = 3.0: the hosts ask for CPU 6 together"):
        make(2, cpus=3.0)
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize("settings", [Gold(), CorrelatedProxies()])
def test_given_rewards_are_not_hosted_and_need_their_task(settings: Any, events: Any) -> None:
    def build(hosts: int) -> Any:
        return build_reward(
            settings, Hosting(hosts=hosts), spec=SPEC, task=None, seed=7, run_name="run", on_event=events
        )

    with pytest.raises(InvalidExperiment, match=rf"serve.reward.hosts = 1: .*{settings.kind}"):
        build(1)
    with pytest.raises(InvalidExperiment, match=rf"reward.kind = '{settings.kind}': .*given by a language task"):
        build(0)


def test_a_foreign_checkpoint_is_refused_and_the_old_version_stays(make: Make) -> None:
    hosted = make(2)
    hosted.fit(PAIRS)
    before = hosted.score(ITEMS)
    other = MlpReward(members=5, hidden=(8,)).build(SPEC, seed=0)
    with pytest.raises(CheckpointRefused, match="reward"):
        hosted.load_state(other.state())
    assert hosted.version == 1
    assert torch.equal(hosted.score(ITEMS), before)
