"""Fixtures of the tests that run whole experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loops.command import Command
from tests.loops.tripwire import Wire


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A command with an empty folder."""
    made = Command(tmp_path)
    made.write()
    return made


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Armed for every command of the test."""
    return Wire(tmp_path / "wire", monkeypatch)
