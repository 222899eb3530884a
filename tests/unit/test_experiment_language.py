"""Experiments on answers: what goes together, what is refused before anything is launched, and defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygap.base.errors import CheckpointRefused, InvalidDataset, InvalidExperiment
from proxygap.experiment import Experiment, validate

BASE: dict[str, Any] = {
    "name": "answers",
    "question": "Does it validate?",
    "task": {"kind": "sequence_lm"},
    "proxy": {"kind": "transformer_reward", "members": 3},
    "loop": {"kind": "language_rl", "real_steps": 640},
    "outcomes": ["gold_reward"],
}


def experiment(**sections: Any) -> Experiment:
    return validate({**BASE, **sections})


def test_defaults_are_the_loops_own() -> None:
    one = experiment()
    assert one.optimize is not None
    assert one.optimize.kind == "rloo"
    assert one.steps_per_sample == 64, "16 prompts with 4 answers each"
    assert one.probe.every == 64, "every iteration, while there are few"
    assert one.language_model.kind == "tiny_transformer"
    assert experiment(loop={"kind": "language_rl", "real_steps": 64 * 480}).probe.every == 640


def test_answers_of_one_token_get_a_table_as_wide_as_there_are_prompts() -> None:
    one = experiment(task={"kind": "bandit_lm", "prompts": 30}, proxy={"kind": "mlp_reward"})
    assert one.language_model.kind == "table"
    assert one.language_model.hidden_width == 30


def test_hosts_of_both_models_are_counted() -> None:
    one = experiment(serve={"reward": {"hosts": 2}, "reference": {"hosts": 1}})
    assert {name: hosting.hosts for name, hosting in one.hostings.items()} == {"reward": 2, "reference": 1}
    assert "dynamics" not in one.hostings


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        pytest.param(
            {"loop": {"kind": "sac", "real_steps": 500}}, ["loop.kind", "control", "language_rl"], id="family"
        ),
        pytest.param({"optimize": {"kind": "sac"}}, ["optimize.kind", "rloo, grpo"], id="optimizer"),
        pytest.param({"proxy": None}, ["proxy", "transformer_reward"], id="no proxy"),
        pytest.param({"outcomes": ["return"]}, ["outcomes", "gold_reward"], id="outcome"),
        pytest.param({"probe": {"objective": "value_estimate"}}, ["probe.objective", "proxy_reward"], id="objective"),
        pytest.param({"loop": {"kind": "language_rl", "real_steps": 100}}, ["multiple of the 64"], id="multiple"),
        pytest.param(
            {"judge": {"aggregate": {"kind": "single", "member": 3}}}, ["member", "proxy.members = 3"], id="member"
        ),
        pytest.param({"judge": {"transforms": [{"kind": "ppo_c"}]}}, ["ppo_c", "confidence"], id="confidence"),
        pytest.param(
            {"optimize": {"kind": "grpo", "kl": {"place": "loss", "estimator": "k1"}}},
            ["k1", "mean zero"],
            id="k1 loss",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(sections: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        experiment(**sections)
    assert all(word in str(caught.value) for word in words), caught.value


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def answers(rows: int, token: int = 1) -> list[list[int]]:
    return np.full((rows, 12), token).tolist()


def test_labels_from_a_file_are_checked_before_launch(tmp_path: Path) -> None:
    prompts = experiment().language_task(0).prompt_tokens()[:2].tolist()
    good = write(tmp_path / "good.parquet", prompt=prompts, chosen=answers(2), rejected=answers(2, token=2))
    experiment(labels={"file": good}).check()
    beyond = write(tmp_path / "beyond.parquet", prompt=prompts, chosen=answers(2), rejected=answers(2, token=99))
    with pytest.raises(InvalidDataset, match="99"):
        experiment(labels={"file": beyond}).check()
    opposite = write(
        tmp_path / "opposite.parquet",
        prompt=[prompts[0]] * 2,
        chosen=[answers(1)[0], answers(1, token=2)[0]],
        rejected=[answers(1, token=2)[0], answers(1)[0]],
    )
    with pytest.raises(InvalidDataset, match="row"):
        experiment(labels={"file": opposite}).check()
    experiment(labels={"file": opposite, "repeats": "keep"}).check()
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(good).read_bytes()[:-9])
    with pytest.raises(InvalidDataset, match=r"cut\.parquet"):
        experiment(labels={"file": str(cut)}).check()
    with pytest.raises(InvalidDataset, match="nowhere"):
        experiment(labels={"file": str(tmp_path / "nowhere.parquet")}).check()


def test_labels_of_segments_come_from_the_run() -> None:
    control = {
        "task": {"kind": "gymnasium", "id": "InvertedPendulum-v5"},
        "proxy": {"kind": "mlp_reward"},
        "loop": {"kind": "preference_control", "real_steps": 4096},
        "outcomes": ["return"],
        "labels": {"file": "labels.parquet"},
    }
    with pytest.raises(InvalidExperiment, match=r"labels\.file"):
        experiment(**control).check()


def test_a_model_directory_is_checked_before_launch(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    policy = {"kind": "hugging_face", "directory": str(folder)}
    experiment(policy=policy).check()
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidExperiment, match="pickle"):
        experiment(policy=policy).check()
    (folder / "pytorch_model.bin").rename(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointRefused, match="model"):
        experiment(policy=policy).check()
    with pytest.raises(InvalidExperiment, match="no such directory"):
        experiment(policy={"kind": "hugging_face", "directory": str(tmp_path / "none")}).check()
