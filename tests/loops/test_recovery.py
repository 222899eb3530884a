"""What is lost with a killed process: some steps and seconds, and not one bit of a result."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError

from proxygap.base.errors import HostFailed, NonFiniteValue, RunFailed, StorageError, Superseded
from proxygap.base.measurement import Side
from proxygap.base.progress import Progress
from proxygap.experiment import Experiment, validate
from proxygap.loops import run as run_module
from proxygap.loops import seeds
from proxygap.loops.best_of_n import Tilt
from proxygap.loops.recovery import Losses, in_a_line, is_loss
from proxygap.loops.run import run
from proxygap.loops.seed_run import SeedRun
from proxygap.record.folder import RunState, SeedFolder
from proxygap.record.rows import EventRow, ReadingRow, read_journal
from tests.loops.command import SMALL
from tests.sweep import small

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
CPUS = 4
ARMS = {**small.SMALL, "loop": {**small.SMALL["loop"], "real_steps": 24}}
REMOTE: dict[str, Any] = {
    "optimize": {**SMALL["optimize"], "learners": 1},
    "serve": {"dynamics": {"hosts": 1, "cpus": 0.5, "max_restarts": 0, "deadline_s": 60.0}},
    "loop": {**SMALL["loop"], "real_steps": 120, "steps_per_iteration": 20},
    "record": {"checkpoint_every": 2},
}


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    threads = torch.get_num_threads()
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="error")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "FINAL_DELIVERY_S", 0.0)  # nothing here is about the tracker
        patch.setattr(seeds, "POLL_S", 0.05)
        yield
    ray.shutdown()
    torch.set_num_threads(threads)


def seed_run(folder: Path, experiment: Experiment, seed: int = 0) -> SeedRun:
    place = SeedFolder(folder / f"seed-{seed}", seed)
    place.checkpoints.mkdir(parents=True, exist_ok=True)
    return SeedRun(experiment, seed, place, lambda _: None, lambda: False)


def readings(folder: Path, seed: int = 0) -> list[dict[str, str]]:
    rows = [row for row in read_journal(folder / f"seed-{seed}" / "journal.jsonl") if isinstance(row, ReadingRow)]
    return [
        {"clocks": repr(row.reading.clocks)}
        | {m.key: repr(m.value) for m in row.reading.measurements if m.side is not Side.TIME}
        for row in rows
    ]


def events(folder: Path, kind: str, seed: int = 0) -> list[dict[str, Any]]:
    rows = read_journal(folder / f"seed-{seed}" / "journal.jsonl")
    return [dict(row.detail) for row in rows if isinstance(row, EventRow) and row.kind == kind]


def learner_of(loop: Any) -> int:
    (found,) = loop.learner_group.foreach_learner(lambda _: os.getpid())
    return int(found.get())


def host_of(loop: Any) -> int:
    return int(loop.model.health()[0].pid)


def all_free() -> bool:
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU") != CPUS and time.monotonic() < until:
        time.sleep(0.1)
    return ray.available_resources().get("CPU") == CPUS


def test_a_killed_host_and_a_killed_learner_change_no_bit_of_the_result(tmp_path: Path) -> None:
    here = {name: REMOTE[name] for name in ("loop", "record")}  # all in one process: where parts live changes nothing
    assert seed_run(tmp_path / "whole", validate({**SMALL, **here})).execute() is RunState.FINISHED
    broken = seed_run(tmp_path / "broken", validate({**SMALL, **REMOTE}))
    given = []
    for reading in broken.evaluations():
        given.append(reading.clocks.real_step)
        if reading.clocks.real_step == 40:
            os.kill(host_of(broken.loop), signal.SIGKILL)
        if reading.clocks.real_step == 80:
            os.kill(learner_of(broken.loop), signal.SIGKILL)
    assert broken.state is RunState.FINISHED
    assert given == [40, 80, 120]
    assert readings(tmp_path / "broken") == readings(tmp_path / "whole")
    told = events(tmp_path / "broken", "recovered")
    assert [each["attempt"] for each in told] == [1, 2]
    assert [each["error"].split(":")[0] for each in told] == ["HostFailed", "ActorDiedError"]
    assert [each["lost_steps"] for each in told] == [40, 0]  # from the beginning, then from the checkpoint
    assert all_free()


class Broken(Tilt):
    """The real loop, but one of its iterations never works."""

    error: Exception = HostFailed("it died", field="serve.reward")

    def train(self) -> None:
        if self.clocks.iteration == 3:
            raise self.error
        super().train()


def broken(monkeypatch: pytest.MonkeyPatch, error: Exception, **compute: Any) -> Experiment:
    monkeypatch.setattr(Broken, "error", error)
    monkeypatch.setattr("proxygap.loops.recovery._FIRST_PAUSE_S", 0.01)
    made = validate({**ARMS, "compute": compute})
    monkeypatch.setattr(type(made.loop), "start", lambda _, experiment, seed: Broken(experiment, seed))
    return made


def test_what_is_lost_again_and_again_fails_with_the_reason_and_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = seed_run(tmp_path, broken(monkeypatch, HostFailed("it died", field="serve.reward"), max_failures=2))
    with pytest.raises(
        RunFailed, match=r"lost 3 times without a new checkpoint, the last time: HostFailed: serve\.rew"
    ):
        run.execute()
    assert [each["attempt"] for each in events(tmp_path, "recovered")] == [1, 2]
    assert len(readings(tmp_path)) == 3
    status = run.folder.status()
    assert status is not None
    assert (str(status.state), "it died" in status.reason) == ("failed", True)


def test_an_error_of_the_experiment_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = seed_run(tmp_path, broken(monkeypatch, NonFiniteValue("the loss is NaN")))
    with pytest.raises(NonFiniteValue):
        run.execute()
    assert events(tmp_path, "recovered") == []


@ray.remote(num_cpus=0)
def raising(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (HostFailed("gone"), True),
        (RunFailed("too few", field="collect.env_runners"), True),
        (RunFailed("the outcome is not finite"), False),
        (NonFiniteValue("NaN"), False),
        (StorageError("No space left on device"), False),
        (Superseded("a newer attempt"), False),
        (KeyError("missing"), False),
        (GetTimeoutError("slow"), True),
    ],
    ids=["host", "runners", "outcome", "nan", "disk", "superseded", "bug", "deadline"],
)
def test_only_losses_are_losses_here_and_in_actors(error: Exception, lost: bool) -> None:
    assert is_loss(error) is lost
    with pytest.raises(Exception) as found:
        ray.get(raising.remote(error))
    assert is_loss(found.value) is lost
    assert in_a_line(found.value) == in_a_line(error)


def test_a_loss_behind_another_error_is_one() -> None:
    """As Ray Train raises when a Learner dies while its group is being built."""
    hidden = TypeError("exceptions must derive from BaseException")
    assert not is_loss(hidden)
    hidden.__context__ = ActorDiedError()
    assert is_loss(hidden)


def test_losses_in_a_row_are_counted_from_the_newest_checkpoint() -> None:
    losses = Losses(2)
    pauses = []
    for checkpoint in (-1, -1, 40, 40, 80, 80):
        losses.count("gone", 100, checkpoint)
        pauses.append(losses.pause_s)
    assert pauses == [0.0, 2.0, 0.0, 2.0, 0.0, 2.0]
    assert losses.count("gone", 100, 120).attempt == 7
    losses.count("gone", 100, 120)
    with pytest.raises(RunFailed, match="3 times"):
        losses.count("gone", 100, 120)


def test_a_seed_whose_process_is_killed_is_taken_up_by_another(tmp_path: Path) -> None:
    compute = {"cpus_per_seed": 0.5, "parallel_seeds": 2}
    record = {"folder": str(tmp_path / "runs"), "flush_s": 60.0}
    wanted = validate({**ARMS, "compute": compute, "record": record})
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.seed == 1 and progress.clocks.real_step > 0 and not killed:
            killed.append(progress.clocks.real_step)
            ray.kill(ray.get_actor(f"{wanted.folder_name}/seed-1"))

    summary = run(wanted, on_progress=kill)
    assert set(summary.states.values()) == {RunState.FINISHED}, summary.reasons
    for seed in (0, 1):
        alone = seed_run(tmp_path / f"alone-{seed}", validate(ARMS), seed=seed)
        assert alone.execute() is RunState.FINISHED
        assert readings(summary.folder, seed) == readings(tmp_path / f"alone-{seed}", seed)
    (recovered,) = events(summary.folder, "recovered", 1)
    assert recovered["error"].startswith("ActorDiedError")
    assert events(summary.folder, "recovered", 0) == []
    assert all_free()
