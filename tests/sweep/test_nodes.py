"""Sweeps whose trials run on other nodes than the driver's, with storage as all that the nodes have in common."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from proxygap.base.errors import StorageError, Superseded
from proxygap.record.attempt import attempts_of, newest_published
from proxygap.record.mirror import Mirror
from proxygap.record.rows import EventRow, read_journal
from proxygap.record.storage import Storage
from proxygap.record.sweep_folder import TrialState, read_ledger
from proxygap.sweep.load import load_sweep
from proxygap.sweep.mailbox import GONE, Mailbox, RemoteInbox
from proxygap.sweep.messages import Assignment, Messages, Order
from proxygap.sweep.progress import SweepProgress
from proxygap.sweep.run import run_sweep
from tests.actors.cluster import names, several_nodes
from tests.sweep import small

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
LONG = {"loop": {"kind": "tilt", "real_steps": 40, "largest_kl": 2.0}}
SEQUENTIAL: dict[str, Any] = {"trials": 3, "search": {"kind": "tpe", "startup": 1}}
OTHERS = {"labels": {"pool": "trials"}, "num_cpus": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The driver's node, and two others that trials may be on."""
    with several_nodes(home={"num_cpus": 1}, left=OTHERS, right=OTHERS) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep on the driver's node, without storage."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert len(cluster.list_all_nodes()) == 3
    assert run_sweep(small.loaded(folder, sections=LONG, **SEQUENTIAL)).complete
    assert not (folder / "runs" / ".nodes").exists()
    return folder


def elsewhere(folder: Path, storage: Path, **more: Any) -> dict[str, Any]:
    """Sections of a sweep whose trials are on other nodes."""
    record = {"flush_s": 1.0, "folder": str(folder / "runs"), "storage": storage.as_uri()}
    return {"record": record, "compute": {"cpus_per_seed": 1.0, "labels": {"pool": "trials"}}, **more}


def holders(folder: Path) -> dict[str, int]:
    """Processes that have a trial on another node now, by the beginning of the node's id."""
    locks = {str(path): path.parents[1].name for path in (folder / "runs" / ".nodes").glob("*/*/.trial-*.lock")}
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("ray::"):
                found.update({locks[each.path]: process.pid for each in process.open_files() if each.path in locks})
    return found


def at(folder: Path, reports: int, act: Callable[[], None]) -> Callable[[SweepProgress], None]:
    """Acts once, when the ledger has so many reports."""
    done: list[bool] = []

    def look(_: SweepProgress) -> None:
        if not done and small.place(folder).ledger.read_text().count('"reported"') >= reports:
            done.append(True)
            act()

    return look


def part(storage: Path, name: str) -> Storage:
    (sweep,) = [path.name for path in storage.iterdir()]
    return Storage(storage.as_uri()).below(sweep, name)


def same_readings(one: Path, other: Path, trials: int) -> bool:
    return all(small.readings(one, n, seed) == small.readings(other, n, seed) for n in range(trials) for seed in (0, 1))


