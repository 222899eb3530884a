"""What the doctor says, and what it must never say."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxygap import doctor
from proxygap.cli import commands
from proxygap.doctor import Finding, Grade, examine, render


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def found(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def test_nothing_here_stops_a_run_and_it_fits_one_screen(tmp_path: Path) -> None:
    findings = examine(tmp_path)
    assert [finding for finding in findings if finding.grade is Grade.STOPS] == []
    assert len(render(findings).splitlines()) <= 24
    for topic in ("python", "ray", "torch", "machine", "gpu", "threads", "ray auth", "runs folder", "tracker"):
        assert topic in found(findings)


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "s3cr3t-0f-the-cluster"
    monkeypatch.setenv("RAY_AUTH_TOKEN", secret)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{secret}@127.0.0.1:9/?token={secret}")
    monkeypatch.setenv("RAY_ADDRESS", f"ray://user:{secret}@127.0.0.1:9")
    shown = render(examine(tmp_path)) + json.dumps([str(finding) for finding in examine(tmp_path)])
    assert secret not in shown
    assert "token in RAY_AUTH_TOKEN" in shown
    assert "***@127.0.0.1:9" in shown


def test_a_tracker_that_is_down_is_a_note(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        finding = found(examine(tmp_path, uri))["tracker"]
    assert finding.grade is Grade.NOTE
    assert "does not answer" in finding.found


def test_a_broken_store_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, " * 100)
    assert "not a database" in found(examine(tmp_path))["tracker"].found


def test_a_file_store_stops_a_run(tmp_path: Path) -> None:
    finding = found(examine(tmp_path, "file:///tmp/mlruns"))["tracker"]
    assert finding.grade is Grade.STOPS
    assert "sqlite:///" in finding.remedy


def test_a_folder_that_is_a_file_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    assert found(examine(tmp_path / "runs"))["runs folder"].grade is Grade.STOPS


def test_little_disk_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 1 << 60)
    assert found(examine(tmp_path))["runs folder"].grade is Grade.STOPS


def test_a_cluster_that_does_not_answer_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        assert found(examine(tmp_path))["ray cluster"].grade is Grade.STOPS


@pytest.mark.parametrize(
    ("mode", "grade"), [("tokn", Grade.STOPS), ("disabled", Grade.NOTE), ("token", Grade.STOPS), ("k8s", Grade.OK)]
)
def test_the_authentication_mode(mode: str, grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert found(examine(tmp_path))["ray auth"].grade is grade


def test_the_source_root_trap_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "platform").mkdir()
    (tmp_path / "platform" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    finding = found(examine(tmp_path))["source root"]
    assert finding.grade is Grade.STOPS
    assert "__init__.py" in finding.remedy


@pytest.mark.parametrize(
    ("package", "number", "grade"),
    [
        ("ray", "2.60.0", Grade.OK),
        ("ray", "2.60.3", Grade.NOTE),
        ("ray", "2.61.0", Grade.STOPS),
        ("torch", "2.13.0+cpu", Grade.OK),
        ("numpy", "2.0.0", Grade.NOTE),
        ("mujoco", None, Grade.STOPS),
    ],
)
def test_versions_beside_the_tested_ones(
    package: str, number: str | None, grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: number if name == package else real(name))
    finding = found(examine(tmp_path))[package]
    assert finding.grade is grade
    assert grade is not Grade.NOTE or f"tested with {doctor.TESTED[package]}" in finding.found


def test_the_exit_code_says_whether_a_run_would_be_stopped(tmp_path: Path) -> None:
    well = CliRunner().invoke(commands, ["doctor", "--folder", str(tmp_path), "--json"])
    assert (well.exit_code, json.loads(well.stdout)["ok"]) == (0, True)
    ill = CliRunner().invoke(commands, ["doctor", "--folder", str(tmp_path), "--tracking-uri", "file:/x", "--json"])
    assert (ill.exit_code, json.loads(ill.stdout)["ok"]) == (1, False)
    assert "X tracker" in CliRunner().invoke(commands, ["doctor", "--tracking-uri", "file:/x"]).stdout
