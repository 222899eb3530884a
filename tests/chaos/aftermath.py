"""What must hold after a run under kills: whole, the same values, no stale answer used, nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from proxygap.base.progress import Progress
from proxygap.experiment import Experiment
from proxygap.loops.run import RunSummary
from proxygap.loops.seed_run import SeedRun
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder
from proxygap.record.rows import ReadingRow, Row, read_journal
from proxygap.serve.client import Call, HostClient
from proxygap.serve.host import Reply
from tests.chaos.killer import actors

GIVEN_BACK_S = 60.0
"""Longest that CPUs, GPUs and actors may be missing after a run; as in Ray's own chaos tests."""


def seed_alone(
    experiment: Experiment, seed: int = 0, on_progress: Callable[[Progress], None] = lambda _: None
) -> list[Row]:
    """The journal of a run in this process that must finish: no shipper beside it, no report after it."""
    place = SeedFolder(Path(experiment.record.folder) / f"seed-{seed}", seed)
    place.checkpoints.mkdir(parents=True)
    state = SeedRun(experiment, seed, place, on_progress, lambda: False).execute()
    assert state is RunState.FINISHED
    return read_journal(place.journal)


def journal_of(summary: RunSummary, seed: int = 0) -> list[Row]:
    """The rows that a run's journal keeps."""
    return read_journal(ExperimentFolder(summary.folder).seed(seed).journal)


def readings(rows: list[Row]) -> list[dict[str, str]]:
    """Clocks and values of every reading, times left out; text, so that not-a-number equals itself."""
    return [
        {"clocks": repr(row.reading.clocks)}
        | {m.key: repr(m.value) for m in row.reading.measurements if not m.key.startswith("time/")}
        for row in rows
        if isinstance(row, ReadingRow)
    ]


def steps(rows: list[Row]) -> list[int]:
    """Real step of each evaluation."""
    return [row.reading.clocks.real_step for row in rows if isinstance(row, ReadingRow)]


def finished(summary: RunSummary, seed: int = 0) -> list[Row]:
    """The journal of a seed that must have finished, with its report."""
    assert summary.states[seed] is RunState.FINISHED, summary.reasons
    assert summary.report.stat().st_size > 10_000
    return journal_of(summary, seed)


def check_all_free(total: Mapping[str, float]) -> None:
    """Within `GIVEN_BACK_S` every CPU and GPU is free, no actor lives, nothing is reserved, no worker runs."""
    until = time.monotonic() + GIVEN_BACK_S
    while (left := held(total)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == {}


def held(total: Mapping[str, float]) -> dict[str, Any]:
    """What is not free, by kind; empty when all is."""
    free = ray.available_resources()
    busy = {name: amount - free.get(name, 0.0) for name, amount in total.items() if free.get(name, 0.0) != amount}
    reserved = [each["name"] for each in ray.util.placement_group_table().values() if each["state"] != "REMOVED"]
    living = [(each["ActorClassName"], each["Name"], each["State"]) for each in actors()]
    found = {"busy": busy, "reserved": reserved, "actors": living, "processes": workers()}
    return {kind: what for kind, what in found.items() if what}


def workers() -> list[str]:
    """Titles of Ray's worker processes below this one that do something."""
    found = [_title(each) for each in psutil.Process().children(recursive=True)]
    idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnv")
    return [title for title in found if title.startswith("ray::") and not title.startswith(idle)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@dataclass(frozen=True, slots=True)
class Used:
    """An answer of a host that a run went on with: for which version it was asked, and of which one it is."""

    host: str
    method: str
    asked: int | None
    given: int | None
    whole: bool


class Witness:
    """Sees every answer that the hosts of a run in this process give to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[Used] = []
        finish: Callable[[HostClient, Call], Reply] = HostClient.finish

        def seen(client: HostClient, call: Call) -> Reply:
            reply = finish(client, call)
            request = call.request
            asked = request.version if request.next_version is None else request.next_version
            whole = not reply.stale and bool(reply.arrays)
            self.answers.append(Used(client.name, request.method, asked, reply.loaded_version, whole))
            return reply

        monkeypatch.setattr(HostClient, "finish", seen)

    def take(self) -> list[Used]:
        """The answers since it was last asked."""
        taken, self.answers = self.answers, []
        return taken


def check_never_stale(answers: list[Used], undisturbed: list[Used]) -> None:
    """The declared bound of hosts is 0: each answer is of the version asked for, and none is missing.

    A default in place of an answer would show as one answer less, a stale one as a version behind.
    """
    assert answers
    assert [each for each in answers if each.asked != each.given or not each.whole] == []
    one, other = ([(each.method, each.asked) for each in side] for side in (answers, undisturbed))
    assert one == other
