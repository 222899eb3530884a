"""What a job looks at on its node before it becomes the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxygap.base.errors import SubmissionFailed
from proxygap.submit.entry import check_node, command_line
from proxygap.submit.package import versions
from proxygap.submit.secrets import read_into_environment, read_secrets

JOB: dict[str, Any] = {"command": "run", "file": "experiment.yaml", "folder": "/data/runs", "code": "installed"}
_PACKAGE = Path(__file__).parents[3] / "platform"


def entry(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "proxygap.submit.entry", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(_PACKAGE), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def secrets_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "secrets"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("name", ["python", "ray", "proxygap"])
def test_other_versions_are_refused_with_both_of_them(name: str) -> None:
    with pytest.raises(
        SubmissionFailed, match=rf"the nodes have {name} .*submitted with 1\.2\.3.*Install {name} 1\.2 "
    ):
        check_node({**JOB, "versions": {**versions(), name: "1.2.3"}})
    check_node({**JOB, "versions": versions()})


def test_a_patch_is_no_other_version_and_shipped_code_brings_its_own() -> None:
    python = ".".join([*versions()["python"].split(".")[:2], "99"])
    check_node({**JOB, "versions": {**versions(), "python": python}})
    check_node({**JOB, "code": "ship", "versions": {**versions(), "proxygap": "9.9"}})


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(SubmissionFailed, match="lacks no_such_package"):
        check_node({**JOB, "versions": versions(), "needed": ["ray", "no_such_package"]})


def test_the_command_line_is_words_and_home_is_that_of_the_node(tmp_path: Path) -> None:
    hostile = "~/runs; rm -rf ~ #"
    words = command_line({**JOB, "folder": hostile, "fresh": True}, tmp_path)
    assert words[:4] == [sys.executable, "-m", "proxygap.cli", "run"]
    assert words[4:] == [
        str(tmp_path / "experiment.yaml"),
        "record.folder=" + json.dumps(f"{Path.home()}/runs; rm -rf ~ #"),
        "--fresh",
    ]
    assert command_line(JOB, tmp_path)[3:] == ["run", str(tmp_path / "experiment.yaml")]


@pytest.mark.parametrize("change", [{"command": "ui"}, {"file": "../x.yaml"}, {"file": "/etc/x.yaml"}])
def test_only_runs_and_sweeps_of_the_file_beside_it(change: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SubmissionFailed, match="does not say what to run"):
        command_line({**JOB, **change}, tmp_path)


def test_a_job_that_misses_a_secret_ends_in_one_line_with_12(tmp_path: Path) -> None:
    path = secrets_file(tmp_path, "# ours\nOTHER=planted\n")
    job = {**JOB, "versions": versions(), "secrets": ["OTHER", "MISSING_ONE"], "secrets_file": str(path)}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = entry(tmp_path)
    assert (done.returncode, done.stdout) == (12, "")
    assert done.stderr.startswith("error: secrets: not set on the nodes: MISSING_ONE. ")
    assert (done.stderr.count("\n"), "planted" in done.stderr) == (1, False)


def test_what_is_sent_is_run(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({**JOB, "versions": versions()}))
    (tmp_path / "experiment.yaml").write_text("name: x")
    done = entry(tmp_path)
    assert (done.returncode, "error: question" in done.stderr) == (3, True), "the experiment is refused, by `run`"


def test_secrets_are_read_from_a_file_that_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = secrets_file(tmp_path, "# comment\n\nA=1\n B = x=y \n")
    assert read_secrets(path) == {"A": "1", "B": "x=y"}
    monkeypatch.setenv("PROXYGAP_SECRETS_FILE", str(path))
    monkeypatch.setenv("A", "0")
    read_into_environment()
    assert os.environ["A"] == "1"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = secrets_file(tmp_path, "A=planted", mode)
    with pytest.raises(SubmissionFailed, match=rf"may be read by others \(mode {mode:o}\). chmod 600"):
        read_secrets(path)
    monkeypatch.setenv("PROXYGAP_SECRETS_FILE", str(path))
    read_into_environment()  # a worker goes on; the job's first process has told it
    assert os.environ.get("A") != "planted"


def test_a_line_that_is_no_assignment_is_told_by_its_number(tmp_path: Path) -> None:
    with pytest.raises(SubmissionFailed, match="line 2 is not NAME=value") as caught:
        read_secrets(secrets_file(tmp_path, "A=1\nplanted secret\n"))
    assert "planted" not in str(caught.value)
    with pytest.raises(SubmissionFailed, match="cannot be read on this node"):
        read_secrets(tmp_path / "absent")
