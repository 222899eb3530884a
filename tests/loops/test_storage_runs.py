"""Runs whose records are copied to storage: taken up on another machine or another node, superseded, and left behind.

Another machine is another ``record.folder`` with the same storage; another node is a second raylet.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from proxygap.base.errors import InvalidExperiment, StorageError, Superseded
from proxygap.base.measurement import Side
from proxygap.base.progress import Progress
from proxygap.experiment import Experiment, validate
from proxygap.loops import copies, seeds
from proxygap.loops import run as run_module
from proxygap.loops.copies import Copy
from proxygap.loops.run import RunSummary, run
from proxygap.record.attempt import newest_published
from proxygap.record.folder import ExperimentFolder, RunState
from proxygap.record.mirror import Mirror
from proxygap.record.rows import EventRow, ReadingRow, read_journal
from proxygap.record.storage import Storage
from proxygap.yaml_file import yaml_text
from tests.loops.command import Command
from tests.sweep.small import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 24
RUN = {**SMALL, "loop": {**SMALL["loop"], "real_steps": STEPS}}
ACTORS = {"cpus_per_seed": 0.5, "parallel_seeds": 2}


@dataclass
class Nodes:
    """A head, where the driver is, and a worker node with a label."""

    cluster: Cluster
    worker: Any

    def replace_worker(self) -> None:
        """Lose the worker node with all that runs there; another one comes."""
        self.cluster.remove_node(self.worker)
        self.worker = self.cluster.add_node(num_cpus=2, labels={"pool": "policy"})


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made = Nodes(cluster, cluster.add_node(num_cpus=2, labels={"pool": "policy"}))
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module", autouse=True)
def no_tracker() -> Iterator[None]:
    """Nothing here is about it, and it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "FINAL_DELIVERY_S", 0.0)
        patch.setattr(seeds, "POLL_S", 0.05)
        yield


def experiment(folder: Path, storage: Path | None, **sections: Any) -> Experiment:
    stored = {} if storage is None else {"storage": str(storage)}
    return validate({**RUN, "record": {"folder": str(folder), "flush_s": 60.0, **stored}, **sections})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, str]]]:
    """What every seed measures when nothing happens to it, without storage and in one process."""
    return readings(run(experiment(tmp_path_factory.mktemp("whole"), None)))


def readings(summary: RunSummary) -> dict[int, list[dict[str, str]]]:
    """Clocks and values by seed, times left out; NaN as text, so that rows compare."""
    assert set(summary.states.values()) == {RunState.FINISHED}, summary.reasons
    found = {}
    for place in ExperimentFolder(summary.folder).seeds():
        rows = [row.reading for row in read_journal(place.journal) if isinstance(row, ReadingRow)]
        found[place.seed] = [
            {"clocks": repr(row.clocks)} | {m.key: repr(m.value) for m in row.measurements if m.side is not Side.TIME}
            for row in rows
        ]
    return found


def events(folder: Path, seed: int, kind: str) -> list[dict[str, Any]]:
    rows = read_journal(ExperimentFolder(folder).seed(seed).journal)
    return [dict(row.detail) for row in rows if isinstance(row, EventRow) and row.kind == kind]


def stored(storage: Path, folder: Path, part: str) -> dict[str, str]:
    """Names, and text where the list has it, of what the newest attempt at a part has published."""
    published = newest_published(Storage(str(storage)).below(folder.name, part))
    assert published is not None
    return {name: sent.text or "" for name, sent in published.files.items()}


