"""Control on a learned reward: what is optimized, what is measured, when labels are bought, and exact resume."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import ItemSpec
from proxygap.base.progress import Progress
from proxygap.base.records import Transitions
from proxygap.collect.labels.dataset import read_preferences
from proxygap.experiment import Experiment, validate
from proxygap.loops.control_preferences import on_policy_accuracy, within_episodes
from proxygap.loops.rewards import proxy_return
from proxygap.loops.run import run
from proxygap.loops.session import ray_session
from proxygap.record.checkpoint import CheckpointStore
from tests.loops.command import Command
from tests.loops.test_language_loops import events, readings

TASK = {"kind": "gymnasium", "id": "Pendulum-v1", "max_episode_steps": 60}
REWARD = {"kind": "mlp_reward", "members": 3, "hidden": [16]}
SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {
        "optimize": {"kind": "ppo", "hidden": [8, 8], "minibatch_size": 20, "epochs": 2, "normalize_obs": True},
        "loop": {"steps_per_sample": 60, "steps_per_iteration": 60},
        "collect": {"envs_per_runner": 2},
        "judge": {"transforms": [{"kind": "whiten"}]},
    },
    "sac": {
        "optimize": {"kind": "sac", "hidden": [8, 8], "batch_size": 16},
        "loop": {"steps_per_sample": 1, "steps_per_iteration": 60},
        "collect": {"random_steps": 120},
    },
}


def tree(optimizer: str, **sections: Any) -> dict[str, Any]:
    chosen = SETTINGS[optimizer]
    pace = {"kind": "preference_control", "real_steps": 480, "segment_length": 10, "label_rounds": 3, **chosen["loop"]}
    return {
        "name": "preferences",
        "question": "Can it be learned from comparisons?",
        "task": TASK,
        "outcomes": ["return"],
        "proxy": REWARD,
        "labels": {"pairs": 40},
        "probe": {"every": 120, "episodes": 2},
        **{name: value for name, value in chosen.items() if name != "loop"},
        **{name: value for name, value in sections.items() if name != "loop"},
        "loop": {**pace, **sections.get("loop", {})},
    }


def loop(optimizer: str, **sections: Any) -> Any:
    experiment = validate(tree(optimizer, **sections))
    return experiment.loop.start(experiment, 0)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)
    with ray_session(), warnings.catch_warnings():
        yield


def go(subject: Any, until: int) -> list[tuple[str, dict[str, Any]]]:
    """Train and measure to a real step; what happened on the way."""
    told = []
    while subject.clocks.real_step < until:
        subject.train()
        if subject.measure_due:
            subject.measure()
        told += [(kind, detail) for kind, detail in subject.events]
        subject.events.clear()
    return told


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for part, state in one.items():
        assert state.structure == other[part].structure, part
        assert state.arrays.keys() == other[part].arrays.keys(), part
        for name, array in state.arrays.items():
            assert np.array_equal(array, other[part].arrays[name], equal_nan=array.dtype.kind == "f"), f"{part}/{name}"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ppo", "sac"])
def test_resumed_equals_never_stopped_bit_for_bit(optimizer: str) -> None:
    whole = loop(optimizer)
    go(whole, 240)
    parts = whole.parts()
    go(whole, 480)
    expected, measured = whole.parts(), whole.measure()
    whole.stop()
    resumed = loop(optimizer)
    resumed.load_parts(parts)
    go(resumed, 480)
    assert_equal_states(resumed.parts(), expected)
    assert resumed.measure() == measured
    assert resumed.clocks == whole.clocks
    resumed.stop()


LONGER: dict[str, Any] = {
    "loop": {"real_steps": 960},
    "probe": {"every": 120, "episodes": 2, "resamples": 100},
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["ppo", "sac"])
def test_killed_and_resumed_equals_never_killed(tmp_path: Path, optimizer: str) -> None:
    whole, broken = Command(tmp_path / "whole"), Command(tmp_path / "broken")
    for command in (whole, broken):
        command.folder.mkdir()
        command.write(**{**tree(optimizer, **LONGER), "name": "small", "fit": None, "imagine": {}})
    whole("run", str(whole.file))
    process = broken.start("run", str(broken.file))
    broken.kill_after(process, readings=3)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    killed_at = len(broken.readings())
    broken("resume", str(broken.run_folder.path))
    assert broken.readings() == whole.readings()
    assert 3 <= killed_at < len(whole.readings()) == 8
    assert "objective/proxy_return" in whole.readings()[-1]
    assert whole.readings()[-1]["clocks"]["label"] == 40
    states = []
    for command in (whole, broken):
        key = validate(json.loads((command.run_folder.path / "experiment.json").read_text())).run_key(0)
        found = CheckpointStore(command.run_folder.seed(0).checkpoints, keep=2).load_newest(key)
        assert found is not None
        states.append(found.parts)
    assert_equal_states(*states)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["ppo", "sac"])
def test_a_host_killed_while_the_loop_runs_is_an_event_and_changes_nothing(tmp_path: Path, optimizer: str) -> None:
    def experiment(name: str, hosts: int) -> Experiment:
        serve = {"reward": {"hosts": hosts, "cpus": 0.1, "deadline_s": 120.0}}
        sections = {**LONGER, "serve": serve, "record": {"folder": str(tmp_path / name)}}
        return validate(tree(optimizer, **sections))

    def kill_once(progress: Progress) -> None:
        if progress.clocks.real_step >= 360 and not killed:
            host = ray.get_actor(f"{hosted.folder_name}/seed-0/reward-1")
            killed.append(ray.get(host.health.remote()).pid)
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    in_process, hosted = experiment("in process", 0), experiment("hosted", 2)
    expected, found = run(in_process), run(hosted, on_progress=kill_once)
    assert len(killed) == 1
    assert readings(found) == readings(expected)
    assert len(readings(found)) == 8
    restarts = [event.detail for event in events(found) if event.kind == "host_restarted"]
    assert [(detail["host"], detail["restarts"]) for detail in restarts] == [
        (f"{hosted.folder_name}/seed-0/reward-1", 1)
    ]
    (others_found, others) = ([e.kind for e in events(s) if e.kind != "host_restarted"] for s in (found, expected))
    assert others_found == others


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ppo", pytest.param("sac", marks=pytest.mark.long)])
def test_hosts_give_the_numbers_of_the_process(optimizer: str) -> None:
    states = []
    for hosts in (0, 2):
        subject = loop(optimizer, serve={"reward": {"hosts": hosts, "cpus": 0.1}})
        go(subject, 240)
        states.append(subject.parts())
        subject.stop()
    assert_equal_states(*states)


@pytest.mark.ray
@pytest.mark.slow
def test_labels_are_spread_over_the_budget_and_kept(tmp_path: Path) -> None:
    subject, labels = loop("ppo"), []
    while subject.clocks.real_step < 480:
        subject.train()
        labels.append(subject.clocks.label)
    assert labels == [14, 27, 40, 40]  # after the first rollout, then every third of the 360 steps that are left
    subject.keep(tmp_path, {})
    kept = read_preferences(tmp_path / "preferences.parquet", ItemSpec(features=4))
    assert len(kept) == 40
    assert kept.chosen["feature"].shape == (40, 10, 4)
    subject.stop()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ppo", "sac"])
def test_what_is_optimized_is_the_learned_reward(optimizer: str) -> None:
    subject = loop(optimizer)
    seen: list[dict[str, Any]] = []
    update = subject.learner_group.update
    subject.learner_group.update = lambda batch: seen.append(dict(batch["default_policy"])) or update(batch=batch)
    go(subject, 240)
    columns = seen[-1]
    executed = columns["action"].clip(-1, 1)
    items = {"feature": np.concatenate([columns["obs"], executed], axis=1)[:, None]}
    if optimizer == "sac":  # no judge with memory, and no refit since
        scores = subject.side.reward.score(items).mean(dim=0).numpy()
        np.testing.assert_allclose(columns["proxy_reward"], scores, rtol=1e-5, atol=1e-6)
    else:
        scores = subject.side.reward.score(items).mean(dim=0).numpy()
        assert np.corrcoef(columns["proxy_reward"], scores)[0, 1] > 0.9999
    subject.stop()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ppo", "sac"])
def test_gold_as_proxy_is_training_on_the_true_return(optimizer: str) -> None:
    subject = loop(optimizer, proxy={"kind": "gold"}, judge={})
    go(subject, 240)
    values = {each.key: each.value for each in subject.measure()}
    assert values["objective/proxy_return"] == pytest.approx(values["outcome/return"], rel=1e-5)
    assert values["gap/within_episode_correlation"] == pytest.approx(1.0)
    assert subject.clocks.label == subject.clocks.model_update == 0
    subject.stop()


@pytest.mark.ray
@pytest.mark.slow
def test_every_side_is_measured_on_the_same_episodes() -> None:
    subject = loop("ppo")
    go(subject, 120)
    values = {each.key: each.value for each in subject.measure()}
    assert {
        "outcome/return",
        "objective/proxy_return",
        "objective/held_out_accuracy",
        "objective/reward_accuracy_on_policy",
        "gap/within_episode_correlation",
        "model/member_std",
        "objective/value_estimate",
    } <= values.keys()
    assert -60 * 17 < values["outcome/return"] < 0
    again = {each.key: each.value for each in subject.measure()}
    assert again == values, "measuring changes nothing"
    subject.stop()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_remote_runners_give_whole_rollouts() -> None:
    subject = loop("ppo", collect={"env_runners": 2, "cpus_per_runner": 0.1})
    go(subject, 240)
    assert subject.clocks.real_step == 240
    assert len(np.unique(subject.replay.all().episode_B)) == 4  # two runners, two episodes of 60 steps each
    subject.stop()


@pytest.mark.ray
def test_biased_annotators_of_segments_are_refused() -> None:
    with pytest.raises(InvalidExperiment, match=r"labels\.bias"):
        loop("ppo", labels={"pairs": 40, "bias": 1.0})


@pytest.mark.ray
@pytest.mark.slow
def test_segments_longer_than_any_episode_are_refused_with_the_remedy() -> None:
    subject = loop("ppo", loop={"segment_length": 61})
    with pytest.raises(InvalidExperiment, match="Shorten the segments"):
        subject.train()
    subject.stop()


def episodes(*rewards: list[float]) -> Transitions:
    number = np.concatenate([np.full(len(each), index) for index, each in enumerate(rewards)]).astype(np.int64)
    step = np.concatenate([np.arange(len(each)) for each in rewards]).astype(np.int64)
    blank = np.zeros((len(step), 1), np.float32)
    none = np.zeros(len(step), np.bool_)
    paid = np.concatenate(rewards).astype(np.float32)
    return Transitions(blank, blank, blank, paid, blank[:, :0], none, none, number, step)


def test_proxy_return_by_hand() -> None:
    mean, std = proxy_return(np.array([1.0, 2.0, 3.0, 10.0]), episodes([0, 0, 0], [0]))
    assert (mean.key, mean.value) == ("objective/proxy_return", 8.0)
    assert std.value == pytest.approx(np.std([6.0, 10.0], ddof=1))


def test_correlation_is_taken_within_episodes_not_between_them() -> None:
    rows = episodes([1, 2, 3], [11, 12, 13], [5, 5, 5])
    proxy = np.array([3.0, 2.0, 1.0, 103.0, 102.0, 101.0, 1.0, 2.0, 3.0])  # between episodes it rises with gold
    (measured,) = within_episodes(proxy, rows)
    assert measured.value == pytest.approx(-1.0)
    assert within_episodes(np.zeros(3), episodes([1, 2, 3])) == ()


def test_accuracy_on_policy_of_the_truth_of_its_negative_and_of_noise() -> None:
    rng = np.random.default_rng(0)
    rows = episodes(*rng.normal(size=(5, 100)).tolist())
    truth = rows.outcome_reward_B.astype(np.float64)
    for proxy, low, high in ((truth, 1.0, 1.0), (-truth, 0.0, 0.0), (rng.normal(size=500), 0.3, 0.7)):
        (measured,) = on_policy_accuracy(proxy, rows, 10, seed=0)
        assert low <= measured.value <= high
    assert on_policy_accuracy(truth, rows, 101, seed=0) == ()
    assert on_policy_accuracy(truth, episodes([1.0] * 50), 10, seed=0) == ()
