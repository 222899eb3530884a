"""Share of MBPO's wall clock that is spent outside environment steps, model arithmetic and learner arithmetic.

Whole runs as ``proxygap run`` does them for one seed, evaluations, journal and checkpoints included. The window opens
when random collection ends and holds whole periods of the ensemble's refit. Arithmetic means the innermost calls: the
simulator's own step, forward and backward passes, optimizer steps, the laws of the task. Moving batches around, and
whatever else no counted call claims, is overhead.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from ray.rllib.core.learner.learner_group import LearnerGroup

from measure import Bound, report
from proxygap.base.progress import Progress
from proxygap.collect.env_runner import StepRunner
from proxygap.collect.replay import ImaginedReplay, Replay
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask
from proxygap.collect.tasks.standard import StandardEnv
from proxygap.experiment import Experiment, load_experiment, validate
from proxygap.fit.dynamics import ensemble
from proxygap.fit.dynamics.training import Stack
from proxygap.loops import mbpo
from proxygap.loops.off_policy import OffPolicy
from proxygap.loops.seed_run import SeedRun
from proxygap.loops.session import ray_session
from proxygap.optimize.sac_learner import SacLearner
from proxygap.optimize.sac_module import SacModule
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import SeedFolder
from proxygap.record.journal import Journal
from stopwatch import Stopwatch

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
    "replay": [
        (Replay, "sample_columns"),
        (ImaginedReplay, "sample_columns"),
        (Replay, "add"),
        (ImaginedReplay, "add"),
    ],
    "around fits": [(ensemble.GaussianEnsemble, "fit")],
    "around predictions": [(ensemble.GaussianEnsemble, "predict_rows"), (ensemble.GaussianEnsemble, "predict")],
    "around rollouts": [(mbpo, "branched_rollouts")],
    "probe: gap and intervals": [(SeedRun, "_gap")],
    "probe: the rest": [(SeedRun, "_measure")],
    "journal": [(Journal, "write"), (Journal, "event")],
    "checkpoints": [(OffPolicy, "parts"), (mbpo.Mbpo, "parts"), (CheckpointStore, "save")],
}
COUNTED = {ENVIRONMENT, *ARITHMETIC}


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


def wrap_all(watch: Stopwatch) -> None:
    for name, calls in (ARITHMETIC | AROUND).items():
        for owner, method in calls:
            watch.wrap(owner, method, name)
    make_env = GymnasiumTask.make_env

    def make_timed_env(task: GymnasiumTask) -> StandardEnv:
        env = make_env(task)
        watch.wrap(env.env, "step", ENVIRONMENT)  # inside our wrapper: the simulator's own
        watch.wrap(env.env, "reset", ENVIRONMENT)
        return env

    GymnasiumTask.make_env = make_timed_env


def run_window(experiment: Experiment, watch: Stopwatch, periods: int) -> None:
    """Charge ``periods`` periods, from the end of random collection on, to ``watch``."""
    first = experiment.collect.random_steps
    last = first + periods * experiment.loop.refit_every
    over = False

    def on_progress(progress: Progress) -> None:
        nonlocal over
        if progress.clocks.real_step == first and not over:
            watch.start()
        elif progress.clocks.real_step == last and not over:
            watch.stop()
            over = True

    with tempfile.TemporaryDirectory() as folder:
        SeedRun(experiment, 0, SeedFolder(Path(folder), 0), on_progress, lambda: over).execute()
    assert over, f"the window from step {first} to {last} must begin and end with an iteration, within the budget"


def print_profile(name: str, watch: Stopwatch) -> None:
    print(f"{name}: {watch.total:.1f} s (* counts as overhead)")
    for part, seconds in sorted(watch.seconds.items(), key=lambda row: -row[1]):
        mark = " " if part in COUNTED else "*"
        print(f"{part:>32} {mark} {seconds / watch.total:7.2%} {seconds:8.2f} s {watch.calls[part]:7d} calls")


def main() -> bool:
    watch = Stopwatch()
    wrap_all(watch)
    shares: dict[str, list[float]] = {}
    profiles: dict[str, dict[str, float]] = {}
    with ray_session():
        for name, experiment, periods in (("quickstart", quickstart(), 5), ("hopper", hopper(), 1)):
            watch.clear()
            run_window(experiment, watch, periods)
            print_profile(name, watch)
            shares[name] = [sum(s for part, s in watch.seconds.items() if part not in COUNTED) / watch.total]
            profiles[name] = {part: round(seconds, 3) for part, seconds in watch.seconds.items()}
    claims = [Bound(name, AT_MOST) for name in shares]
    details = {"seconds": profiles, "arithmetic": sorted(COUNTED)}
    return report("loop_overhead", unit="of the wall clock", samples=shares, claims=claims, details=details)


if __name__ == "__main__":
    sys.exit(not main())
