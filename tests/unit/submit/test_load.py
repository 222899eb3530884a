"""Cluster files: what they may say, where they are found, and that no secret gets in."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.load import load_cluster, load_cluster_file
from proxygap.submit.settings import TrackerServer, tells_secret

REPOSITORY = Path(__file__).parents[3]


def written(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_the_laptop_is_loopback_and_names_no_secret() -> None:
    laptop = load_cluster(REPOSITORY / "clusters" / "laptop.yaml")
    assert laptop.address == "http://127.0.0.1:8265"
    assert (laptop.secrets, laptop.env, laptop.token_file) == ((), {}, None)


def test_the_default_is_what_the_variable_names_then_the_laptop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROXYGAP_CLUSTER", raising=False)
    with pytest.raises(InvalidExperiment, match="Give --cluster"):
        load_cluster()
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "laptop.yaml").write_text("name: fallback")
    assert load_cluster().name == "fallback"
    monkeypatch.setenv("PROXYGAP_CLUSTER", str(written(tmp_path, "name: named")))
    assert load_cluster().name == "named"


def test_a_missing_file_says_where_clusters_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidExperiment, match=r"absent.yaml: no such cluster file. `ls clusters`"):
        load_cluster(tmp_path / "absent.yaml")


def test_a_tracking_server_is_no_cluster(tmp_path: Path) -> None:
    file = written(tmp_path, "kind: mlflow")
    assert isinstance(load_cluster_file(file), TrackerServer)
    with pytest.raises(InvalidExperiment, match="is an MLflow server"):
        load_cluster(file)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("adress: http://h:8265", "adress"),
        ("address: h:8265", "address"),
        ("address: http://user:hunter2@h:8265", "address"),
        ("address: http://token@h:8265", "address"),
        ("folder: runs", "folder"),
        ("storage: s3://key:secret@bucket/runs", "storage"),
        ("storage: 's3://bucket/runs?secret_key=abc'", "storage"),
        ("tracking_uri: http://me:hunter2@mlflow:5000", "tracking_uri"),
        ("env: {HF_TOKEN: abc}", "env"),
        ("env: {DATABASE: 'postgresql://me:hunter2@db/x'}", "env.DATABASE"),
        ("forward: [AWS_SECRET_ACCESS_KEY]", "forward"),
        ("groups: {a: {cpus: 4, least: 3, most: 2}}", "groups.a"),
        ("name: Not_A_Name", "name"),
    ],
)
def test_what_a_file_must_not_say(tmp_path: Path, line: str, field: str) -> None:
    text = line if line.startswith("name") else f"name: here\n{line}"
    with pytest.raises(InvalidExperiment) as caught:
        load_cluster(written(tmp_path, text))
    assert caught.value.field == field
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("s3://bucket/a?endpoint_override=h:9000&scheme=http", False),
        ("hdfs://me@namenode/runs", False),
        ("http://mlflow:5000", False),
        ("plain", False),
        ("http://[::", False),
        ("postgresql://me:hunter2@db/mlflow", True),
        ("https://glpat-1@host/", True),
        ("s3://bucket?access_key=a", True),
    ],
)
def test_what_tells_a_secret(uri: str, secret: bool) -> None:
    assert tells_secret(uri) is secret
