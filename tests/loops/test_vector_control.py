"""Control on several rewards: what is optimized, what is measured, weights that move, and exact resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proxygap.base.language import ItemSpec
from proxygap.collect.episodes import read_episodes
from proxygap.collect.labels.dataset import read_preferences
from proxygap.experiment import validate
from proxygap.loops.session import ray_session
from tests.loops.test_preference_control import assert_equal_states, go

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SEA = {"kind": "mo_gymnasium", "id": "deep-sea-treasure-concave-v0"}
SMALL = {"kind": "ppo", "hidden": [8, 8], "minibatch_size": 32, "epochs": 2}
GUIDED = {"kind": "hypervolume_guided", "reference_point": {"treasure": 0.0, "time": -120.0}}
NAMES = ("treasure", "time")


def tree(**sections: Any) -> dict[str, Any]:
    chosen = {
        "name": "sea",
        "question": "How much of the front is found?",
        "task": SEA,
        "outcomes": ["hypervolume"],
        "loop": {"kind": "ppo", "real_steps": 480, "steps_per_sample": 30, "steps_per_iteration": 60},
        "collect": {"envs_per_runner": 2},
        "optimize": SMALL,
        "probe": {"every": 120, "episodes": 2},
    }
    return {**chosen, **sections}


def on_preferences(**sections: Any) -> dict[str, Any]:
    pace = {"real_steps": 480, "steps_per_sample": 60, "steps_per_iteration": 120}
    pace |= {"kind": "preference_control", "segment_length": 5, "label_rounds": 3}
    proxy = {"kind": "mlp_reward", "members": 2, "hidden": [8]}
    return tree(**{"loop": pace, "proxy": proxy, "labels": {"pairs": 12}, **sections})


def start(chosen: dict[str, Any], seed: int = 0) -> Any:
    experiment = validate(chosen)
    return experiment.loop.start(experiment, seed)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    torch.set_num_threads(1)
    with ray_session(), warnings.catch_warnings():
        yield


def measured(subject: Any) -> dict[str, float]:
    return {each.key: each.value for each in subject.measure()}


def assert_resumes(chosen: dict[str, Any]) -> None:
    whole = start(chosen)
    go(whole, 240)
    parts = whole.parts()
    go(whole, 480)
    expected, at_the_end = whole.parts(), whole.measure()
    whole.stop()
    resumed = start(chosen)
    resumed.load_parts(parts)
    go(resumed, 480)
    assert_equal_states(resumed.parts(), expected)
    assert resumed.measure() == at_the_end
    assert (resumed.clocks, resumed.weights) == (whole.clocks, whole.weights)
    resumed.stop()


def test_resumed_equals_never_stopped_bit_for_bit_with_a_weighting_that_remembers() -> None:
    optimize = {**SMALL, "normalize_advantages": False, "normalize_obs": True}
    assert_resumes(tree(judge={"weighting": GUIDED}, optimize=optimize))


def test_weights_that_move_are_told_at_every_update_and_follow_what_was_lived() -> None:
    subject = start(tree(judge={"weighting": GUIDED}, optimize={**SMALL, "normalize_advantages": False}))
    assert subject.weights == {}
    seen = []
    while subject.clocks.real_step < 480:
        subject.train()
        seen.append(dict(subject.weights))
        assert not any(name.startswith("weight/") for name in subject.learned)
        assert subject.learned["weighting/factor"] * 0.5 == subject.weights["treasure"] == subject.weights["time"]
    assert len({weights["time"] for weights in seen}) > 1
    running = subject.parts()["running"].arrays["episode"]
    assert len(running) <= 2, "one episode of each environment goes on"
    subject.stop()


def test_every_side_is_measured_and_measuring_again_changes_nothing() -> None:
    subject = start(tree(judge={"weighting": {"kind": "fixed", "weights": {"treasure": 3.0, "time": 0.5}}}))
    go(subject, 240)
    values = measured(subject)
    vector = np.array([values[f"outcome/return/{name}"] for name in NAMES])
    assert values["objective/proxy_return"] == pytest.approx(3.0 * vector[0] + 0.5 * vector[1], rel=1e-6)
    assert values["outcome/hypervolume"] >= max(0.0, vector[0]) * max(0.0, vector[1] + 50)
    assert {"outcome/expected_utility", "outcome/igd_plus", "objective/value_estimate"} <= values.keys()
    start_obs = torch.from_numpy(subject.evaluator.evaluate(subject.policy()).start_obs_EO)
    by_component = subject.policy().values(start_obs).mean(dim=0)
    assert values["objective/value_estimate"] == pytest.approx(float(by_component @ torch.tensor([3.0, 0.5])), rel=1e-4)
    assert measured(subject) == values
    assert subject.clocks.label == 0
    subject.stop()


def test_choices_and_weights_lead_to_the_best_treasure() -> None:
    sections = {
        "loop": {"kind": "ppo", "real_steps": 16384, "steps_per_sample": 256, "steps_per_iteration": 1024},
        "collect": {"envs_per_runner": 4},
        "optimize": {"kind": "ppo", "minibatch_size": 128, "learning_rate": 1e-3, "entropy_coefficient": 0.03},
        "judge": {"weighting": {"kind": "fixed", "weights": {"treasure": 1.0, "time": 0.01}}},
        "probe": {"every": 8192, "episodes": 1},
    }
    subject = start(tree(**sections))
    go(subject, 16384)
    values = measured(subject)
    assert (values["outcome/return/treasure"], values["outcome/return/time"]) == (124.0, -19.0)
    assert values["outcome/hypervolume"] > 124 * (50 - 19)
    subject.stop()


def test_one_reward_and_choices_balance_a_pole() -> None:
    sections = {
        "task": {"kind": "gymnasium", "id": "CartPole-v1"},
        "outcomes": ["return"],
        "loop": {"kind": "ppo", "real_steps": 10240, "steps_per_sample": 256, "steps_per_iteration": 1024},
        "collect": {"envs_per_runner": 4},
        "optimize": {"kind": "ppo", "minibatch_size": 128, "learning_rate": 1e-3},
        "probe": {"every": 5120, "episodes": 3},
    }
    subject = start(tree(**sections))
    go(subject, 10240)
    values = measured(subject)
    assert values["outcome/return"] > 400
    assert values["objective/proxy_return"] == values["outcome/return"]
    assert subject.weights == {}
    assert "archive" not in subject.parts()
    subject.stop()


def test_gold_as_proxy_is_the_loop_on_the_components_themselves() -> None:
    plain = start(tree(judge={"weighting": GUIDED}, loop={**tree()["loop"], "steps_per_sample": 60}))
    proxied = start(on_preferences(judge={"weighting": GUIDED}, proxy={"kind": "gold"}))
    for subject in (plain, proxied):
        go(subject, 480)
    one, other = plain.parts(), proxied.parts()
    other.pop("replay")
    assert_equal_states(one, other)
    assert measured(plain)["objective/proxy_return"] == measured(proxied)["objective/proxy_return"]
    plain.stop()
    proxied.stop()


def test_a_learned_reward_for_each_component_resumes_bit_for_bit() -> None:
    judge = {"weighting": {"kind": "gradient_influence"}, "transforms": [{"kind": "whiten"}]}
    assert_resumes(on_preferences(judge=judge))


def test_each_component_has_its_own_labels_reward_and_measures(tmp_path: Path) -> None:
    subject = start(on_preferences(collect={"envs_per_runner": 2, "keep_episodes": True}))
    go(subject, 480)
    assert subject.clocks.label == 2 * 12
    values = measured(subject)
    for name in NAMES:
        assert {f"objective/proxy_return/{name}", f"objective/held_out_accuracy/{name}"} <= values.keys()
    apart = [values[f"objective/proxy_return/{name}"] for name in NAMES]
    assert values["objective/proxy_return"] == pytest.approx(0.5 * sum(apart), rel=1e-5)
    accuracies = [values[f"objective/held_out_accuracy/{name}"] for name in NAMES]
    assert values["objective/held_out_accuracy"] == pytest.approx(np.mean(accuracies))
    first, second = (subject.side.sides[place].reward for place in (0, 1))
    items = {"feature": np.ones((1, 1, 6), np.float32)}
    assert not torch.equal(first.score(items), second.score(items))
    subject.keep(tmp_path, {})
    for name in NAMES:
        assert len(read_preferences(tmp_path / f"preferences.{name}.parquet", ItemSpec(features=6))) == 12
    kept, _ = read_episodes(tmp_path / "episodes.parquet")
    assert kept.component_reward_BR.shape == (480, 2)
    assert (kept.component_reward_BR[:, 1] == -1).all()
    subject.stop()


def test_combined_rewards_are_one_to_the_learner() -> None:
    aims = [{"name": "time", "weight": 1.0, "ideal": 0.0}, {"name": "treasure", "weight": 0.25, "ideal": 8.0}]
    judge = {"combine": {"kind": "chebyshev", "components": aims}}
    for chosen in (tree(judge=judge), on_preferences(judge=judge, proxy={"kind": "gold"})):
        subject = start(chosen)
        seen: list[dict[str, Any]] = []
        rollouts: list[Any] = []
        update, collect = subject.learner_group.update, subject.collect
        subject.learner_group.update = lambda batch, call=update, told=seen: (
            told.append(dict(batch["default_policy"])) or call(batch=batch)
        )
        subject.collect = lambda call=collect, told=rollouts: told.append(call()) or told[-1]
        go(subject, 120)
        paid = rollouts[-1].transitions.component_reward_BR
        by_hand = -np.maximum(0.25 * (8 - paid[:, 0]), -paid[:, 1])
        np.testing.assert_allclose(seen[-1]["proxy_reward"], by_hand, rtol=1e-6)
        assert "component_reward" not in seen[-1]
        assert subject.weights == {}
        values = measured(subject)
        assert values["objective/proxy_return"] < 0
        assert "outcome/hypervolume" in values
        subject.stop()


def test_a_weighting_that_asks_for_the_outcome_pays_for_it_in_labels() -> None:
    search = {"kind": "lagrangian", "thresholds": {"treasure": 5.0}, "search": {"kind": "nelder_mead"}}
    subject = start(tree(judge={"weighting": search}))
    seen: list[np.ndarray[Any, Any]] = []
    update = subject.learner_group.update
    subject.learner_group.update = lambda batch: (
        seen.append(batch["default_policy"]["outcome_return"]) or update(batch=batch)
    )
    go(subject, 480)
    ended = np.concatenate(seen)
    assert subject.clocks.label == int((~np.isnan(ended)).sum()) > 0
    subject.stop()


@pytest.mark.long
def test_remote_runners_get_the_weights_and_give_whole_episodes() -> None:
    collect = {"env_runners": 2, "envs_per_runner": 1, "cpus_per_runner": 0.1}
    subject = start(tree(collect=collect, judge={"weighting": GUIDED}))
    go(subject, 240)
    subject.bring_weights()
    weight = torch.tensor([subject.weights[name] for name in NAMES])
    for found in subject.env_runner_group.foreach_env_runner(
        lambda runner: runner.module.component_weight.tolist(), local_env_runner=False
    ):
        assert found == weight.tolist() == subject.policy().component_weight.tolist()
    assert len(subject.parts()["running"].arrays["episode"]) <= 2
    subject.stop()
