"""Run a sweep, or continue it where its folder says it was left: after more trials were asked for, or a kill."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import ray

from proxygap.base.errors import InvalidExperiment, ProxyGapError
from proxygap.loops.copies import fresh_place
from proxygap.loops.run import FINAL_DELIVERY_S, Reinstallable
from proxygap.loops.seed_run import Stop
from proxygap.loops.session import ray_session, starts_here
from proxygap.record.folder import check_writable
from proxygap.record.provenance import provenance
from proxygap.record.shipper import delivered, waiting
from proxygap.record.storage import storage_of
from proxygap.record.sweep_folder import SweepFolder, TrialState
from proxygap.record.tracker import redacted, tracking_uri
from proxygap.sweep.book import Book, settle_all
from proxygap.sweep.copies import SweepCopies
from proxygap.sweep.director import Director
from proxygap.sweep.ending import Ending
from proxygap.sweep.engine import execute, function_of
from proxygap.sweep.load import LoadedSweep, load_sweep
from proxygap.sweep.mailbox import Mailbox
from proxygap.sweep.messages import Messages
from proxygap.sweep.progress import Best, SweepProgress, Watch
from proxygap.sweep.report import make_sweep_report
from proxygap.sweep.resources import check_sweep, start_shared
from proxygap.sweep.selection import objective_warnings
from proxygap.sweep.settings import PopulationBased
from proxygap.sweep.trial import Job
from proxygap.sweep.trial_records import Shelf

OnProgress = Callable[[SweepProgress], None]
TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """How a sweep ended, for now or for good.

    Args:
        folder: the sweep's folder; the same command, or `resume_sweep`, continues it.
        states: of all trials, by number.
        reasons: of those that have one.
        best: by goal, where a trial finished.
        spent: clocks over all trials and seeds.
        wall_s: seconds over all executions.
        note: why it ended before all trials were over; empty where they all are.
        complete: whether nothing is left to do.
        interrupted: whether it was asked to stop.
        report: the page; None while no trial has reported.
        verdict: its first line.
        warnings: a sentence for each goal that is an objective, with what choosing by it has cost so far.
        tracking_uri: where the runs are, without secrets.
        undelivered: journal rows that wait for it.
        unpublished: whether the copy in storage is not complete, which a later run on this node makes up for.
    """

    folder: Path
    states: Mapping[int, TrialState]
    reasons: Mapping[int, str]
    best: tuple[Best, ...]
    spent: Mapping[str, int]
    wall_s: float
    note: str
    complete: bool
    interrupted: bool
    report: Path | None
    verdict: str
    warnings: tuple[str, ...]
    tracking_uri: str
    undelivered: int
    unpublished: bool = False


def run_sweep(
    loaded: LoadedSweep, *, fresh: bool = False, on_progress: OnProgress | None = None, stop: Stop | None = None
) -> SweepSummary:
    """Run a sweep, or continue it in its folder: trials that have ended stay as they are.

    Args:
        loaded: a sweep, checked.
        fresh: start again in a new folder instead of continuing.
        on_progress: told now and then, and whenever a trial ends.
        stop: asked many times a second; true stops all trials at a checkpoint.

    Raises:
        ProxyGapError: the sweep cannot start, or cannot go on (a full disk); failed trials are states of the summary.
        Superseded: another process has taken the sweep over; nothing more was written about it.
    """
    return _execute(loaded, sweep_folder(loaded, fresh=fresh), on_progress, stop)


def resume_sweep(folder: Path, *, on_progress: OnProgress | None = None, stop: Stop | None = None) -> SweepSummary:
    """Continue what is unfinished in a sweep's folder.

    Raises:
        StorageError: the folder holds no sweep.
        InvalidExperiment: the recorded sweep was altered in what can change its results.
    """
    place = SweepFolder(folder.absolute())
    identity = place.identity["sweep_hash"]
    loaded = load_sweep(place.path / "sweep.yaml")
    if loaded.identity != identity:
        raise InvalidExperiment(
            "the recorded sweep was altered, so its trials cannot be continued",
            field=str(place.path / "sweep.yaml"),
            remedy="Run the altered sweep from a file of its own",
        )
    return _execute(loaded, place, on_progress, stop)


def _execute(
    loaded: LoadedSweep, folder: SweepFolder, on_progress: OnProgress | None, stop: Stop | None
) -> SweepSummary:
    _preflight(loaded, folder)
    base, told = loaded.base, on_progress or (lambda _: None)
    uri = tracking_uri(base.record.tracking_uri, folder.path.parent)
    storage = storage_of(base.record.storage)
    shelf = Shelf(folder, None if storage is None else storage.below(folder.path.name))
    copies = SweepCopies(shelf)
    copies.take_up()
    job = _describe(loaded, shelf)
    with _opened(loaded, copies, folder, stop or (lambda: False)) as (director, watch):
        page: tuple[Path | None, str] = None, ""
        with delivered(folder, base.record.flush_s, FINAL_DELIVERY_S):
            try:
                if not director.idle:
                    _run(director, watch, job, copies, told, stop)
                complete = copies.gather()
                settle_all(folder, director.book)
                if any(trial.reports for trial in director.book.trials.values()):
                    page = make_sweep_report(folder.path)
            finally:
                told(watch.progress(director))
        complete = copies.settle() and complete
        return replace(_summary(director, watch, folder, uri, page), unpublished=not complete)


def _preflight(loaded: LoadedSweep, folder: SweepFolder) -> None:
    """All that can be refused before Ray is started or a folder is made. Raises ProxyGapError."""
    loaded.base.check()
    sweep = loaded.sweep
    if isinstance(sweep.scheduler, PopulationBased):
        if sweep.concurrency < sweep.trial_count:
            raise InvalidExperiment(
                f"a population trains together, and sweep.trials = {sweep.trial_count}",
                field="sweep.concurrency",
                value=sweep.concurrency,
                remedy=f"Set it to {sweep.trial_count}; compute.cpus_per_seed may be a fraction",
            )
        most = loaded.base.loop.real_steps * len(loaded.base.seeds) * sweep.trial_count
        if sweep.budget.real_step is not None and sweep.budget.real_step < most:
            raise InvalidExperiment(
                f"a population trains together, and {sweep.trial_count} trials may take {most} real steps",
                field="sweep.budget.real_step",
                value=sweep.budget.real_step,
                remedy="Raise it, or lower sweep.trials",
            )
    if starts_here():
        check_sweep(loaded)
    tracking_uri(loaded.base.record.tracking_uri, folder.path.parent)
    check_writable(folder.path.parent)


def sweep_folder(loaded: LoadedSweep, *, fresh: bool = False) -> SweepFolder:
    """The sweep's folder; for a fresh start the first of ``-2``, ``-3``, ... that exists nowhere."""
    first = SweepFolder.place(Path(loaded.base.record.folder), loaded.name, loaded.identity)
    return SweepFolder(fresh_place(first.path, storage_of(loaded.base.record.storage))) if fresh else first


