"""One small Ray for the tests of a module, and the table at the end of a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
import torch

from tests.chaos.aftermath import check_all_free
from tests.chaos.killer import ray_totals
from tests.chaos.table import PROPERTY, Row, lines_of, row_of

Tell = Callable[[Row], None]


@pytest.fixture(scope="module")
def shared_ray() -> Iterator[None]:
    """Four logical CPUs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=4, namespace="proxygap-chaos", **options)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def all_given_back(shared_ray: None) -> Iterator[None]:
    """After the test every CPU is free, and no actor, reservation or worker is left."""
    total = ray_totals()
    yield
    check_all_free(total)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for a module: making MLflow's database takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Adds a row to the table."""
    return lambda row: record_property(PROPERTY, row.line())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and append its rows as JSON lines to the file that ``CHAOS_TABLE`` names."""
    reports = [each for group in ("passed", "failed") for each in terminalreporter.stats.get(group, [])]
    told = [str(value) for each in reports for name, value in each.user_properties if name == PROPERTY]
    if not told:
        return
    terminalreporter.section("chaos")
    for line in lines_of(row_of(each) for each in told):
        terminalreporter.write_line(line)
    if target := os.environ.get("CHAOS_TABLE"):
        with Path(target).open("a") as file:
            file.writelines(f"{each}\n" for each in told)
