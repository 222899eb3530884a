"""Run folder, provenance, and the names that MLflow allows."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param

from proxygap.base.errors import InvalidExperiment, StorageError
from proxygap.record.folder import ExperimentFolder, RunState, experiment_folders, read_json, write_atomically
from proxygap.record.provenance import provenance, source
from proxygap.record.tracker import KEY_LENGTH, PARAM_LENGTH, allowed_name, params, redacted, tracking_uri


def create(root: Path, experiment_hash: str = "abcdef0123456789") -> ExperimentFolder:
    folder = ExperimentFolder.place(root, "quick start/π", experiment_hash)
    folder.create(experiment_hash=experiment_hash, yaml_text="a: 1\n", resolved={"name": "q"}, provenance={"v": 1})
    return folder


def test_layout(tmp_path: Path) -> None:
    folder = create(tmp_path)
    assert folder.path == tmp_path / "quick-start-abcdef01"
    assert (folder.yaml_text, folder.experiment, folder.provenance) == ("a: 1\n", {"name": "q"}, {"v": 1})
    identity = folder.identity
    create(tmp_path)
    assert folder.identity == identity
    assert [folder.seed(n).path.name for n in (10, 2)] == ["seed-10", "seed-2"]
    assert [run.seed for run in folder.seeds()] == [2, 10]
    assert experiment_folders(tmp_path) == [folder]
    assert len({folder.run_key(None), folder.run_key(0), folder.run_key(1)}) == 3


def test_another_experiment_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    create(tmp_path)
    with pytest.raises(StorageError, match="another experiment"):
        create(tmp_path, "abcdef01ffffffff")


def test_a_folder_without_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no experiment has been run here"):
        _ = ExperimentFolder(tmp_path).identity


def test_status(tmp_path: Path) -> None:
    run = create(tmp_path).seed(0)
    assert run.status() is None
    run.set_status(RunState.FAILED, "NaN in the critic")
    status = run.status()
    assert status is not None
    assert (status.state, status.reason) == (RunState.FAILED, "NaN in the critic")
    (run.path / "status.json").write_text('{"state": "odd", "reason": "", "time_ms": 1}')
    with pytest.raises(StorageError, match="not a status"):
        run.status()


def test_writes_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fails)
        with pytest.raises(StorageError, match="Input/output error"):
            write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_json_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(StorageError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_provenance_is_json_without_machine() -> None:
    found = provenance("abc", [0, 1])
    text = json.dumps(found)
    assert (found["experiment_hash"], found["seeds"]) == ("abc", [0, 1])
    assert {"python", "proxygap", "ray", "torch", "mlflow", "gymnasium", "mujoco", "numpy"} <= found["versions"].keys()
    assert None not in found["versions"].values()
    assert str(Path.cwd()) not in text
    assert str(Path.home()) + "/" not in text


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_source_tells_commit_and_difference(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    file = tmp_path / "a.py"
    file.write_text("1\n")
    git("init", "-q")
    assert source(file) == {"commit": None, "dirty": None, "diff_sha256": None}
    git("add", "a.py")
    git("commit", "-qm", "one")
    assert source(file) == {"commit": git("rev-parse", "HEAD"), "dirty": False, "diff_sha256": None}
    file.write_text("2\n")
    first = source(file)
    file.write_text("3\n")
    second = source(file)
    assert first["dirty"]
    assert first["diff_sha256"] != second["diff_sha256"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=400), min_size=2, max_size=2, unique=True))
def test_allowed_names_are_allowed_and_never_meet(names: list[str]) -> None:
    allowed = [allowed_name(name) for name in names]
    for name in allowed:
        _validate_metric_name(name)
        assert len(name) <= KEY_LENGTH
    assert allowed[0] != allowed[1]


def test_allowed_names_stay_as_they_are() -> None:
    for name in ("objective/held_out_log_likelihood", "fit.loss.kind", "a b:c-d"):
        assert allowed_name(name) == name


def test_params_are_flat_and_within_limits() -> None:
    found = params(
        {"fit": {"members": 7, "hidden": [200, 200], "none": None, "on": True, "empty": {}}, "q": "é" * 9000, "a@b": 1}
    )
    assert found["fit.members"] == "7"
    assert (found["fit.hidden"], found["fit.none"], found["fit.on"], found["fit.empty"]) == (
        "[200,200]",
        "null",
        "true",
        "{}",
    )
    assert len(found["q"]) == PARAM_LENGTH
    for name, value in found.items():
        _validate_param(name, value)


def test_tracking_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("sqlite:///x.db", tmp_path) == f"sqlite:///{tmp_path}/x.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org:5000")
    assert tracking_uri(None, tmp_path) == "http://example.org:5000"
    for uri in ("file:///x", "./mlruns", "mlruns"):
        with pytest.raises(InvalidExperiment, match="sqlite:///PATH"):
            tracking_uri(uri, tmp_path)


def test_passwords_are_not_shown() -> None:
    assert redacted("postgresql://me:secret@db:5432/x") == "postgresql://me:***@db:5432/x"
    assert redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"