def _describe(loaded: LoadedSweep, shelf: Shelf) -> Job:
    found = {**provenance(loaded.identity, loaded.base.seeds), "objective": loaded.base.objective}
    shelf.folder.create(sweep_hash=loaded.identity, yaml_text=loaded.text, resolved=loaded.resolved, provenance=found)
    return Job(loaded, shelf, loaded.identity, found)


@contextlib.contextmanager
def _opened(
    loaded: LoadedSweep, copies: SweepCopies, folder: SweepFolder, stop: Stop
) -> Iterator[tuple[Director, Watch]]:
    """The sweep's memory, open for writing. Raises StorageError, also where another process runs the sweep."""
    watch = Watch(folder)  # its lock keeps a second process out
    try:
        book = Book(folder, loaded)
        settle_all(folder, book)
        limit = loaded.sweep.budget.wall_s
        deadline = None if limit is None else time.time() + limit - watch.wall_s
        messages = Messages()
        ending = Ending(messages, stop, loaded.sweep.stop_grace_s, deadline)
        director = Director(loaded, folder, book, ending, messages, begins=copies.commit, ended=copies.ended)
        copies.start(book, lambda: director.live)
        try:
            yield director, watch
        finally:
            copies.stop()
            book.close()
    finally:
        watch.close()


def _run(director: Director, watch: Watch, job: Job, copies: SweepCopies, told: OnProgress, stop: Stop | None) -> None:
    """Trials until there are no more; hosts that all of them ask are there as long. Raises ProxyGapError."""
    last = 0.0

    def tick() -> None:
        nonlocal last
        try:
            copies.check()
            mailbox.tend()
        except ProxyGapError as error:
            director.ending.fail(error)
        if time.monotonic() - last >= TELL_EVERY_S:
            last = time.monotonic()
            now = watch.progress(director)
            try:
                watch.write(now)
            except ProxyGapError as error:
                director.ending.fail(error)
            told(now)

    with ray_session():
        if isinstance(stop, Reinstallable):  # ray.init puts its own handler on SIGTERM
            stop.reinstall()
        check_sweep(job.loaded)
        folder, home = job.shelf.folder.path, ray.get_runtime_context().get_node_id()
        job = replace(job, shelf=replace(job.shelf, home=home))
        mailbox = Mailbox(director.messages, folder.name)
        with contextlib.closing(mailbox), contextlib.closing(start_shared(job.loaded, folder.name)):
            execute(director, function_of(job, mailbox.name), scratch=folder / ".tune", tick=tick)
    watch.write(watch.progress(director), always=True)


def _summary(
    director: Director, watch: Watch, folder: SweepFolder, uri: str, page: tuple[Path | None, str]
) -> SweepSummary:
    now, trials = watch.progress(director), director.book.trials
    return SweepSummary(
        folder=folder.path,
        states={number: trial.state for number, trial in trials.items()},
        reasons={number: trial.reason for number, trial in trials.items() if trial.reason},
        best=now.best,
        spent=now.spent,
        wall_s=now.wall_s,
        note=now.note,
        complete=director.complete,
        interrupted=director.ending.interrupted,
        report=page[0],
        verdict=page[1],
        warnings=objective_warnings(trials.values(), director.sweep.goals, director.loaded.outcome),
        tracking_uri=redacted(uri),
        undelivered=waiting(folder),
    )


__all__ = ["OnProgress", "SweepProgress", "SweepSummary", "resume_sweep", "run_sweep", "sweep_folder"]
