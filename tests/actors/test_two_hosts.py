"""Two hosts with a network between them: models live on the far one, and a cut costs time but changes no number."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns import TwoHosts, unavailable

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]
CUT_S = 3.0

DRIVER = """
import json, sys, time
import ray, torch
from proxygap.serve.reward import build_reward
from proxygap.serve.settings import Hosting
from tests.actors.test_reward_hosts import ITEMS, MLP, PAIRS, SPEC

def say(**told):
    print(json.dumps(told), flush=True)
    sys.stdin.readline()

def build(**hosting):
    told = lambda kind, detail: events.append(kind)
    return build_reward(MLP, Hosting(**hosting), spec=SPEC, task=None, seed=7, run_name="run", on_event=told)

torch.set_num_threads(1)
ray.init(address=sys.argv[1], namespace="two", log_to_driver=False, logging_level="error")
events = []
here, there = build(), build(hosts=2, cpus=0.5, labels={"place": "far"}, deadline_s=120.0)
addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
fitted = here.fit(PAIRS) == there.fit(PAIRS)
say(
    near=addresses[ray.get_runtime_context().get_node_id()],
    hosts=[addresses[health.node_id] for health in there.health()],
    fitted=fitted,
    equal=torch.equal(here.score(ITEMS), there.score(ITEMS)),
)
began = time.monotonic()
score = there.score(ITEMS)
seconds = time.monotonic() - began
say(seconds=seconds, equal=torch.equal(here.score(ITEMS), score), events=events)
there.close()
"""


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[TwoHosts]:
    if reason := unavailable():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        hosts = TwoHosts(Path(folder), near={"place": "near"}, far={"place": "far"})
        try:
            hosts.start()
            yield hosts
        finally:
            hosts.close()


def told(driver: subprocess.Popen[str]) -> dict[str, Any]:
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert line, driver.communicate(timeout=30)[1][-3000:]
    answer: dict[str, Any] = json.loads(line)
    return answer


def go_on(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.write("\n")
    driver.stdin.flush()


def test_models_on_the_far_host_give_the_numbers_of_this_one_and_outlive_a_cut(two_hosts: TwoHosts) -> None:
    driver = two_hosts.driver(DRIVER, two_hosts.address)
    try:
        assert told(driver) == {
            "near": two_hosts.near_ip,
            "hosts": [two_hosts.far_ip] * 2,
            "fitted": True,
            "equal": True,
        }
        two_hosts.cut()
        go_on(driver)
        time.sleep(CUT_S)
        two_hosts.mend()
        after = told(driver)
        assert (after["equal"], after["events"]) == (True, [])
        assert CUT_S - 1.0 < after["seconds"] < 60.0  # it did wait for the link
        go_on(driver)
        assert driver.wait(60) == 0
    finally:
        driver.kill()
        driver.communicate()
