"""The seeds of an experiment: one after the other in this process, or several at a time in Ray actors."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from proxygap.base.errors import ProxyGapError
from proxygap.base.progress import Progress
from proxygap.experiment import Experiment
from proxygap.loops.seed_run import OnProgress, SeedRun, Stop
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder

POLL_S = 0.5
log = logging.getLogger("proxygap")


def run_seeds(experiment: Experiment, folder: ExperimentFolder, on_progress: OnProgress, stop: Stop) -> None:
    """Run every seed that is not finished. A seed that fails is recorded as failed, and the others go on."""
    places = [folder.seed(seed) for seed in experiment.seeds]
    todo = [place for place in places if not _finished(place)]
    if experiment.parallel_seeds == 1:
        for place in todo:
            if not stop():
                _run_here(experiment, place, on_progress, stop)
        return
    _run_in_actors(experiment, todo, on_progress, stop)


def _finished(place: SeedFolder) -> bool:
    status = place.status()
    return status is not None and status.state is RunState.FINISHED


def _run_here(experiment: Experiment, place: SeedFolder, on_progress: OnProgress, stop: Stop) -> None:
    try:
        SeedRun(experiment, place.seed, place, on_progress, stop).execute()
    except Exception as error:
        log.exception("seed %d failed", place.seed)
        place.set_status(RunState.FAILED, _reason(error))


class SeedWorker:
    """Runs one seed in an actor; the other methods answer while it does."""

    def __init__(self, experiment: Experiment, place: SeedFolder) -> None:
        self._experiment, self._place = experiment, place
        self._progress: Progress | None = None
        self._stopping = False

    def execute(self) -> None:
        """Run the seed to its end, or to a request to stop."""
        SeedRun(self._experiment, self._place.seed, self._place, self._keep, lambda: self._stopping).execute()

    def progress(self) -> Progress | None:
        """The newest progress."""
        return self._progress

    def stop(self) -> None:
        """Ask the run to checkpoint and return."""
        self._stopping = True

    def _keep(self, progress: Progress) -> None:
        self._progress = progress


@dataclass
class _Running:
    place: SeedFolder
    actor: Any
    seen: Progress | None = None
    asked_to_stop: bool = False


def _run_in_actors(experiment: Experiment, todo: list[SeedFolder], on_progress: OnProgress, stop: Stop) -> None:
    waiting, running = list(todo), dict[Any, _Running]()
    while waiting or running:
        while waiting and len(running) < experiment.parallel_seeds and not stop():
            place = waiting.pop(0)
            actor = _start(experiment, place)
            running[actor.execute.remote()] = _Running(place, actor)
        if not running:
            return
        done, _ = ray.wait(list(running), timeout=POLL_S)
        _follow(running.values(), on_progress, stopping=stop())
        for reference in done:
            _finish(reference, running.pop(reference), on_progress)


def _start(experiment: Experiment, place: SeedFolder) -> Any:
    options = {
        "name": f"{experiment.folder_name}/seed-{place.seed}",
        "num_cpus": experiment.compute.cpus_per_seed,
        "max_concurrency": 3,
        "scheduling_strategy": "DEFAULT",
    }
    return ray.remote(SeedWorker).options(**options).remote(experiment, place)


def _follow(running: Iterable[_Running], on_progress: OnProgress, *, stopping: bool) -> None:
    """Pass on what is new, and pass down the request to stop."""
    for each in running:
        if stopping and not each.asked_to_stop:
            each.actor.stop.remote()
            each.asked_to_stop = True
        try:
            progress = ray.get(each.actor.progress.remote(), timeout=5 * POLL_S)
        except RayError:  # busy or gone: the next round, or the end of its run, will tell
            continue
        if progress is not None and progress != each.seen:
            each.seen = progress
            on_progress(progress)


def _finish(reference: Any, each: _Running, on_progress: OnProgress) -> None:
    try:
        ray.get(reference)
        _follow([each], on_progress, stopping=False)
    except (RayError, ProxyGapError) as error:
        log.exception("seed %d failed", each.place.seed)
        each.place.set_status(RunState.FAILED, _reason(error))
    ray.kill(each.actor)


def _reason(error: BaseException) -> str:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return f"{type(cause).__name__}: {cause}".splitlines()[0][:1000]
