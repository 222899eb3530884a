"""Ray Tune as the executor of a sweep: processes, placement and retries; every decision is the `Director`'s."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.error import TuneError

from proxygap.base.errors import InvalidExperiment
from proxygap.sweep.director import Director
from proxygap.sweep.load import LoadedSweep
from proxygap.sweep.mailbox import inbox_of
from proxygap.sweep.messages import SweepGone
from proxygap.sweep.resources import SIZING, trial_bundles
from proxygap.sweep.space import experiment_of
from proxygap.sweep.trial import Job, interrupted, leave_tunes_folder, run_trial
from proxygap.sweep.tunes_side import DirectedScheduler, DirectedSearch, DirectedStopper, TakeUp

TrialFunction = Callable[[int, Callable[[dict[str, Any]], None]], None]
"""Takes a trial's number and the function that reports; returns when the trial is over."""
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # its memory is not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "1e9",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Tune without its loggers, its handling of signals, its checkpoints of itself and its console."""


def function_of(job: Job, mailbox: str) -> TrialFunction:
    """The function that every trial of a sweep runs; ``mailbox`` is the name of the sweep's."""
    folder = str(Path.cwd())

    def run(number: int, report: Callable[[dict[str, Any]], None]) -> None:
        leave_tunes_folder(folder)
        try:
            with inbox_of(mailbox, number) as inbox:
                run_trial(job, number, report, inbox)
        except SweepGone as error:
            report(interrupted(str(error)))

    return run


def execute(
    director: Director, function: TrialFunction, *, scratch: Path, tick: Callable[[], None] = lambda: None
) -> None:
    """Run trials until the director has no more, or the sweep ends. Ray must be connected.

    Args:
        director: decides.
        function: what a trial does.
        scratch: folder that Tune may use; it is removed.
        tick: called many times a second.

    Raises:
        ProxyGapError: the sweep itself cannot go on, e.g. the ledger cannot be written.
    """

    def trainable(config: dict[str, Any]) -> None:
        function(int(config["trial"]), tune.report)

    with _quiet_tune(), _removed(scratch):
        try:
            tune.run(  # a Tuner would pickle searcher, scheduler and callbacks, and with them the ledger
                tune.with_resources(trainable, _reservation(director.loaded)),
                name="tune",
                storage_path=str(scratch),
                search_alg=DirectedSearch(director),
                scheduler=DirectedScheduler(director),
                callbacks=[TakeUp(director)],
                stop=DirectedStopper(director, tick),
                num_samples=-1,
                max_failures=director.sweep.failures.retries,
                raise_on_failed_trial=False,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
                verbose=0,
            )
        except TuneError:
            if director.ending.problem is None:
                raise
    if director.ending.problem is not None:
        raise director.ending.problem


def _name(trial: Any) -> str:
    return f"trial-{int(trial.config['trial']):05d}-{trial.trial_id}"


def _reservation(loaded: LoadedSweep) -> Any:
    """What each trial reserves: the same for all, unless a field is searched that may size it."""
    if not any(field.partition(".")[0] in SIZING for field in loaded.sweep.space):
        return trial_bundles(loaded.base, loaded.sweep)

    def of_setting(config: Mapping[str, Any]) -> Any:
        try:
            experiment = experiment_of(loaded, json.loads(config["setting"]), int(config["trial"]))
        except InvalidExperiment:  # the trial itself will tell it
            experiment = loaded.base
        return trial_bundles(experiment, loaded.sweep)

    return of_setting


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune's settings for the length of a block; signals that it takes are given back."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGUSR1) if in_main else None
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it reports on files that are not written here
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="ray")
            yield
    finally:
        logger.setLevel(level)
        if in_main:
            signal.signal(signal.SIGUSR1, handler or signal.SIG_DFL)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
