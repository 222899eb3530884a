"""What travels: the file that runs there is the file that was checked here, and local files go along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import load_experiment
from proxygap.study import load_study
from proxygap.submit.settings import Cluster
from proxygap.submit.work import Work, load_work
from proxygap.sweep.load import load_sweep

CLUSTER = Cluster(name="here", folder="/data/runs", storage="s3://bucket/runs", tracking_uri="http://mlflow:5000")
TINY: dict[str, Any] = {
    "name": "tiny",
    "question": "Does it travel?",
    "task": {"kind": "bandit_lm"},
    "proxy": {"kind": "mlp_reward", "members": 2},
    "loop": {"kind": "tilt", "real_steps": 8},
    "outcomes": ["gold_reward"],
}
VARIANTS = {"one": {}, "two": {"loop": {"largest_kl": 3.0}}, "three": {"loop": {"largest_kl": 4.0}}}
SPACE = {"loop.largest_kl": {"kind": "choice", "values": [1.0, 2.0]}}


def work(folder: Path, *overrides: str, only: tuple[str, ...] = (), cluster: Cluster = CLUSTER, **fields: Any) -> Work:
    return load_work(written(folder, **fields), overrides, only, cluster=cluster)


def written(folder: Path, **fields: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**TINY, **fields}))
    return path


def again(folder: Path, text: str) -> Path:
    path = folder / "again.yaml"
    path.write_text(text)
    return path


def test_an_experiment_travels_resolved_and_is_recorded_where_the_cluster_says(tmp_path: Path) -> None:
    found = work(tmp_path, "loop.real_steps=16")
    there = load_experiment(again(tmp_path, found.text))
    assert there == found.experiments[""]
    assert there.identity == load_experiment(written(tmp_path), ["loop.real_steps=16"]).identity
    record = there.record
    assert (record.folder, record.storage, record.tracking_uri) == (
        "/data/runs",
        "s3://bucket/runs",
        "http://mlflow:5000",
    )
    assert found.folders == (f"/data/runs/tiny-{there.identity[:8]}",)


def test_what_the_file_says_about_records_stands(tmp_path: Path) -> None:
    found = work(tmp_path, "record.storage=file:///nfs/runs", record={"folder": "~/mine"})
    record = found.experiments[""].record
    assert (record.folder, record.storage, record.tracking_uri) == ("~/mine", "file:///nfs/runs", "http://mlflow:5000")


def test_a_study_travels_with_the_chosen_variants(tmp_path: Path) -> None:
    found = work(tmp_path, "seeds=[0, 1]", only=("three", "one"), variants=VARIANTS)
    there = load_study(again(tmp_path, found.text))
    assert list(there.experiments) == ["one", "three"]
    assert there.experiments == found.experiments
    assert there.name == found.name == "tiny"
    alone = work(tmp_path, only=("two",), variants=VARIANTS)
    assert load_experiment(again(tmp_path, alone.text)) == alone.experiments["two"]
    assert alone.name == "tiny.two"


def test_a_sweep_travels_whole(tmp_path: Path) -> None:
    found = work(tmp_path, "sweep.trials=2", sweep={"space": SPACE})
    there = load_sweep(again(tmp_path, found.text))
    assert found.sweep is not None
    assert (there.identity, there.sweep) == (found.sweep.identity, found.sweep.sweep)
    assert (found.command, found.folders) == ("sweep", (f"/data/runs/tiny-{there.identity[:8]}",))


def test_the_identity_follows_what_is_run_and_nothing_else(tmp_path: Path) -> None:
    own = work(tmp_path).identity
    assert work(tmp_path, cluster=Cluster(name="there")).identity == own
    assert work(tmp_path, "compute.threads=2").identity == own
    assert work(tmp_path, "seeds=[1]").identity != own
    assert work(tmp_path, "loop.real_steps=9").identity != own
    trials = [work(tmp_path, f"sweep.trials={n}", sweep={"space": SPACE}).identity for n in (1, 2)]
    assert trials[0] != trials[1]
    assert work(tmp_path, variants=VARIANTS).identity != work(tmp_path, only=("one", "two"), variants=VARIANTS).identity


def test_local_files_go_along_under_the_hash_of_their_content(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "pairs.parquet").write_bytes(b"pairs")
        (tmp_path / place / "model" / "config.json").write_bytes(b"{}")
    fields = [
        {
            "labels": {"file": str(tmp_path / place / "pairs.parquet")},
            "policy": {"kind": "hugging_face", "directory": str(tmp_path / place / "model")},
        }
        for place in ("a", "b")
    ]
    found = [work(tmp_path, **each) for each in fields]
    assert found[0].identity == found[1].identity, "equal content is equal work, wherever it lies"
    names = [each.name for each in found[0].files]
    experiment = load_experiment(again(tmp_path, found[0].text))
    assert experiment.labels.file in names
    assert f"{getattr(experiment.policy, 'directory', '')}/config.json" in names
    assert [each.source.read_bytes() for each in found[0].files] == [
        each.source.read_bytes() for each in found[1].files
    ]
    (tmp_path / "a" / "pairs.parquet").write_bytes(b"others")
    assert work(tmp_path, **fields[0]).identity != found[1].identity


def test_files_of_variants_and_of_a_space_go_along(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    variants = {name: {"labels": {"file": str(tmp_path / name)}} for name in ("one", "two")}
    assert {each.source.name for each in work(tmp_path, variants=variants).files} == {"one", "two"}
    space = {"labels.file": {"kind": "choice", "values": [str(tmp_path / "one"), str(tmp_path / "two")]}}
    found = work(tmp_path, "sweep.trials=2", sweep={"space": space})
    assert {each.source.name for each in found.files} == {"one", "two"}
    assert str(tmp_path) not in found.text


def test_what_nodes_read_by_themselves_is_named_as_it_is(tmp_path: Path) -> None:
    shared = Cluster(name="here", shared_folders=("/nfs",))
    found = work(tmp_path, cluster=shared, labels={"file": "/nfs/absent.parquet"})
    assert (found.files, found.experiments[""].labels.file) == ((), "/nfs/absent.parquet")
    found.check()  # what is not here cannot be looked at here
    assert work(tmp_path, labels={"file": "s3://bucket/pairs.parquet"}).files == ()


def test_a_missing_file_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(InvalidExperiment, match=r"labels.file = .*no such file or folder here.*shared_folders"):
        work(tmp_path, labels={"file": "absent.parquet"})


def test_a_file_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    large = tmp_path / "large.parquet"
    with large.open("wb") as file:
        file.truncate(100_000_001)  # a hole; takes no space
    with pytest.raises(InvalidExperiment, match="has 100 MB, and at most 100 MB travel"):
        work(tmp_path, labels={"file": str(large)})


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("record.folder=runs", "record.folder"),
        ("record.storage='s3://a:b@bucket/x'", "record.storage"),
        ("record.tracking_uri=https://me:hunter2@mlflow", "record.tracking_uri"),
    ],
)
def test_records_that_cannot_travel_are_refused(tmp_path: Path, override: str, field: str) -> None:
    with pytest.raises(InvalidExperiment) as caught:
        work(tmp_path, override)
    assert caught.value.field == field
    assert "hunter2" not in str(caught.value)
