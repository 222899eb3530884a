"""Run an experiment: every seed as a run of its own under one parent, then the report."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment
from proxygap.loops.copies import EXPERIMENT, SEEDS, Copy, fresh_place, meet, part_of
from proxygap.loops.report import make_report, recorded_experiment, write_aggregates
from proxygap.loops.resources import check_resources
from proxygap.loops.seed_run import OnProgress, Stop
from proxygap.loops.seeds import run_seeds
from proxygap.loops.session import ray_session, starts_here
from proxygap.record.delivery import pending
from proxygap.record.folder import ExperimentFolder, RunState, check_writable
from proxygap.record.provenance import provenance
from proxygap.record.shipper import delivered
from proxygap.record.storage import storage_of
from proxygap.record.tracker import redacted, tracking_uri
from proxygap.yaml_file import yaml_text

FINAL_DELIVERY_S = 30.0
"""Longest wait for the tracker at the end; what it lacks then is delivered by ``proxygap sync``."""


@runtime_checkable
class Reinstallable(Protocol):
    """A request to stop that listens to signals."""

    def reinstall(self) -> None:
        """Listen again, after something else took the signals."""
        ...


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How an experiment ended.

    ``undelivered`` counts journal rows that the tracker does not have yet; ``unpublished`` says that the copy in
    storage is not complete, which a later run of the same experiment on this node makes up for.
    """

    folder: Path
    states: dict[int, RunState]
    reasons: dict[int, str]
    report: Path
    tracking_uri: str
    undelivered: int
    interrupted: bool
    verdict: str
    unpublished: bool = False


def run(
    experiment: Experiment, *, fresh: bool = False, on_progress: OnProgress | None = None, stop: Stop | None = None
) -> RunSummary:
    """Run an experiment, or continue it where its folder says it was left.

    Args:
        experiment: a validated experiment.
        fresh: start again in a new folder instead of continuing.
        on_progress: told of each seed's state after every iteration.
        stop: asked after every iteration; true checkpoints all running seeds and returns.

    Returns:
        The summary; failed seeds are states in it, not exceptions.

    Raises:
        ProxyGapError: the experiment cannot start: unknown task, infeasible resources, unwritable folder or storage.
        Superseded: another process has taken the experiment over; nothing more was written about it.
        HostFailed: the Ray of this process is gone.
    """
    return _execute(experiment, _folder_of(experiment, fresh=fresh), on_progress, stop)


def resume(folder: Path, *, on_progress: OnProgress | None = None, stop: Stop | None = None) -> RunSummary:
    """Continue what is unfinished in an experiment's folder.

    Raises:
        StorageError: the folder holds no experiment.
        InvalidExperiment: the recorded experiment was altered.
    """
    place = ExperimentFolder(folder.absolute())
    experiment = recorded_experiment(folder)
    if experiment.identity != place.identity["experiment_hash"]:
        raise InvalidExperiment(
            "the recorded experiment was altered, so its runs cannot be continued",
            field=str(folder / "experiment.json"),
            remedy="Run the altered experiment from a file of its own",
        )
    return _execute(experiment, place, on_progress, stop)


def _execute(
    experiment: Experiment, folder: ExperimentFolder, on_progress: OnProgress | None, stop: Stop | None
) -> RunSummary:
    experiment.check()
    uri = tracking_uri(experiment.record.tracking_uri, folder.path.parent)
    if starts_here():
        check_resources(experiment)
    check_writable(folder.path.parent)
    storage = storage_of(experiment.record.storage)
    with ray_session() if experiment.needs_ray else contextlib.nullcontext():
        if isinstance(stop, Reinstallable):  # ray.init puts its own handler on SIGTERM
            stop.reinstall()
        if experiment.needs_ray:
            check_resources(experiment)
        copy = Copy(part_of(storage, folder.path, EXPERIMENT), folder.path, SEEDS)
        copy.take_up()
        met = meet(storage, folder, experiment.seeds)
        _describe(folder, experiment)
        copy.settle()
        with delivered(folder, experiment.record.flush_s, FINAL_DELIVERY_S):
            ran = run_seeds(experiment, folder, on_progress or (lambda _: None), stop or (lambda: False), storage)
            write_aggregates(folder)
            report, verdict = make_report(folder.path)
            published = copy.settle()
        published = copy.settle() and published  # how far the tracker has got
    found = _summary(folder, uri, report, verdict, interrupted=bool(stop and stop()))
    return replace(found, unpublished=not (met and ran and published))


def _folder_of(experiment: Experiment, *, fresh: bool) -> ExperimentFolder:
    """The experiment's folder; for a fresh start the first of ``-2``, ``-3``, ... that exists nowhere."""
    first = ExperimentFolder.place(Path(experiment.record.folder), experiment.name, experiment.identity)
    return ExperimentFolder(fresh_place(first.path, storage_of(experiment.record.storage))) if fresh else first


def _describe(folder: ExperimentFolder, experiment: Experiment) -> None:
    resolved = experiment.model_dump(mode="json")
    folder.create(
        experiment_hash=experiment.identity,
        yaml_text=yaml_text(resolved),
        resolved=resolved,
        provenance={**provenance(experiment.identity, experiment.seeds), "objective": experiment.objective},
    )


def _summary(folder: ExperimentFolder, uri: str, report: Path, verdict: str, *, interrupted: bool) -> RunSummary:
    statuses = {run.seed: run.status() for run in folder.seeds()}
    return RunSummary(
        folder=folder.path,
        states={seed: status.state for seed, status in statuses.items() if status},
        reasons={seed: status.reason for seed, status in statuses.items() if status and status.reason},
        report=report,
        tracking_uri=redacted(uri),
        undelivered=pending(folder),
        interrupted=interrupted,
        verdict=verdict,
    )
