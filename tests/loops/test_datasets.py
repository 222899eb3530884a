"""Datasets that a run asks for: made by the loops that runs are made of, once, and refused where they cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import InvalidDataset, InvalidExperiment, RunFailed
from proxygap.base.records import Transitions
from proxygap.base.seeds import derived_seed
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.episodes import write_episodes
from proxygap.experiment import Experiment, validate
from proxygap.loops.datasets import dataset
from proxygap.loops.session import ray_session
from proxygap.probe.outcome import Evaluator

PLAN = {"planner": {"kind": "cem", "horizon": 10, "candidates": 24, "rounds": 2}}
SECTIONS = {
    "loop": {"kind": "sac", "real_steps": 90, "steps_per_iteration": 40},
    "collect": {"random_steps": 40},
    "optimize": {"hidden": [8], "batch_size": 8},
}
TEACHER = {"kind": "loop", "sections": SECTIONS}


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "data",
        "question": "What is in it?",
        "task": {"kind": "continuous_cartpole", "start_spread": 0.1, "max_episode_steps": 40},
        "outcomes": ["return"],
        "plan": PLAN,
        "loop": {"kind": "sac", "real_steps": 1000},
        "record": {"folder": str(folder)},
        **changes,
    }


def experiment(folder: Path, **changes: Any) -> Experiment:
    return validate(tree(folder, **changes))


class Asked:
    """What a run is told when it asks for its data."""

    def __init__(self, folder: Path, data: dict[str, Any], seed: int = 0, **changes: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.experiment = experiment(folder, data=data, **changes)
        assert self.experiment.data is not None
        listen = lambda kind, detail: self.events.append((kind, dict(detail)))  # noqa: E731
        self.rows, self.lineage = dataset(self.experiment, self.experiment.data, seed, listen)

    def told(self) -> list[str]:
        return [kind for kind, _ in self.events]


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    with ray_session():
        yield


def test_on_policy_data_are_the_teachers_replay_bit_for_bit(tmp_path: Path) -> None:
    asked = Asked(tmp_path, {"kind": "on_policy", "teacher": TEACHER}, seed=2)
    alone = validate({**tree(tmp_path), **SECTIONS, "probe": {"every": 45, "episodes": 2}})
    loop: Any = alone.loop.start(alone, 2)
    try:
        while loop.clocks.real_step < 90:
            loop.train()
            if loop.measure_due:
                loop.measure()
        lived: Transitions = loop.replay.all()
    finally:
        loop.stop()
    assert asked.rows.content_hash == lived.content_hash
    assert (len(lived), asked.lineage.kind, asked.lineage.seed) == (90, "on_policy", 2)
    policy = asked.lineage.policy
    assert (policy["kind"], policy["loop"], policy["real_steps"]) == ("loop", "sac", 90)
    teacher = asked.experiment.data.teacher.experiment(asked.experiment)  # type: ignore[union-attr]
    assert policy["run_key"] == teacher.run_key(2)


def test_a_teachers_last_policy_is_the_expert(tmp_path: Path) -> None:
    asked = Asked(tmp_path, {"kind": "expert", "teacher": TEACHER, "rows": 60, "side_by_side": 3})
    teacher = asked.experiment.data.teacher.experiment(asked.experiment)  # type: ignore[union-attr]
    loop: Any = teacher.loop.start(teacher, 0)
    try:
        while loop.clocks.real_step < 90:
            loop.train()
        ruler = Evaluator(asked.experiment.control_task, derived_seed(0, "data/expert/0"), 2)
        lived = ruler.evaluate(loop.policy()).transitions
        ruler.close()
    finally:
        loop.stop()
    first = asked.rows[asked.rows.episode_B == asked.rows.episode_B[0]]
    same = lived[lived.episode_B == first.episode_B[0]]
    assert first.content_hash == same.content_hash
    assert 20 < len(asked.rows) <= 60


def test_a_planner_on_the_law_is_an_expert_and_poor_episodes_are_dropped(tmp_path: Path) -> None:
    task = {"kind": "continuous_cartpole", "start_spread": 0.2, "max_episode_steps": 40}
    ask = {"kind": "expert", "rows": 240, "side_by_side": 6}
    everything = Asked(tmp_path, ask, task=task)
    returns = [float(part.outcome_reward_B.sum()) for part in everything.rows.episodes()]
    assert min(map(len, everything.rows.episodes())) == 40, "it never falls"
    bound = float(np.median(returns))
    good = Asked(tmp_path, {**ask, "least_return": bound}, task=task)
    kept = [float(part.outcome_reward_B.sum()) for part in good.rows.episodes()]
    assert min(kept) >= bound - 1e-4
    assert len(good.rows) == 240
    shared = set(everything.rows.episode_B) & set(good.rows.episode_B)
    assert len(shared) == sum(value >= bound for value in returns), "the rest were lived after them"
    assert good.lineage.policy["plan"]["planner"]["candidates"] == 24
    starts = {tuple(part.obs_BO[0]) for part in everything.rows.episodes()}
    measured = Evaluator(everything.experiment.control_task, 0, 6)
    assert starts.isdisjoint(tuple(measured._start(index)) for index in range(6)), "the ruler's episodes stay unseen"
    measured.close()


def test_an_expert_that_is_not_good_enough_is_an_error(tmp_path: Path) -> None:
    poor = {"kind": "expert", "rows": 80, "least_return": 39.99999, "attempts": 4}
    with pytest.raises(
        RunFailed, match=r"expert\.least_return: 4 episodes of the teacher gave 0 of 80.*the best return"
    ):
        dataset((asking := experiment(tmp_path, expert=poor)), asking.expert, 0)  # type: ignore[arg-type]


def test_what_was_made_is_shared_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"kind": "random", "rows": 200}
    first, other = Asked(tmp_path, data), Asked(tmp_path, data, seed=1)
    assert first.rows.content_hash != other.rows.content_hash
    monkeypatch.setattr("proxygap.loops.datasets.uniform_episodes", None)  # to be made again would fail
    again = Asked(tmp_path, data, name="another", question="Is it shared?", plan={})
    assert again.rows.content_hash == first.rows.content_hash
    assert again.lineage == first.lineage
    fixed = Asked(tmp_path, {**data, "seed": 1}, seed=77)
    assert fixed.lineage == other.lineage
    ((kind, told),) = again.events
    assert (kind, told["section"], told["kind"], told["rows"]) == ("dataset", "data", "random", len(again.rows))
    assert told["content_hash"] == again.rows.content_hash
    (file,) = (tmp_path / "datasets").glob(f"{first.lineage.key[:16]}.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TypeError):
        Asked(tmp_path, data)


def test_a_damaged_file_is_made_again_and_told(tmp_path: Path) -> None:
    data = {"kind": "random", "rows": 50}
    first = Asked(tmp_path, data)
    (file,) = (tmp_path / "datasets").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    again = Asked(tmp_path, data)
    assert again.told() == ["dataset_refused", "dataset"]
    assert again.rows.content_hash == first.rows.content_hash
    assert Asked(tmp_path, data).told() == ["dataset"]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"kind": "random", "rows": 51}},
        {"data": {"kind": "random", "rows": 50, "choose": "transitions"}},
        {"task": {"kind": "continuous_cartpole", "force_limit": 9.0}},
    ],
)
def test_other_settings_or_another_task_are_another_dataset(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = {"kind": "random", "rows": 50}
    assert Asked(tmp_path, data).lineage.key != Asked(tmp_path, **{"data": data, **changes}).lineage.key


def test_what_a_teacher_taught_is_shared_by_experiments_of_other_names(tmp_path: Path) -> None:
    data = {"kind": "on_policy", "teacher": TEACHER}
    one, two = (experiment(tmp_path, data=data, **more) for more in ({}, {"name": "b", "seeds": [4], "plan": {}}))
    teachers = [each.data.teacher.experiment(each).identity for each in (one, two)]  # type: ignore[union-attr]
    assert teachers[0] == teachers[1]
    slower = {**TEACHER, "sections": {**SECTIONS, "loop": {"kind": "sac", "real_steps": 91}}}
    three = experiment(tmp_path, data={**data, "teacher": slower})
    assert three.data.teacher.experiment(three).identity != teachers[0]  # type: ignore[union-attr]
    assert three.identity != one.identity, "what is learned from is part of the experiment"


def test_a_file_is_read_cut_down_and_keeps_its_origin(tmp_path: Path) -> None:
    made = Asked(tmp_path, {"kind": "random", "rows": 200})
    file = tmp_path / "given.parquet"
    write_episodes(file, made.rows, made.lineage.provenance())
    asked = Asked(tmp_path, {"kind": "file", "path": str(file), "rows": 90, "content_hash": made.rows.content_hash})
    assert len(asked.rows) <= 90
    numbers = set(asked.rows.episode_B)
    assert asked.rows.content_hash == made.rows[np.isin(made.rows.episode_B, list(numbers))].content_hash
    origin = asked.lineage.policy["provenance"]
    assert Lineage.read(origin, made.rows, "") == made.lineage


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    made = Asked(tmp_path, {"kind": "random", "rows": 60})
    file = tmp_path / "given.parquet"
    write_episodes(file, made.rows, {})
    given = {"kind": "file", "path": str(file)}
    with pytest.raises(InvalidDataset, match=r"data\.content_hash = 'f+': its rows have the hash"):
        Asked(tmp_path, {**given, "content_hash": "f" * 64})
    with pytest.raises(InvalidDataset, match=r"observations of 4, actions of 1 and 0 rewards.*Pendulum-v1 has 3, 1"):
        Asked(tmp_path, given, task={"kind": "gymnasium", "id": "Pendulum-v1"})
    asking = experiment(tmp_path, data={**given, "path": str(tmp_path / "absent.parquet")})
    with pytest.raises(InvalidDataset, match=r"absent\.parquet"):
        asking.check()


HALF_CHEETAH = {"task": {"kind": "gymnasium", "id": "HalfCheetah-v5"}}


def teacher(**sections: Any) -> dict[str, Any]:
    return {"data": {"kind": "on_policy", "teacher": {"kind": "loop", "sections": sections}}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"data": {"kind": "expert", "rows": 9}, **HALF_CHEETAH},
            r"data\.teacher\.kind = 'law': the .* HalfCheetah-v5 is not known.*Use a teacher of kind loop",
        ),
        (
            {"expert": {"kind": "grid", "half_width": [1.0]}, **HALF_CHEETAH},
            r"expert\.kind = 'grid': the law of motion of HalfCheetah-v5 is not known.*Choose another kind",
        ),
        ({"data": {"kind": "grid", "half_width": [1.0, 2.0]}}, r"data\.half_width.*2 numbers.*observation has 4"),
        ({"data": {"kind": "grid", "half_width": [1.0], "points": 30}}, r"data\.points = 30.*24,300,000 points"),
        ({"data": {"kind": "grid"}}, r"data\.half_width: is missing"),
        ({"data": {"kind": "gird"}}, r"data\.kind = 'gird'.*Did you mean 'grid'"),
        (teacher(), r"data\.teacher\.sections\.loop: is missing"),
        (teacher(loop={"kind": "ppo", "real_steps": 4096}), r"sections\.loop\.kind = 'ppo': this loop keeps not all"),
        (teacher(loop={"kind": "best_of_n"}), r"data\.teacher\.sections\.loop\.kind.*best_of_n"),
        (teacher(**SECTIONS, task={"kind": "arms"}), r"data\.teacher\.sections\.task: is no section of a teacher"),
        (
            teacher(loop={"kind": "sac", "real_steps": 90, "updates": 2}),
            r"data\.teacher\.sections\.loop\.updates: is not a known key",
        ),
        (
            teacher(**{**SECTIONS, "optimize": {"hiden": [8], "discount": "x"}}),
            r"(?s)data\.teacher\.sections\.optimize\.discount.*data\.teacher\.sections\.optimize\.hiden",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_before_the_start(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        experiment(tmp_path, **changes)
    assert re.search(told, str(caught.value)), str(caught.value)


def test_a_language_task_has_no_transitions(tmp_path: Path) -> None:
    given = tree(tmp_path, task={"kind": "arms"}, loop={"kind": "tilt"}, outcomes=["gold_reward"], plan={})
    given |= {"proxy": {"kind": "correlated_proxies"}, "data": {"kind": "random", "rows": 5}}
    with pytest.raises(InvalidExperiment, match="data: tasks of language have no transitions"):
        validate(given)


def test_a_recorded_experiment_asks_for_the_same_data(tmp_path: Path) -> None:
    once = experiment(tmp_path, data={"kind": "on_policy", "teacher": TEACHER}, expert={"kind": "expert", "rows": 9})
    again = validate(once.model_dump(mode="json"))
    assert again == once
    assert again.identity == once.identity
