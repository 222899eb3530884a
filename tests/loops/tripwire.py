"""An environment that a test can stop in mid-run or make fail in a chosen episode, without any race.

It is ``InvertedPendulum-v5`` until the folder that ``TRIPWIRE`` names says otherwise: while ``hold`` is there, the
process waits at its step number `HELD_AT` (``held`` says that it does); a file named after the seed of an episode holds
what that episode's first step does, ``raise`` or ``nan``.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from proxygap.base.seeds import derived_seed

TASK = {"kind": "gymnasium", "id": "tests.loops.tripwire:Tripwire-v0"}
HELD_AT = 150
_steps = itertools.count(1)


class Tripwire(gym.Wrapper[Any, Any, Any, Any]):
    """The environment; evaluation episodes count as well."""

    def __init__(self) -> None:
        super().__init__(gym.make("InvertedPendulum-v5", disable_env_checker=True).unwrapped)
        self._folder, self._trap = Path(os.environ["TRIPWIRE"]), ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        trap = self._folder / str(seed)
        self._trap = trap.read_text() if trap.exists() else ""
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if next(_steps) >= HELD_AT:
            self._wait()
        if self._trap == "raise":
            raise KeyError("the cart has left the rail")
        obs_O, reward, terminated, truncated, info = self.env.step(action)
        return np.full_like(obs_O, np.nan) if self._trap == "nan" else obs_O, reward, terminated, truncated, info

    def _wait(self) -> None:
        while (self._folder / "hold").exists():
            (self._folder / "held").touch()
            time.sleep(0.02)


def make() -> Tripwire:
    """Gymnasium takes a wrapper's own class for no environment."""
    return Tripwire()


gym.register("Tripwire-v0", entry_point=make, max_episode_steps=1000)


class Wire:
    """The test's end: what it arms reaches every command started afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("TRIPWIRE", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def trap(self, seed: int, episode: int, what: str) -> None:
        """Make one collected episode of one run fail at its first step."""
        reset_seed = derived_seed(seed, f"collect/runner/0/env/0/episode/{episode}") % 2**31
        (self._folder / str(reset_seed)).write_text(what)

    def hold(self) -> None:
        """Make the next run wait in mid-run."""
        (self._folder / "hold").touch()

    def await_held(self, process: subprocess.Popen[str]) -> None:
        """Until a run waits."""
        until = time.monotonic() + 120
        while not (self._folder / "held").exists():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                pytest.fail("the run did not come to the hold:\n" + "\n".join(process.communicate())[-3000:])
            time.sleep(0.02)

    def release(self) -> None:
        """Let it go on."""
        (self._folder / "hold").unlink()
