"""One small local Ray for the tests of each module, and a check that everything it lent came back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray


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


def eventually(holds: Callable[[], bool], within_s: float = 20.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.05)
    return holds()


class Events(list[tuple[str, dict[str, Any]]]):
    """What a pool reported."""

    def __call__(self, kind: str, detail: dict[str, Any]) -> None:
        self.append((kind, detail))


@pytest.fixture
def events() -> Events:
    return Events()
