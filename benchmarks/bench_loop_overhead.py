"""Share of MBPO's wall clock that is spent outside environment steps, model arithmetic and learner arithmetic.

Whole runs as ``proxygap run`` does them for one seed, evaluations, journal and checkpoints included. The window opens
at the first fit and holds whole periods of the ensemble's refit. Arithmetic means the innermost calls: the simulator's
own step, forward and backward passes, optimizer steps, the laws of the task; moving batches around does not count.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import proxygap.fit.dynamics.ensemble as ensemble
import proxygap.imagine.rollouts as rollouts
from measure import Ratio, report
from ray.rllib.core.learner.learner_group import LearnerGroup
from stopwatch import Stopwatch

from proxygap.base.progress import Progress
from proxygap.collect.replay import ImaginedReplay, Replay
from proxygap.collect.env_runner import StepRunner
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.collect.tasks.standard import StandardEnv
from proxygap.experiment import Experiment, load_experiment, validate
from proxygap.fit.dynamics.training import Stack
from proxygap.loops import mbpo, seed_run
from proxygap.loops.session import ray_session
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import SeedFolder
from proxygap.record.journal import Journal

AT_MOST = 0.15
ENVIRONMENT = "environment: steps"
ARITHMETIC: dict[str, list[tuple[Any, str]]] = {
    "policy: updates": [(SacLearner, "_one_update")],
    "policy: actions and values": [(SacModule, "act"), (SacModule, "value")],
    "model: backward and Adam": [(Stack, "step")],
    "model: losses": [(Stack, "loss")],
    "model: predictions": [(ensemble, "forward")],
    "model: laws of the task": [(GymnasiumTask, "reward"), (GymnasiumTask, "terminated")],
}
AROUND: dict[str, list[tuple[Any, str]]] = {
    "RLlib's iteration": [(mbpo.Mbpo, "train")],
    "loop": [(mbpo.Mbpo, "training_step")],
    "around updates": [(SacLearner, "update")],
    "around a LearnerGroup call": [(LearnerGroup, "update")],
    "around environment steps": [(StepRunner, "sample")],
    "replay": [(Replay, "sample_columns"), (ImaginedReplay, "sample_columns"), (Replay, "add"), (ImaginedReplay, "add")],
    "around fits": [(ensemble.GaussianEnsemble, "fit")],
    "around predictions": [(ensemble.GaussianEnsemble, "predict_rows"), (ensemble.GaussianEnsemble, "predict")],
    "around rollouts": [(mbpo, "branched_rollouts")],
    "probe: gap and intervals": [(seed_run.SeedRun, "_gap")],
    "probe: the rest": [(seed_run.SeedRun, "_measure")],
    "journal": [(Journal, "write"), (Journal, "event")],
    "checkpoints": [(seed_run.OffPolicy, "parts"), (mbpo.Mbpo, "parts"), (CheckpointStore, "save")],
}


def quickstart() -> Experiment:
    file = Path(__file__).parents[1] / "pipelines" / "quickstart.yaml"
    return load_experiment(file, ["serve.dynamics.hosts=0", "compute.parallel_seeds=1"])


def hopper() -> Experiment:
    return validate(
        {
            "name": "bench",
            "question": "Where does the time go?",
            "task": {"kind": "gymnasium", "id": "Hopper-v5"},
            "outcomes": ["return"],
            "collect": {"random_steps": 500},
            "loop": {"kind": "mbpo", "real_steps": 5000, "updates_per_step": 20, "refit_every": 250},
            "probe": {"every": 250, "episodes": 5},
        }
    )


def window(experiment: Experiment, periods: int) -> Stopwatch:
    """Where the time of ``periods`` periods went, from the iteration after the first fit on."""
    watch, first = Stopwatch(), experiment.collect.random_steps
    last = first + periods * experiment.loop.refit_every
    done: list[Progress] = []

    def on_progress(progress: Progress) -> None:
        if progress.clocks.real_step == first:
            watch.start()
        elif progress.clocks.real_step == last and not done:
            watch.stop()
            done.append(progress)

    wrapped(watch)
    with tempfile.TemporaryDirectory() as folder:
        place = SeedFolder(Path(folder), 0)
        seed_run.SeedRun(experiment, 0, place, on_progress, lambda: bool(done)).execute()
    return watch


def wrapped(watch: Stopwatch) -> None:
    for group in (ARITHMETIC, AROUND):
        for name, calls in group.items():
            for owner, method in calls:
                watch.wrap(owner, method, name)
    make_env = GymnasiumTask.make_env

    def make_timed_env(task: GymnasiumTask) -> StandardEnv:
        env = make_env(task)
        watch.wrap(env.env, "step", ENVIRONMENT)
        watch.wrap(env.env, "reset", ENVIRONMENT)
        return env

    GymnasiumTask.make_env = make_timed_env


def main(name: str) -> None:
    experiment, periods = {"quickstart": (quickstart(), 5), "hopper": (hopper(), 1)}[name]
    with ray_session():
        watch = window(experiment, periods)
    counted = {ENVIRONMENT, *ARITHMETIC}
    around = sum(seconds for each, seconds in watch.seconds.items() if each not in counted)
    for each, seconds in sorted(watch.seconds.items(), key=lambda row: -row[1]):
        print(f"{each:>28} {'' if each in counted else '*'} {100 * seconds / watch.total:5.1f}% {seconds:7.2f} s {watch.calls[each]:7d}")
    print(name, watch.total, around / watch.total)

if __name__ == "__main__":
    main(sys.argv[1])
