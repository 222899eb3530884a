"""One small local Ray for the tests of each module, and a check that everything it lent came back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import ray
import torch


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        namespace="proxygap-tests",
        logging_level="error",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def nothing_leaks(local_ray: None) -> Iterator[None]:
    yield
    assert eventually(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch in this process uses one thread, as a host with one CPU does: only then are bits equal."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


@contextmanager
def killed_at_work(model: Any, host: int) -> Iterator[None]:
    """Kill one host of a hosted model with SIGKILL as soon as it says that it is busy with what the block asks."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            health = model.health()[host]
            if health.busy_s > 0:
                os.kill(health.pid, signal.SIGKILL)
                return
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class Events(list[tuple[str, dict[str, Any]]]):
    """What a pool reported."""

    def __call__(self, kind: str, detail: dict[str, Any]) -> None:
        self.append((kind, detail))


@pytest.fixture
def kill_at_work() -> Callable[[Any, int], AbstractContextManager[None]]:
    return killed_at_work


@pytest.fixture
def events() -> Events:
    return Events()
