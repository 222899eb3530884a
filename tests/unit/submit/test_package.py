"""The package and the description of a job: deterministic, without secrets, and without a shell in between."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import get_uri_for_package

import proxygap
from proxygap.base.errors import SubmissionFailed
from proxygap.submit.jobs import metadata
from proxygap.submit.package import contents, entrypoint, runtime_env, write_package
from proxygap.submit.settings import Cluster
from proxygap.submit.work import Work, load_work
from tests.unit.submit.test_work import TINY

CLUSTER = Cluster(name="here", secrets=("MLFLOW_TRACKING_TOKEN",), secrets_file="/etc/proxygap/secrets")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    return load_work(tmp_path / "tiny.yaml", cluster=CLUSTER)


def test_equal_content_is_the_same_package_for_ray(work: Work, tmp_path: Path) -> None:
    content = contents(work, CLUSTER)
    write_package(tmp_path / "a.zip", content)
    write_package(tmp_path / "b.zip", dict(reversed(content.items())))
    write_package(tmp_path / "c.zip", {**content, "experiment.yaml": b"other"})
    a, b, c = (get_uri_for_package(tmp_path / f"{name}.zip") for name in "abc")
    assert a == b != c


def test_own_code_travels_and_nothing_else_of_the_repository(work: Work, tmp_path: Path) -> None:
    names = set(contents(work, CLUSTER))
    code = {name for name in names if name.startswith("proxygap/")}
    root = Path(proxygap.__file__).parent
    wanted = {f"proxygap/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}
    assert wanted <= code
    assert {Path(name).suffix for name in code} == {".py", ".html", ".typed"} | {Path("proxygap/py.typed").suffix}
    assert names - code == {"experiment.yaml", "job.json"}
    write_package(tmp_path / "a.zip", contents(work, CLUSTER))
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert set(archive.namelist()) == names
        assert archive.testzip() is None
    installed = CLUSTER.model_copy(update={"code": "installed"})
    assert set(contents(work, installed)) == {"experiment.yaml", "job.json"}


def test_secrets_are_named_and_never_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    environment = runtime_env(CLUSTER, 3)
    variables = environment["env_vars"]
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert (variables["PROXYGAP_ATTEMPT"], variables["RAY_JOB_STOP_WAIT_TIME_S"]) == ("3", "120")
    told = b"".join(contents(work, CLUSTER).values()).decode() + json.dumps([environment, metadata(work, 3)])
    assert "planted" not in told


@pytest.mark.parametrize("uri", ["http://me:planted@mlflow:5000", "https://planted@mlflow"])
def test_a_forwarded_address_with_a_password_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(SubmissionFailed, match="MLFLOW_TRACKING_URI: has a password") as caught:
        runtime_env(CLUSTER, 1)
    assert "planted" not in str(caught.value)


def test_own_variables_come_before_forwarded_ones_and_ours_before_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "there")
    env = {"AWS_DEFAULT_REGION": "here", "PROXYGAP_ATTEMPT": "99", "OMP_NUM_THREADS": "4"}
    found = runtime_env(Cluster(name="here", env=env), 2)["env_vars"]
    assert (found["AWS_DEFAULT_REGION"], found["PROXYGAP_ATTEMPT"], found["OMP_NUM_THREADS"]) == ("here", "2", "4")


@pytest.mark.parametrize("python", ["python", "/opt/my env/bin/python", "python; rm -rf ~ #", "$(id)", "a'b"])
def test_the_entrypoint_is_four_words_whatever_the_python_is_called(python: str) -> None:
    words = shlex.split(entrypoint(Cluster(name="here", python=python)))
    assert words == ["exec", python, "-m", "proxygap.submit.entry"]
