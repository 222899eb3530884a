"""A small real run, MLflow's pages on it, and a browser; everything is made once."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loops.command import Command
from tests.ui.browser import Page, tab


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium: install the package `chromium`")
    return found


@pytest.fixture(scope="session")
def finished(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Command:
    command = Command(tmp_path_factory.mktemp("ui"))
    command.write(seeds=[0, 1])
    command("run", str(command.file))
    return command


@pytest.fixture(scope="session")
def ui(finished: Command) -> Iterator[str]:
    """The address that ``proxygap ui`` prints."""
    process = finished.start("ui", str(finished.run_folder.path), "--port", "0", "--no-browser")
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


@pytest.fixture
def page(chromium: str) -> Iterator[Page]:
    with tab(chromium) as opened:
        yield opened


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots go, to be looked at."""
    return tmp_path
