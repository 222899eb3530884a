"""An environment at which a test stops a run in the middle of an episode that it chooses by the episode's seed.

It is ``Pendulum-v1`` with short episodes, until the folder that ``CHAOS_GATE`` names has a file called as the seed that
an episode began from: then the process waits at that episode's third step as long as the file is there.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from proxygap.base.seeds import derived_seed

TASK = {"kind": "gymnasium", "id": "tests.chaos.gate:Gate-v0", "max_episode_steps": 40}


class GateEnv(gym.Wrapper[Any, Any, Any, Any]):
    """The environment."""

    def __init__(self) -> None:
        super().__init__(gym.make("Pendulum-v1", disable_env_checker=True).unwrapped)
        self._folder, self._seed, self._steps = Path(os.environ["CHAOS_GATE"]), "", 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._steps = str(seed), 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        while self._steps == 3 and (self._folder / self._seed).exists():
            (self._folder / f"{self._seed}.held").touch()
            time.sleep(0.01)
        return self.env.step(action)


def make() -> GateEnv:
    """Gymnasium takes a wrapper's own class for no environment."""
    return GateEnv()


gym.register("Gate-v0", entry_point=make)


class Gate:
    """The test's end: what it closes holds every command that is started afterwards."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        monkeypatch.setenv("CHAOS_GATE", str(folder))
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def file_of_evaluation(self, seed: int, episode: int) -> Path:
        """Of an episode that every evaluation of a run begins anew."""
        return self._folder / str(derived_seed(seed, f"evaluate/episode/{episode}") % 2**31)

    def await_held(self, file: Path, process: subprocess.Popen[str]) -> None:
        """Until a process stands in the episode of a file."""
        until = time.monotonic() + 120
        while not file.with_name(f"{file.name}.held").exists():
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                pytest.fail("the run did not come to the gate:\n" + "\n".join(process.communicate())[-3000:])
            time.sleep(0.01)