class Once:
    """Does something the first time that a seed has come so far."""

    def __init__(self, work: Any, seed: int = 0, step: int = STEPS // 3) -> None:
        self.work, self.seed, self.step, self.done = work, seed, step, False

    def __call__(self, progress: Progress) -> None:
        if not self.done and progress.seed == self.seed and progress.clocks.real_step >= self.step:
            self.done = True
            self.work()


def started(tmp_path: Path) -> tuple[Command, Any]:
    command = Command(tmp_path)
    wanted = experiment(tmp_path / "runs", tmp_path / "store")
    command.file.write_text(yaml_text(wanted.model_dump(mode="json")))
    return command, command.start("run", str(command.file))


def test_killed_on_one_machine_stopped_on_another_and_finished_on_a_third(
    tmp_path: Path, nodes: Nodes, undisturbed: dict[int, list[dict[str, str]]]
) -> None:
    store = tmp_path / "store"
    command, process = started(tmp_path)
    command.kill_after(process, readings=STEPS // 3)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    asked = threading.Event()
    in_actors = experiment(tmp_path / "second", store, compute=ACTORS)
    second = run(in_actors, on_progress=Once(asked.set, step=0), stop=asked.is_set)
    assert (second.interrupted, second.unpublished) == (True, False)
    for seed in (0, 1):
        assert '"interrupted"' in stored(store, second.folder, f"seed-{seed}")["status.json"]
    third = run(experiment(tmp_path / "third", store))
    assert readings(third) == undisturbed
    assert ExperimentFolder(third.folder).identity == command.run_folder.identity
    assert stored(store, third.folder, "experiment").keys() >= {"report/report.html", "identity.json"}
    resumed = events(third.folder, 0, "resumed")
    assert len(resumed) in (1, 2)  # the second may have been stopped before it began
    fetched = run(experiment(tmp_path / "fourth", store))
    assert readings(fetched) == undisturbed
    assert events(fetched.folder, 0, "resumed") == resumed


@pytest.mark.long
def test_seeds_on_another_node_and_its_loss(
    tmp_path: Path, nodes: Nodes, undisturbed: dict[int, list[dict[str, str]]]
) -> None:
    pinned = experiment(tmp_path / "runs", tmp_path / "store", compute={**ACTORS, "labels": {"pool": "policy"}})
    losing = Once(nodes.replace_worker, step=1)
    summary = run(pinned, on_progress=losing)
    assert losing.done
    assert readings(summary) == undisturbed
    assert not summary.unpublished
    (recovered,) = events(summary.folder, 0, "recovered")
    assert recovered.keys() == {"error", "attempt", "lost_steps", "down_s"}
    assert recovered["error"].startswith("ActorDiedError")
    assert (recovered["attempt"], recovered["down_s"] > 0.0) == (1, True)
    assert summary.report.exists()
    assert not [path for path in (tmp_path / "runs" / ".nodes").rglob("journal.jsonl") if _is_of(path, nodes.worker)]


def _is_of(path: Path, node: Any) -> bool:
    return f"/{node.node_id[:12]}/" in str(path)


def test_whoever_is_superseded_stops_and_changes_nothing(tmp_path: Path) -> None:
    mine = experiment(tmp_path / "runs", tmp_path / "store")
    part = Storage(str(tmp_path / "store")).below(mine.folder_name, "seed-0")
    theirs = Mirror(part, tmp_path / "theirs")
    taking = Once(theirs.take_up)
    with pytest.raises(Superseded, match="has taken this over"):
        run(mine, on_progress=taking)
    theirs.publish()
    published = newest_published(part)
    assert published is not None
    assert published.attempt == theirs.attempt
    place = ExperimentFolder(tmp_path / "runs" / mine.folder_name)
    assert place.seed(0).status().state is RunState.RUNNING
    assert not place.seed(1).journal.exists()
    assert not place.report.exists()


def test_a_store_that_is_down_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: dict[int, list[dict[str, str]]]
) -> None:
    monkeypatch.setattr(copies, "SETTLE_S", 1.0)
    store, hidden = tmp_path / "store", tmp_path / "hidden"

    def take_away() -> None:
        store.rename(hidden)
        store.write_text("not a folder")

    summary = run(experiment(tmp_path / "runs", store, seeds=[0]), on_progress=Once(take_away))
    assert readings(summary) == {0: undisturbed[0]}
    assert summary.unpublished
    assert len(events(summary.folder, 0, "storage_behind")) == 1
    store.unlink()
    hidden.rename(store)
    again = run(experiment(tmp_path / "runs", store, seeds=[0]))
    assert not again.unpublished
    assert '"finished"' in stored(store, again.folder, "seed-0")["status.json"]


def test_a_seed_waits_for_a_store_that_is_down_when_it_begins(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_text("not a folder")
    copy = Copy(Storage(str(store)).below("run", "seed-0"), tmp_path / "seed-0")
    assert not copy.take_up(store_s=60.0, stop=lambda: True)
    with pytest.raises(StorageError):
        copy.take_up()
    back = threading.Timer(0.5, store.unlink)
    back.start()
    assert copy.take_up(store_s=60.0)
    assert copy.settle()


def test_a_relative_storage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidExperiment, match=r"record\.storage"):
        run(experiment(tmp_path / "runs", Path("store")))
    assert not list((tmp_path / "runs").glob("*/identity.json"))
