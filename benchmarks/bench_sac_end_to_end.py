"""Real steps per second of SAC: our `sac` loop beside Stable-Baselines3's, taking turns in one process on one thread.

HalfCheetah-v5, two hidden layers of 256, batch 256, one update per step, no evaluation. Ours is the loop that an
experiment file builds, RLlib's iterations included; theirs is ``SAC("MlpPolicy", ...)`` from its package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import gymnasium as gym
import torch
from stable_baselines3 import SAC

from measure import Ratio, interleaved, report
from proxygap.experiment import validate
from proxygap.loops.off_policy import LoopConfig, OffPolicy
from proxygap.loops.session import ray_session

TASK, RANDOM, CHUNK, ROUNDS = "HalfCheetah-v5", 1000, 300, 8


def our_loop() -> OffPolicy:
    experiment = validate(
        {
            "name": "bench",
            "question": "How fast is the loop?",
            "task": {"kind": "gymnasium", "id": TASK},
            "outcomes": ["return"],
            "loop": {"kind": "sac", "real_steps": 1_000_000},
            "optimize": {"kind": "sac", "hidden": [256, 256], "batch_size": 256},
            "collect": {"random_steps": RANDOM},
            "probe": {"every": 1_000_000},
        }
    )
    return LoopConfig.for_run(experiment.loop.algorithm(), experiment, seed=0).build_algo()


def their_loop() -> SAC:
    return SAC(
        "MlpPolicy",
        gym.make(TASK),
        batch_size=256,
        learning_starts=RANDOM,
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": [256, 256]},
        device="cpu",
        seed=0,
    )


def advance_ours(loop: OffPolicy, steps: int) -> None:
    until = loop.clocks.real_step + steps
    while loop.clocks.real_step < until:
        loop.train()


def main() -> bool:
    torch.set_num_threads(1)
    with ray_session():
        ours, theirs = our_loop(), their_loop()
        subjects: dict[str, Callable[[], object]] = {
            "ours": lambda: advance_ours(ours, CHUNK),
            "stable_baselines3": lambda: theirs.learn(CHUNK, log_interval=None, reset_num_timesteps=False),
        }
        advance_ours(ours, RANDOM)
        theirs.learn(RANDOM, log_interval=None)
        times = interleaved(subjects, ROUNDS)
        check_equal_work(ours, theirs)
        ours.stop()
    rates = {name: [CHUNK / seconds for seconds in each] for name, each in times.items()}
    ratio = Ratio("ours", "stable_baselines3", at_least=1.0)
    return report("sac_end_to_end", unit="steps/s", samples=rates, claims=[ratio])


def check_equal_work(ours: OffPolicy, theirs: SAC) -> None:
    """Both loops must have lived, kept and learned as much (the first update comes one step apart)."""
    assert len(ours.replay) == theirs.replay_buffer.size() == theirs.num_timesteps == ours.clocks.real_step
    assert abs(ours.clocks.policy_update - theirs._n_updates) <= 1, (ours.clocks, theirs._n_updates)


if __name__ == "__main__":
    sys.exit(not main())
