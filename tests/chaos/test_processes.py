"""Processes of a run are killed while it goes on, and it measures what it measures without that.

The shape of Ray's own chaos tests: the same workload undisturbed, then under a killer whose moments a seed decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from proxygap.loops.run import run
from proxygap.record.rows import Row
from tests.chaos import aftermath
from tests.chaos.aftermath import Used, Witness, check_never_stale, seed_alone
from tests.chaos.conftest import Tell
from tests.chaos.killer import Killer, events, seeded, written
from tests.chaos.table import Row as TableRow
from tests.chaos.workloads import CONTROL, LANGUAGE, experiment, hosted

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("all_given_back"),
]
SEED = 5
"""Of the killer."""


@dataclass(frozen=True, slots=True)
class Clean:
    """An undisturbed run."""

    rows: list[Row]
    answers: list[Used]
    seconds: float


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    with pytest.MonkeyPatch.context() as patch:
        yield Witness(patch)


def undisturbed(workload: dict[str, Any], runs: Path, witness: Witness, **sections: Any) -> Clean:
    began = time.monotonic()
    rows = seed_alone(experiment(workload, runs / f"clean-{workload['name']}", **sections))
    return Clean(rows, witness.take(), time.monotonic() - began)


@pytest.fixture(scope="module")
def control(runs: Path, shared_ray: None, witness: Witness) -> Clean:
    return undisturbed(CONTROL, runs, witness, serve=hosted("dynamics"))


@pytest.fixture(scope="module")
def language(runs: Path, shared_ray: None, witness: Witness) -> Clean:
    return undisturbed(LANGUAGE, runs, witness, serve=hosted("reward", "reference"))


@dataclass(frozen=True, slots=True)
class Struck:
    """A run under kills: its journal, and a row of the table for each kill."""

    rows: list[Row]
    table: list[TableRow]


def under_kills(tree: dict[str, Any], runs: Path, clean: Clean, *victims: str, **sections: Any) -> Struck:
    """A folder of its own, so that nothing is found that another run has made."""
    last, name = tree["loop"]["real_steps"], victims[0].replace(" ", "-")
    killer = Killer(*(seeded(victim, SEED, range(last // 3, 2 * last // 3)) for victim in victims))
    began = time.monotonic()
    rows = seed_alone(experiment(tree, runs / name, **sections), on_progress=killer)
    took = time.monotonic() - began
    killer.check()
    equal = aftermath.readings(rows) == aftermath.readings(clean.rows)
    struck = [(strike.victim, strike.dealt_with_s(rows)) for strike in killer.strikes]
    return Struck(rows, [TableRow(victim, (s,), True, equal, clean.seconds, took) for victim, s in struck])


@pytest.mark.parametrize(
    ("workload", "kinds"),
    [("control", ("dynamics",)), ("language", ("reward", "reference"))],
    ids=["control", "language"],
)
def test_killed_hosts_change_nothing(
    runs: Path, witness: Witness, tell: Tell, request: pytest.FixtureRequest, workload: str, kinds: tuple[str, ...]
) -> None:
    clean: Clean = request.getfixturevalue(workload)
    tree = CONTROL if workload == "control" else LANGUAGE
    struck = under_kills(tree, runs, clean, *(f"{kind} host" for kind in kinds), serve=hosted(*kinds))
    assert all(row.equal for row in struck.table)
    check_never_stale(witness.take(), clean.answers)
    restarted = [each["host"].rpartition("/")[2] for each in events(struck.rows, "host_restarted")]
    assert sorted(restarted) == sorted(f"{kind}-0" for kind in kinds)
    for row in struck.table:
        tell(row)


def test_a_killed_runner_costs_no_step(runs: Path, tell: Tell, control: Clean) -> None:
    """A runner built anew explores anew, so values differ; that it acts with the newest weights, test_lost_runners."""
    struck = under_kills(CONTROL, runs, control, "env runner", collect={"env_runners": 1, "cpus_per_runner": 0.5})
    assert aftermath.steps(struck.rows) == aftermath.steps(control.rows)
    assert len(events(struck.rows, "env_runner_lost")) >= 1
    (row,) = struck.table
    tell(replace(row, equal=None))


def test_a_killed_learner_is_rebuilt_from_the_newest_checkpoint(runs: Path, tell: Tell, control: Clean) -> None:
    struck = under_kills(CONTROL, runs, control, "learner", optimize={"learners": 1})
    assert len(events(struck.rows, "recovered")) == 1
    assert all(row.equal for row in struck.table)
    for row in struck.table:
        tell(row)


def test_a_killed_seed_goes_on_in_another_process(runs: Path, tell: Tell, control: Clean) -> None:
    """Its journal is on disk, so the moment is one of the seed's own and not one of the driver that looks on."""
    strike = seeded("seed", SEED, range(2, 5))
    strike.begin(written(runs / "seed", 0, strike.step))
    began = time.monotonic()
    compute = {"parallel_seeds": 2, "cpus_per_seed": 0.5}
    summary = run(experiment(CONTROL, runs / "seed", compute=compute, seeds=(0, 1)))
    took = time.monotonic() - began
    rows = aftermath.finished(summary)
    strike.end()
    assert aftermath.readings(rows) == aftermath.readings(control.rows)
    assert aftermath.steps(aftermath.finished(summary, 1)) == aftermath.steps(control.rows)
    assert [each["attempt"] for each in events(rows, "recovered")] == [1]
    assert "recovered" in summary.report.read_text()
    tell(TableRow("seed", (strike.dealt_with_s(rows),), True, True, control.seconds, took))
