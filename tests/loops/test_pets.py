"""Planning in a learned model: it learns, resumes exactly, and does the same wherever its parts live."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from proxygap.base.protocols import EpisodicPolicy, State
from proxygap.experiment import Experiment, load_experiment, validate
from proxygap.loops import pets
from proxygap.loops.pets import Pets
from proxygap.loops.seed_run import SeedRun
from proxygap.probe.catalog import OBJECTIVES
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import RunState, SeedFolder
from proxygap.record.rows import ReadingRow, read_journal
from tests.loops.command import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]
PETS: dict[str, Any] = {
    "name": "small",
    "question": "Does it run?",
    "task": {"kind": "continuous_cartpole", "max_episode_steps": 50, "start_spread": 0.1, "process_noise": 0.02},
    "outcomes": ["return"],
    "collect": {"random_steps": 40},
    "fit": {"members": 3, "hidden": [16, 16], "max_epochs": 5},
    "plan": {
        "planner": {"kind": "cem", "horizon": 5, "candidates": 12, "rounds": 2},
        "particles": 2,
        "replan_every": 2,
    },
    "loop": {"kind": "pets", "real_steps": 120, "refit_every": 40, "steps_per_iteration": 10},
    "probe": {"every": 40, "episodes": 2, "resamples": 100, "imagined_horizon": 4, "k_step": 3},
}


def experiment_of(**changes: Any) -> Experiment:
    return validate({**PETS, **changes})


@pytest.fixture(scope="module", autouse=True)
def shared_ray() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Any:
    """Starts loops, and stops them when the test is over."""

    def started(experiment: Experiment, seed: int = 0) -> Pets:
        loop: Any = experiment.loop.start(experiment, seed)
        request.addfinalizer(loop.stop)
        return loop  # type: ignore[no-any-return]

    return started


def train(loop: Pets, real_step: int) -> list[dict[str, str]]:
    """Go on to a real step; what is measured on the way."""
    readings = []
    while loop.clocks.real_step < real_step:
        loop.train()
        if loop.measure_due:
            readings.append({m.key: repr(m.value) for m in loop.measure()})
    return readings


def assert_equal_parts(one: dict[str, State], other: dict[str, State]) -> None:
    assert one.keys() == other.keys()
    for part, state in one.items():
        assert state.structure == other[part].structure, part
        assert state.arrays.keys() == other[part].arrays.keys(), part
        for name, array in state.arrays.items():
            assert np.array_equal(array, other[part].arrays[name], equal_nan=array.dtype.kind == "f"), f"{part}/{name}"


def test_resumed_in_the_middle_of_an_episode_it_goes_on_bit_for_bit(start: Any) -> None:
    experiment = experiment_of(collect={"random_steps": 40, "envs_per_runner": 2})
    whole, resumed = start(experiment), start(experiment)
    train(whole, 70)
    saved = whole.parts()
    assert any(len(saved["runner-0"].arrays[f"{place}/actions"]) for place in range(2))
    assert np.isfinite(saved["runner-0"].arrays["actor/promise"]).all()
    resumed.load_parts(saved)
    assert_equal_parts(resumed.parts(), saved)
    assert train(resumed, 120) == train(whole, 120)
    assert_equal_parts(resumed.parts(), whole.parts())


def test_a_planner_that_forgot_its_plans_would_act_otherwise(start: Any) -> None:
    """The memory in the checkpoint matters: without it the same resume differs."""
    loop, forgetful = start(experiment_of()), start(experiment_of())
    train(loop, 50)
    saved = loop.parts()
    runner = saved["runner-0"]
    arrays = {name: array for name, array in runner.arrays.items() if not name.startswith("actor/")}
    structure = {name: value for name, value in runner.structure.items() if name != "actor"}
    forgetful.load_parts({**saved, "runner-0": State(arrays, structure)})
    train(loop, 60)
    train(forgetful, 60)
    assert not np.array_equal(loop.replay.all().action_BA, forgetful.replay.all().action_BA)


def test_every_objective_of_the_catalog_is_measured_and_measuring_changes_nothing(start: Any) -> None:
    loop = start(experiment_of())
    train(loop, 80)
    before = loop.parts()
    first, second = loop.measure(), loop.measure()
    assert_equal_parts(loop.parts(), before)
    assert first == second
    found = {m.key: m.value for m in first}
    expected = {f"objective/{name}" for name in OBJECTIVES["pets"] if not name.startswith("expert_")}
    assert expected <= found.keys()
    assert "objective/value_estimate" not in found
    assert all(np.isfinite(found[key]) for key in expected)
    assert isinstance(loop.policy(), EpisodicPolicy)
    horizon = loop.experiment.plan.planner.horizon
    assert found["objective/plan_return"] <= horizon  # at most 1 a step
    evaluation = loop.evaluator.evaluate(loop.policy())
    rows = evaluation.transitions
    real = rows.outcome_reward_B[rows.step_B < horizon].sum() / 2
    assert found["gap/plan_optimism"] == pytest.approx(found["objective/plan_return"] - real, abs=1e-5)


def test_reward_and_termination_are_learned_where_their_laws_are_not_known(start: Any) -> None:
    task = {"kind": "gymnasium", "id": "MountainCarContinuous-v0", "max_episode_steps": 30}
    loop = start(experiment_of(task=task, loop={**PETS["loop"], "real_steps": 80}))
    assert not loop.experiment.control_task.known_reward
    (_, reading) = train(loop, 80)
    assert np.isfinite(float(reading["objective/plan_return"]))
    assert loop.model.state().structure["learn_reward"]
    assert loop.model.state().structure["learn_termination"]


def test_remote_runners_plan_in_the_newest_model_which_is_stored_once(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, original = [], pets.store_weights
    monkeypatch.setattr(pets, "store_weights", lambda loop: stored.append(loop.model.version) or original(loop))
    loop = start(experiment_of(collect={"random_steps": 40, "env_runners": 1, "cpus_per_runner": 0.5}))
    train(loop, 100)
    loop.collect()
    versions = loop.env_runner_group.foreach_env_runner(lambda runner: runner.module.version, local_env_runner=False)
    assert versions == [loop.model.version] == [2]
    assert stored == [0, 1, 2]
    theirs = loop.env_runner_group.foreach_env_runner(
        lambda runner: runner.module.get_state()["arrays"]["weight_0"], local_env_runner=False
    )
    newest = loop.model.state().arrays["weight_0"][sorted(loop.model.elites)]
    assert np.array_equal(theirs[0], newest)
    (pid,) = loop.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    os.kill(pid, signal.SIGKILL)
    before = loop.clocks.real_step
    loop.train()
    assert loop.clocks.real_step == before + 9  # to the next multiple of ten: the step before was taken by hand
    assert "env_runner_lost" in [kind for kind, _ in loop.events]
    rows = loop.replay.all()
    assert len(np.unique(rows.obs_BO, axis=0)) == len(rows)  # a life after death repeats nothing


def test_a_model_on_a_host_is_planned_in_like_one_in_this_process(start: Any) -> None:
    here = start(experiment_of())
    there = start(experiment_of(serve={"dynamics": {"hosts": 1, "cpus": 0.5}}))
    assert train(there, 80) == train(here, 80)
    assert np.array_equal(there.replay.all().action_BA, here.replay.all().action_BA)


def run_seed(experiment: Experiment, folder: Path) -> SeedFolder:
    """The run of seed 0 from where its folder says it was left, in this process."""
    folder.mkdir(exist_ok=True)
    place = SeedFolder(folder, 0)
    state = SeedRun(experiment, 0, place, lambda _: None, lambda: False).execute()
    assert state is RunState.FINISHED
    return place


def recorded(place: SeedFolder) -> list[dict[str, str]]:
    rows = [row.reading for row in read_journal(place.journal) if isinstance(row, ReadingRow)]
    return [{m.key: repr(m.value) for m in row.measurements if not m.key.startswith("time/")} for row in rows]


@pytest.mark.long
def test_killed_and_resumed_equals_never_killed(tmp_path: Path) -> None:
    command = Command(tmp_path)
    command.write(**{**PETS, "record": {"folder": str(tmp_path / "runs")}}, optimize=None, imagine={})
    experiment = load_experiment(command.file)
    process = command.start("run", str(command.file))
    command.kill_after(process, readings=2)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    broken = run_seed(experiment, command.run_folder.seed(0).path)
    whole = run_seed(experiment, tmp_path / "whole")
    assert recorded(broken) == recorded(whole)
    assert len(recorded(whole)) == 3
    key = experiment.run_key(0)
    found = [CheckpointStore(place.checkpoints, keep=2).load_newest(key) for place in (broken, whole)]
    assert found[0] is not None
    assert found[1] is not None
    assert_equal_parts(found[0].parts, found[1].parts)


def test_it_learns_to_keep_the_pole_up(start: Any) -> None:
    """A few hundred steps suffice; uniform actions keep the pole up for some 25 steps."""
    file = Path(__file__).parents[2] / "pipelines" / "mbrl" / "pets_cartpole.yaml"
    smaller = ["task.max_episode_steps=100", "loop.real_steps=250", "loop.refit_every=75", "probe.every=250"]
    loop = start(load_experiment(file, [*smaller, "probe.episodes=2", "probe.imagined_horizon=1"]), seed=0)
    (reading,) = train(loop, 250)
    assert float(reading["outcome/return_min"]) > 85
