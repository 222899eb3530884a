"""The seeds of an experiment: one after the other in this process, or several at a time in Ray actors.

An actor that is lost, with its process or with its node, is replaced: the new one takes the seed up at its newest
checkpoint. With storage that may be on any node; without it, where the records are.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from proxygap.base.errors import ProxyGapError, RunFailed, StorageError, Superseded
from proxygap.base.progress import Progress
from proxygap.experiment import Experiment
from proxygap.loops.copies import TAKE_UP_S, Copy, Fetching, finished, part_of
from proxygap.loops.recovery import Loss, Losses, RayLost, cause_of, in_a_line
from proxygap.loops.resources import seed_options
from proxygap.loops.seed_run import OnProgress, SeedRun, Stop
from proxygap.loops.seed_worker import SeedWorker
from proxygap.record.folder import ExperimentFolder, RunState, SeedFolder
from proxygap.record.storage import Storage

POLL_S, BEGIN_S = 0.5, 5.0
log = logging.getLogger("proxygap")


def run_seeds(
    experiment: Experiment,
    folder: ExperimentFolder,
    on_progress: OnProgress,
    stop: Stop,
    storage: Storage | None = None,
) -> bool:
    """Run every seed that is not finished. A seed that fails is recorded as failed, and the others go on.

    Returns:
        Whether storage has all that they recorded; true without storage.

    Raises:
        Superseded: another process has taken the experiment over.
        RayLost: the Ray of this process is gone.
    """
    places = [folder.seed(seed) for seed in experiment.seeds]
    todo = [place for place in places if not finished(place)]
    if experiment.seeds_in_actors:
        return Seeds(experiment, storage, on_progress, stop).run(todo)
    complete = True
    for place in todo:
        if not stop():
            complete = _run_here(experiment, place, storage, on_progress, stop) and complete
    return complete


def _run_here(
    experiment: Experiment, place: SeedFolder, storage: Storage | None, on_progress: OnProgress, stop: Stop
) -> bool:
    copy = Copy(part_of(storage, place.path.parent, place.path.name), place.path)
    try:
        if not copy.take_up(store_s=TAKE_UP_S, stop=stop):
            return False
        SeedRun(experiment, place.seed, place, on_progress, stop, publish=copy.publish).execute()
    except (Superseded, RayLost):
        raise
    except Exception as error:
        log.exception("seed %d failed", place.seed)
        place.set_status(RunState.FAILED, in_a_line(error))
    return copy.settle()


@dataclass
class _Seed:
    """A seed, and the actor that has it at the moment."""

    place: SeedFolder
    losses: Losses
    loss: Loss | None = None
    not_before: float = 0.0
    actor: Any = None
    end: Any = None
    asked: Any = None
    seen: Progress | None = None
    reached: int = 0
    saved: int = -1
    started: bool = False
    stop_asked: float = 0.0


class Seeds:
    """Seeds in actors, ``compute.parallel_seeds`` at a time.

    Args:
        experiment: what they run.
        storage: where their records are copied, or None: then they stay on this node.
        on_progress: told of each seed's state after every iteration.
        stop: asked twice a second; true stops them all with a checkpoint.
    """

    def __init__(self, experiment: Experiment, storage: Storage | None, on_progress: OnProgress, stop: Stop) -> None:
        self._experiment, self._storage, self._on_progress, self._stop = experiment, storage, on_progress, stop
        self._fetching, self._complete = Fetching(storage), True

    def run(self, todo: list[SeedFolder]) -> bool:
        """Run them; see `run_seeds`."""
        waiting = [_Seed(place, Losses(self._experiment.compute.max_failures)) for place in todo]
        running: list[_Seed] = []
        try:
            with self._fetching:
                while waiting or running:
                    self._start_some(waiting, running)
                    if not running and self._stop():
                        break
                    self._round(waiting, running)
        except RayLost as error:
            self._leave(todo, str(error))
            raise
        finally:
            for each in running:  # an error ends them all
                ray.kill(each.actor)
        return self._complete

    def _leave(self, todo: list[SeedFolder], reason: str) -> None:
        """Say of the seeds whose records are here that they do not run any more."""
        for place in todo if self._storage is None else ():
            status = place.status()
            if status is not None and status.state is RunState.RUNNING:
                place.set_status(RunState.INTERRUPTED, reason)

    def _start_some(self, waiting: list[_Seed], running: list[_Seed]) -> None:
        for each in list(waiting):
            if len(running) >= self._experiment.parallel_seeds or self._stop():
                return
            if time.monotonic() >= each.not_before:
                self._start(each)
                waiting.remove(each)
                running.append(each)

    def _start(self, each: _Seed) -> None:
        life = "" if each.loss is None else f".{each.loss.attempt}"  # Ray frees the name of a dead actor a little late
        name = f"{each.place.path.parent.name}/{each.place.path.name}{life}"
        options = seed_options(self._experiment, pinned=self._storage is None)
        home = ray.get_runtime_context().get_node_id()
        actor = ray.remote(SeedWorker).options(name=name, max_concurrency=3, **options)
        each.actor = actor.remote(self._experiment, each.place, self._storage, home, each.loss)
        each.end, each.asked, each.started, each.stop_asked = each.actor.execute.remote(), None, False, 0.0

    def _round(self, waiting: list[_Seed], running: list[_Seed]) -> None:
        """Wait for whatever is first; pass on what is new, and down the request to stop."""
        if not running:
            time.sleep(POLL_S)
            return
        done, _ = ray.wait([each.end for each in running], timeout=POLL_S)
        for each in list(running):
            if each.end in done:
                running.remove(each)
                self._finish(each)
                if each.loss is not None and each.end is None:
                    waiting.insert(0, each)
                continue
            if self._stop():
                self._have_stopped(each)
            self._follow(each)

    def _have_stopped(self, each: _Seed) -> None:
        """Ask once; an actor that has not begun after a while waits for room, and would do so for ever."""
        now = time.monotonic()
        if not each.stop_asked:
            each.stop_asked = now
            each.actor.stop.remote()
        elif not each.started and now - each.stop_asked > BEGIN_S:
            ray.kill(each.actor)

    def _follow(self, each: _Seed) -> None:
        """Pass on what is new, once the actor has answered; it may be busy, or not have begun."""
        each.asked = each.asked or each.actor.told.remote()
        if ray.wait([each.asked], timeout=0)[0]:
            asked, each.asked = each.asked, None
            with contextlib.suppress(RayError):  # its end will tell
                self._hear(each, *ray.get(asked))

    def _hear(self, each: _Seed, progress: Progress | None, saved: int, away: bool) -> None:
        each.started, each.saved = True, max(saved, each.saved)
        if progress is not None and progress.state != "starting":
            each.reached = progress.clocks.real_step
        if away:
            self._fetching.add(each.place)
        if progress is not None and progress != each.seen:
            each.seen = progress
            self._on_progress(progress)

    def _finish(self, each: _Seed) -> None:
        """The end of a seed, or of its actor: then it has a loss, and no end."""
        try:
            published = ray.get(each.end)
            with contextlib.suppress(RayError):
                self._hear(each, *ray.get(each.actor.told.remote(), timeout=5 * POLL_S))
            each.loss, self._complete = None, published and self._complete
            if self._fetching.drop(each.place):
                self._complete = self._fetching.last(each.place) and self._complete
        except (RayError, ProxyGapError) as error:
            self._fetching.drop(each.place)
            cause = cause_of(error)
            if isinstance(cause, Superseded):
                raise cause from None
            if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
                self._lose(each, error)
            else:
                self._fail(each, error)
        finally:
            ray.kill(each.actor)

    def _lose(self, each: _Seed, error: Exception) -> None:
        """Have it taken up again; or leave it where it is, if all is to stop."""
        if self._stop():
            return self._end(each, RunState.INTERRUPTED, f"while it was stopped: {in_a_line(error)}")
        log.warning("seed %d lost its process: %s", each.place.seed, in_a_line(error))
        try:
            each.loss = each.losses.count(in_a_line(error), each.reached, each.saved)
        except RunFailed as failed:
            return self._end(each, RunState.FAILED, in_a_line(failed))
        each.end, each.not_before = None, time.monotonic() + each.losses.pause_s
        return None

    def _fail(self, each: _Seed, error: Exception) -> None:
        log.error("seed %d failed", each.place.seed, exc_info=error)
        self._end(each, RunState.FAILED, in_a_line(error))

    def _end(self, each: _Seed, state: RunState, reason: str) -> None:
        """Say how it ended, in storage as well: its own process cannot."""
        each.loss = None
        copy = Copy(part_of(self._storage, each.place.path.parent, each.place.path.name), each.place.path)
        try:
            copy.take_up()
        except StorageError as error:
            log.warning("seed %d: %s", each.place.seed, error)
            self._complete = False
            return
        each.place.set_status(state, reason)
        self._complete = copy.settle() and self._complete
