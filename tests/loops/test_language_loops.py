"""Loops over answers: exact resume, hosts equal to their twin, one fit for all variants, and what is kept."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch

from proxygap.experiment import Experiment, validate
from proxygap.loops.run import RunSummary, run
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.rows import EventRow, ReadingRow, read_journal
from tests.loops.command import Command
from tests.loops.test_resume import assert_equal_states

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TINY: dict[str, Any] = {
    "name": "small",
    "question": "Does it run?",
    "task": {"kind": "sequence_lm", "prompts": 4},
    "policy": {"kind": "tiny_transformer", "layers": 1, "width": 32, "pretraining": {"steps": 30}},
    "labels": {"pairs": 120, "flip": 0.1, "annotators": 3},
    "proxy": {"kind": "transformer_reward", "members": 3, "training": {"epochs": 1}},
    "loop": {"kind": "language_rl", "real_steps": 96},
    "optimize": {"kind": "rloo", "prompts_per_iteration": 4, "answers_per_prompt": 4},
    "outcomes": ["gold_reward", "win_rate"],
    "collect": {},
    "fit": None,
    "imagine": {},
    "probe": {"every": 16, "answers": 8, "resamples": 100},
}
PPO = {
    "optimize": {
        "kind": "token_ppo",
        "prompts_per_iteration": 16,
        "epochs": 2,
        "minibatch": 8,
        "kl": {"coefficient": 0.05, "target": 2.0},
    },
    "judge": {"aggregate": {"kind": "worst_case"}, "transforms": [{"kind": "whiten"}]},
}
BEST = {"loop": {"kind": "best_of_n", "real_steps": 16, "pool": 64}, "optimize": None, "probe": {"resamples": 100}}


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="rloo"),
        pytest.param(PPO, id="token_ppo", marks=pytest.mark.long),
        pytest.param(BEST, id="best_of_n", marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_equals_never_killed(tmp_path: Path, sections: dict[str, Any]) -> None:
    whole, broken = Command(tmp_path / "whole"), Command(tmp_path / "broken")
    for command in (whole, broken):
        command.folder.mkdir()
        command.write(**{**TINY, **sections})
    whole("run", str(whole.file))
    process = broken.start("run", str(broken.file))
    broken.kill_after(process, readings=2)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    broken("resume", str(broken.run_folder.path))
    assert broken.readings() == whole.readings()
    assert len(whole.readings()) >= 6
    states = []
    for command in (whole, broken):
        key = validate(json.loads((command.run_folder.path / "experiment.json").read_text())).run_key(0)
        found = CheckpointStore(command.run_folder.seed(0).checkpoints, keep=2).load_newest(key)
        assert found is not None
        states.append(found.parts)
    assert_equal_states(*states)


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    threads = torch.get_num_threads()
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=4, namespace="proxygap-tests", **options)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    return tmp_path_factory.mktemp("runs")


def experiment(runs: Path, **sections: Any) -> Experiment:
    tree = {**TINY, "record": {"folder": str(runs), "flush_s": 2.0}, **sections}
    return validate({name: value for name, value in tree.items() if value is not None})


def readings(summary: RunSummary) -> list[dict[str, str]]:
    assert summary.states[0] is RunState.FINISHED, summary.reasons
    rows = read_journal(ExperimentFolder(summary.folder).seed(0).journal)
    return [
        {"clocks": repr(row.reading.clocks)}
        | {m.key: repr(m.value) for m in row.reading.measurements if not m.key.startswith("time/")}
        for row in rows
        if isinstance(row, ReadingRow)
    ]


def events(summary: RunSummary) -> list[EventRow]:
    rows = read_journal(ExperimentFolder(summary.folder).seed(0).journal)
    return [row for row in rows if isinstance(row, EventRow)]


@pytest.fixture(scope="module")
def in_process(runs: Path) -> RunSummary:
    return run(experiment(runs))


def hosted(reward: int, reference: int) -> dict[str, Any]:
    return {"reward": {"hosts": reward, "cpus": 0.5}, "reference": {"hosts": reference, "cpus": 0.5}}


def test_both_sides_are_measured_and_the_way_between_them(in_process: RunSummary) -> None:
    keys = set(readings(in_process)[-1])
    assert {
        "outcome/gold_reward",
        "outcome/win_rate",
        "objective/proxy_reward",
        "objective/reward_accuracy",
        "objective/benchmark/pairwise",
        "objective/benchmark/ranked_first",
        "objective/reward_accuracy_on_policy",
        "model/kl_k1",
        "model/sqrt_kl",
        "model/style/length",
        "model/reward_ece",
        "model/ranking_accuracy",
        "model/ranking_accuracy_idealized",
        "gap/proxy_gold_spearman",
        "gap/proxy_gold_spearman_reference",
        "gap/epic_distance",
    } <= keys
    assert "distance from the reference" in in_process.report.read_text()


def test_labels_and_samples_are_kept(in_process: RunSummary) -> None:
    folder = ExperimentFolder(in_process.folder).seed(0).path
    labels = pq.read_table(folder / "preferences.parquet")
    assert labels.num_rows == 120
    assert set(labels["annotator"].to_pylist()) == {0, 1, 2}
    samples = pq.read_table(folder / "samples.parquet").to_pylist()
    assert [row["rank_surplus"] for row in samples] == sorted((r["rank_surplus"] for r in samples), reverse=True)
    assert len(samples[0]["member_scores"]) == 3


@pytest.mark.parametrize(("reward", "reference"), [pytest.param(2, 0, marks=pytest.mark.long), (1, 2)])
def test_hosts_measure_what_the_twin_measures(runs: Path, in_process: RunSummary, reward: int, reference: int) -> None:
    name = f"hosts-{reward}-{reference}"  # a shared folder of its own, so that it fits on the hosts too
    record = {"folder": str(runs / name), "flush_s": 2.0}
    assert readings(run(experiment(runs, serve=hosted(reward, reference), record=record))) == readings(in_process)


def test_variants_share_reference_labels_and_proxy(runs: Path, in_process: RunSummary) -> None:
    other = run(experiment(runs, name="other", judge={"aggregate": {"kind": "worst_case"}}))
    assert [event.kind for event in events(in_process)].count("fitted") == 1
    assert [event.kind for event in events(other)].count("fitted") == 0
    assert readings(other)[0]["objective/reward_accuracy"] == readings(in_process)[0]["objective/reward_accuracy"]
    assert "label=120" in readings(other)[0]["clocks"]


def test_shared_state_that_was_altered_is_made_again(runs: Path, in_process: RunSummary) -> None:
    for victim in (runs / "shared").glob("*/step-*/reward.safetensors"):
        victim.write_bytes(victim.read_bytes()[:-3])
    summary = run(experiment(runs), fresh=True)
    assert [event.kind for event in events(summary)][:2] == ["shared_state_refused", "fitted"]
    assert readings(summary) == readings(in_process)


def test_remote_runners_and_learner_run_through(runs: Path) -> None:
    remote = {
        "collect": {"env_runners": 2, "cpus_per_runner": 0.5},
        "optimize": {**TINY["optimize"], "learners": 1},
    }
    summary = run(experiment(runs, name="remote", **remote))
    assert len(readings(summary)) == 6


def test_training_comes_to_the_optimum_of_its_own_objective(runs: Path) -> None:
    """Exact: every answer is listed, so the distance to pi_ref exp(r / beta) / Z is known (Korbak et al. 2022)."""
    sections = {
        "name": "optimum",
        "task": {"kind": "bandit_lm", "prompts": 4, "answers": 8},
        "policy": None,
        "proxy": {"kind": "gold"},
        "loop": {"kind": "language_rl", "real_steps": 19200},
        "optimize": {"kind": "rloo", "prompts_per_iteration": 4, "answers_per_prompt": 16, "learning_rate": 0.05},
        "probe": {"every": 1920, "resamples": 100},
    }
    sections["optimize"]["kl"] = {"coefficient": 0.5}
    missing = [float(row["model/kl_to_optimum"]) for row in readings(run(experiment(runs, **sections)))]
    assert missing[0] > 0.1
    assert missing[-1] < 0.02


def test_improvement_stops_at_the_asked_distance(runs: Path) -> None:
    loop = {"kind": "language_rl", "real_steps": 96, "kl_stop": 1e-9}
    clocks = [row["clocks"] for row in readings(run(experiment(runs, name="stopped", loop=loop)))]
    assert "real_step=96" in clocks[-1]
    assert all("policy_update=1," in each for each in clocks), "the first evaluation finds it too far already"


def test_a_tilt_needs_answers_that_can_be_listed(runs: Path) -> None:
    loop = {"kind": "tilt", "real_steps": 4}
    summary = run(experiment(runs, name="tilt", loop=loop, optimize=None, probe={"resamples": 100}))
    assert summary.states[0] is RunState.FAILED
    assert "answers cannot be listed" in summary.reasons[0]
