"""What Ray's dashboard calls the actors of a run: hosts and seeds by name, RLlib's own by what they are."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from proxygap.experiment import validate
from proxygap.loops.run import run
from tests.loops.command import SMALL

pytestmark = [pytest.mark.ui, pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a dashboard of a Ray of our own."""
    threads = torch.get_num_threads()
    options = {"log_to_driver": False, "logging_level": "error", "namespace": "proxygap-tests"}
    context = ray.init(address="local", num_cpus=6, include_dashboard=True, dashboard_port=0, **options)
    yield f"http://{context.dashboard_url}"
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(dashboard: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with two seeds in actors, with two hosts and an env runner each."""
    sections: dict[str, Any] = {
        "record": {"folder": str(tmp_path_factory.mktemp("dashboard")), "flush_s": 2.0},
        "loop": {**SMALL["loop"], "real_steps": 80},
        "seeds": [0, 1],
        "serve": {"dynamics": {"hosts": 2, "cpus": 0.1}},
        "collect": {**SMALL["collect"], "env_runners": 1, "cpus_per_runner": 0.1},
        "compute": {"parallel_seeds": 2, "cpus_per_seed": 0.1},
    }
    return run(validate({**SMALL, **sections})).folder


def listed(dashboard: str) -> list[dict[str, Any]]:
    """What the page of actors is made of, those that have ended included."""
    token = Path.home() / ".ray" / "auth_token"
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
    asked = urllib.request.Request(f"{dashboard}/logical/actors", headers=headers)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return list(json.load(answer)["data"]["actors"].values())


def test_hosts_and_seeds_are_named_after_run_and_role(folder: Path, dashboard: str) -> None:
    actors = listed(dashboard)
    named = {actor["name"]: (actor["actorClass"], actor["reprName"]) for actor in actors if actor["name"]}
    for seed in (0, 1):
        run_name = f"{folder.name}/seed-{seed}"
        assert named[run_name][0] == "SeedWorker"
        for index in (0, 1):
            host = f"{run_name}/dynamics-{index}"
            assert named[host] == ("HostActor", host)  # the dashboard shows the second where there is one
    unnamed = [actor["actorClass"] for actor in actors if not actor["name"]]
    assert unnamed == ["StepRunner"] * 2  # RLlib names none of its own; one Learner needs no actor
