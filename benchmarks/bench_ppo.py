"""Real steps per second of PPO on HalfCheetah-v5: ours beside Stable-Baselines3's, and ours on a hosted learned reward.

Two hidden layers of 64 for actor and critic each, rollouts of 2,048 steps, minibatches of 64, 10 epochs, one thread,
no evaluation. Ours is the loop that an experiment file builds, RLlib's iterations included: on the true reward (proxy
``gold``), and on an ensemble of 5 on one host that scores every step; labels are bought and the ensemble is fitted
before the window. Time is CPU time of the process and of the host, which work in turns, so that other programs touch
all alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO

from measure import Ratio, report
from proxygap.experiment import validate
from proxygap.loops.session import ray_session

TASK, ROLLOUT, ROUNDS = "HalfCheetah-v5", 2048, 8
TICKS = 100  # a second of CPU time in /proc, on every Linux that Ray runs on


def our_loop(proxy: dict[str, Any], hosts: int) -> Any:
    experiment = validate(
        {
            "name": "bench",
            "question": "How fast is the loop?",
            "task": {"kind": "gymnasium", "id": TASK},
            "outcomes": ["return"],
            "loop": {"kind": "preference_control", "real_steps": 1000 * ROLLOUT, "label_rounds": 1},
            "optimize": {"kind": "ppo", "hidden": [64, 64], "minibatch_size": 64, "epochs": 10},
            "proxy": proxy,
            "labels": {"pairs": 200},
            "serve": {"reward": {"hosts": hosts, "cpus": 0.5}},
            "probe": {"every": 1000 * ROLLOUT},
        }
    )
    return experiment.loop.start(experiment, 0)


def their_loop() -> PPO:
    sizes = {"n_steps": ROLLOUT, "batch_size": 64, "n_epochs": 10}
    return PPO("MlpPolicy", gym.make(TASK), **sizes, device="cpu", seed=0)


def cpu_s_of(process: int) -> float:
    """CPU seconds that another process has used, all its threads together."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> bool:
    torch.set_num_threads(1)
    with ray_session():
        plain, learned, theirs = (
            our_loop({"kind": "gold"}, 0),
            our_loop({"kind": "mlp_reward", "members": 5}, 1),
            their_loop(),
        )
        host = learned.side.reward.health()[0].pid
        subjects: dict[str, Callable[[], object]] = {
            "ours": plain.train,
            "ours, hosted reward": learned.train,
            "stable_baselines3": lambda: theirs.learn(ROLLOUT, log_interval=None, reset_num_timesteps=False),
        }
        cpu: dict[str, list[float]] = {name: [] for name in subjects}
        wall: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(ROUNDS + 1):  # the first warms up, and buys the labels
            for name in subjects if number % 2 else reversed(subjects):
                started = time.process_time() + cpu_s_of(host), time.perf_counter()
                subjects[name]()
                if number:
                    cpu[name].append(ROLLOUT / (time.process_time() + cpu_s_of(host) - started[0]))
                    wall[name].append(ROLLOUT / (time.perf_counter() - started[1]))
        check_equal_work(plain, theirs)
        check_equal_work(learned, theirs)
        assert learned.clocks.label == 200
        plain.stop()
        learned.stop()
    claims = [
        Ratio("ours", "stable_baselines3", at_least=0.9),
        Ratio("ours, hosted reward", "ours", at_least=0.85),
    ]
    details = {"wall-clock steps/s": {name: [round(rate) for rate in each] for name, each in wall.items()}}
    return report("ppo", unit="steps/s", samples=cpu, claims=claims, details=details)


def check_equal_work(ours: Any, theirs: PPO) -> None:
    """Both must have lived and learned as much."""
    assert ours.clocks.real_step == theirs.num_timesteps == (ROUNDS + 1) * ROLLOUT
    minibatches = theirs.n_steps // theirs.batch_size
    assert ours.clocks.policy_update == theirs._n_updates * minibatches, (ours.clocks, theirs._n_updates)


if __name__ == "__main__":
    sys.exit(not main())
