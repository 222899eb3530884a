"""An experiment's folder as a run leaves it, and trackers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.tracker import connect
from tests.record.runs import Server, make_folder, write_rows


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with its tables: making one takes MLflow seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    """A SQLite tracker."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path, uri: str) -> ExperimentFolder:
    """Two seeds with three readings each; ``uri`` is their tracker."""
    made = make_folder(tmp_path, tracking_uri=uri)
    for seed in (0, 1):
        write_rows(made, seed, range(1, 4))
        made.seed(seed).set_status(RunState.RUNNING)
    return made


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[Server]:
    """A server that has not been started; it is killed after the test."""
    shutil.copy(empty_store, tmp_path / "server.db")
    made = Server(tmp_path)
    yield made
    made.kill()
