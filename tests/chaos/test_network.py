"""The network between two hosts is cut for good: the model that lived on the far one comes back on the near one."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.conftest import Tell
from tests.chaos.table import Row
from tests.netns import TwoHosts, unavailable

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""Ray gives up a silent host after seconds instead of its half a minute."""


@pytest.fixture
def two_hosts() -> Iterator[TwoHosts]:
    if reason := unavailable():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        hosts = TwoHosts(Path(folder), near={"place": "near"}, far={"place": "far"}, settings=WATCHFUL)
        try:
            hosts.start()
            yield hosts
        finally:
            hosts.close()


def told(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """The driver's next line that is its own: Ray writes there as well."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    raise AssertionError(driver.communicate(timeout=30)[1][-3000:])


def go_on(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.write("\n")
    driver.stdin.flush()


def test_a_run_outlives_the_host_that_its_model_was_on(two_hosts: TwoHosts, tmp_path: Path, tell: Tell) -> None:
    driver = two_hosts.driver("from tests.chaos.cut import main; main()", two_hosts.address, str(tmp_path))
    try:
        assert told(driver) == {"cut": True, "far": True}
        two_hosts.cut()
        go_on(driver)
        after = told(driver)
        assert (after["equal"], after["restarted"]) == (True, ["dynamics-0"])
        go_on(driver)
        assert driver.wait(60) == 0
        two_hosts.mend()  # the far one learns that it was given up, and ends
    finally:
        driver.kill()
        driver.communicate()
    tell(Row("network between hosts", (after["recovery_s"],), True, True))
