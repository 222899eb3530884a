"""Fixtures of the tests that run whole experiments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loops.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A command with an empty folder."""
    made = Command(tmp_path)
    made.write()
    return made
