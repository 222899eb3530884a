"""What chaos is let loose on: tiny experiments with every kind of process in them, under a second each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxygap.experiment import Experiment, validate

CONTROL: dict[str, Any] = {
    "name": "chaos-control",
    "question": "Does it come through?",
    "task": {"kind": "continuous_cartpole"},
    "outcomes": ["return"],
    "collect": {"random_steps": 20},
    "fit": {"members": 2, "hidden": [8, 8], "max_epochs": 2},
    "imagine": {"rollouts_per_step": 4},
    "optimize": {"hidden": [8, 8], "batch_size": 16},
    "loop": {"kind": "mbpo", "real_steps": 240, "updates_per_step": 1, "refit_every": 10, "steps_per_iteration": 10},
    "probe": {"every": 40, "episodes": 2, "resamples": 100, "imagined_horizon": 5, "k_step": 2},
}
"""Model-based control: a refit and new rollouts after every iteration, so that a lost model is noticed at once."""
LANGUAGE: dict[str, Any] = {
    "name": "chaos-language",
    "question": "Does it come through?",
    "task": {"kind": "sequence_lm", "prompts": 4},
    "policy": {"kind": "tiny_transformer", "layers": 1, "width": 32, "pretraining": {"steps": 10}},
    "labels": {"pairs": 60},
    "proxy": {"kind": "transformer_reward", "members": 2, "training": {"epochs": 1}},
    "loop": {"kind": "language_rl", "real_steps": 96},
    "optimize": {"kind": "rloo", "prompts_per_iteration": 2, "answers_per_prompt": 4},
    "outcomes": ["gold_reward"],
    "probe": {"every": 16, "answers": 8, "resamples": 100},
}
"""A language policy on a learned reward: every iteration asks the reward and the reference."""
STEPS = {"chaos-control": 10, "chaos-language": 8}
"""Real steps of an iteration."""


def experiment(workload: dict[str, Any], root: Path, **sections: Any) -> Experiment:
    """A workload with its records under ``root``; what `sections` has of a section is laid over it."""
    tree = {**workload, "record": {"folder": str(root), "flush_s": 1.0}}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return validate(tree)


def hosted(*kinds: str, **options: Any) -> dict[str, Any]:
    """The section ``serve`` with one host of each kind."""
    return {kind: {"hosts": 1, "cpus": 0.5, **options} for kind in kinds}
