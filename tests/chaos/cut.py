"""A driver on one of two hosts, whose model lives on the other one until the network between them is cut.

It speaks with the test in lines of JSON, and waits for an answer where it asks for a cut.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
import torch

from proxygap.serve.actor import HostActor
from tests.chaos import aftermath
from tests.chaos.aftermath import check_all_free, seed_alone
from tests.chaos.killer import Killer, actors, events, seeded
from tests.chaos.workloads import CONTROL, experiment, hosted

SEED = 5


def main() -> None:
    """Arguments: Ray's address, folder of the records. The model may be on either host, and begins on the far one."""
    torch.set_num_threads(1)
    ray.init(address=sys.argv[1], namespace="proxygap-chaos", log_to_driver=False, logging_level="error")
    root, here = Path(sys.argv[2]), ray.get_runtime_context().get_node_id()
    clean = seed_alone(experiment(CONTROL, root / "clean"))
    cpus = ray.cluster_resources()["CPU"] / 2
    occupied = ray.remote(HostActor).options(num_cpus=cpus, label_selector={"place": "near"})
    placeholder = occupied.remote(None, "placeholder", 0.0, 1)
    ray.get(placeholder.health.remote())

    def cut() -> None:
        (found,) = actors("HostActor", "/dynamics-")
        ray.kill(placeholder)
        say(cut=True, far=found["Address"]["NodeID"] != here)

    killer = Killer(seeded("network between hosts", SEED, range(80, 160), blow=cut))
    serve = hosted("dynamics", deadline_s=120.0)
    rows = seed_alone(experiment(CONTROL, root / "cut", serve=serve), on_progress=killer)
    killer.check()
    check_all_free({"CPU": cpus})
    say(
        equal=aftermath.readings(rows) == aftermath.readings(clean),
        restarted=[each["host"].rpartition("/")[2] for each in events(rows, "host_restarted")],
        recovery_s=killer.strikes[0].dealt_with_s(rows),
    )


def say(**told: Any) -> None:
    """A line for the test; its answer is awaited."""
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    sys.stdin.readline()