def test_node_that_is_lost_with_its_trial_costs_time_and_no_result(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    storage, added = tmp_path / "storage", cluster.add_node(**OTHERS)
    made = small.loaded(tmp_path, sections=elsewhere(tmp_path, storage, **LONG), **SEQUENTIAL)
    lost: list[str] = []

    def lose() -> None:
        (held,) = holders(tmp_path)
        (node,) = [each for each in cluster.list_all_nodes() if each.node_id.startswith(held)]
        lost.append(held)
        cluster.remove_node(node, allow_graceful=False)

    summary = run_sweep(made, on_progress=at(tmp_path, 40 + 12, lose))
    assert (summary.complete, summary.note, summary.unpublished) == (True, "", False)
    assert len(lost) == 1
    assert small.told(tmp_path) == small.told(undisturbed)
    attempts = [trial.attempts for trial in read_ledger(small.place(tmp_path).ledger).values()]
    assert attempts == [1, 2, 1]
    assert same_readings(tmp_path, undisturbed, 3)
    assert summary.report is not None
    assert summary.report.is_file()
    home = ray.get_runtime_context().get_node_id()[:12]
    used = {path.name for path in (tmp_path / "runs" / ".nodes").iterdir()}
    assert home not in used
    assert len(used) >= 2
    assert not list((tmp_path / "runs" / ".nodes").glob("*/*/trial-0002"))  # it has ended, and storage has it
    assert [each.number for each in attempts_of(part(storage, "trial-0001"))] == [2]
    assert added.node_id not in lost or len(names()) == 3


def test_driver_that_is_killed_takes_its_trials_along_and_another_machine_goes_on(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """The other machine has its own run folder, and nothing of the first but storage."""
    first, second, storage = tmp_path / "first", tmp_path / "second", tmp_path / "storage"
    for folder in (first, second):
        folder.mkdir()
    file = small.write(first, sections=elsewhere(first, storage, **LONG), **SEQUENTIAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        process = small.start(file)
    small.signal_after(process, first, 40 + 12, signal.SIGKILL)
    (trial,) = holders(first).values()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not ended_within(trial, 20.0)
    before = read_ledger(small.place(first).ledger)
    assert before[0].state is TrialState.FINISHED
    summary = run_sweep(load_sweep(small.write(second, sections=elsewhere(second, storage, **LONG), **SEQUENTIAL)))
    assert summary.complete
    assert small.told(second) == small.told(undisturbed)
    assert read_ledger(small.place(second).ledger)[0].attempts == 1
    assert same_readings(second, undisturbed, 3)
    kept = [place.seed(0).journal.read_bytes() for place in (small.place(first).trial(0), small.place(second).trial(0))]
    assert kept[0] == kept[1]
    late = Mirror(part(storage, "experiment"), small.place(second).path, skip=("trials/*",))
    assert late.take_up().number == 3  # after the first driver's and the second's


def ended_within(pid: int, seconds: float) -> str:
    """Empty once a process is gone; what it still does after so many seconds."""
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return " ".join(psutil.Process(pid).cmdline())
        time.sleep(0.05)
    return ""


def test_population_goes_on_from_a_state_that_another_node_has_written(cluster: Cluster, tmp_path: Path) -> None:
    """Each member has a node of its own; what they come to is what they come to on one node."""
    one, two, storage = tmp_path / "one", tmp_path / "two", tmp_path / "storage"
    section: dict[str, Any] = {"trials": 2, "concurrency": 2, "scheduler": {"kind": "pbt", "every": 2, "quantile": 0.5}}
    for folder in (one, two):
        folder.mkdir()
    assert len(cluster.list_all_nodes()) == 3
    assert run_sweep(small.loaded(one, **section)).complete
    seen: set[str] = set()
    made = small.loaded(two, sections=elsewhere(two, storage), **section)
    assert run_sweep(made, on_progress=lambda _: seen.update(holders(two))).complete
    assert len({path.name for path in (two / "runs" / ".nodes").iterdir()}) == 2
    assert small.told(two) == small.told(one)
    assert same_readings(one, two, 2)
    rows = [read_journal(small.place(two).trial(n).seed(0).journal) for n in range(2)]
    exploited = [
        row.detail["donor"] for each in rows for row in each if isinstance(row, EventRow) if row.kind == "exploited"
    ]
    assert exploited


def test_second_driver_of_a_folder_is_refused_and_one_of_another_machine_takes_over_at_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    storage, refused, later = tmp_path / "storage", list[str](), list[Mirror]()
    assert cluster.address
    endless = {"loop": {"kind": "tilt", "real_steps": 5000, "largest_kl": 2.0}}
    made = small.loaded(tmp_path, sections=elsewhere(tmp_path, storage, **endless), **SEQUENTIAL)

    def again() -> None:
        with pytest.raises(StorageError, match="another process is running this sweep") as error:
            run_sweep(made)
        refused.append(str(error.value))

    def take_over() -> None:
        later.append(Mirror(part(storage, "experiment"), tmp_path / "other", skip=("trials/*",)))
        later[0].take_up()
        later[0].publish()

    first, second = at(tmp_path, 2, again), at(tmp_path, 6, take_over)

    def look(progress: SweepProgress) -> None:
        first(progress)
        second(progress)

    with pytest.raises(Superseded, match="attempt-0002"):
        run_sweep(made, on_progress=look)
    assert len(refused) == 1
    there = newest_published(part(storage, "experiment"))
    assert there is not None
    assert there.attempt == later[0].attempt
    assert (tmp_path / "other" / "ledger.jsonl").stat().st_size < small.place(tmp_path).ledger.stat().st_size


def test_mailbox_that_dies_is_filled_again_and_one_that_ends_is_heard_of(cluster: Cluster) -> None:
    assert cluster.address
    messages = Messages()
    messages.assign(3, Assignment({"a": 1}))
    mailbox = Mailbox(messages, "sweep")
    inbox = RemoteInbox(mailbox.name, 3)
    assert inbox.assignment() == Assignment({"a": 1})
    messages.give(3, Order(2, donor=1))
    assert inbox.order(2) == Order(2, donor=1)
    assert inbox.order(3) is None
    (process,) = [each for each in psutil.process_iter() if each.name().startswith("ray::MailboxActor")]
    os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 30.0
    while psutil.pid_exists(process.pid) and time.monotonic() < until:
        time.sleep(0.05)
    with concurrent.futures.ThreadPoolExecutor(1) as asking:
        answer = asking.submit(inbox.order, 2)  # answered once the sweep has looked after its mailbox
        while not answer.done():
            mailbox.tend()
            time.sleep(0.05)
    assert answer.result() == Order(2, donor=1)
    assert inbox.stopping() == ""
    messages.stop("enough")
    assert heard(inbox) == "enough"
    assert inbox.await_order(7, lambda: bool(inbox.stopping())) is None
    other = RemoteInbox(mailbox.name, 4)
    inbox.close()
    mailbox.close()
    assert heard(other) in (GONE, "enough")
    late = Mailbox(Messages(), "sweep")
    left = RemoteInbox(late.name, 5)
    late.close()
    assert heard(left) == GONE


def heard(inbox: RemoteInbox) -> str:
    until = time.monotonic() + 30.0
    while not inbox.stopping() and time.monotonic() < until:
        time.sleep(0.01)
    return inbox.stopping()
