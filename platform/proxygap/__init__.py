"""ProxyGap: run reinforcement learning systems, and measure what they optimize beside what they are wanted for.

The map, in the order in which the data flows:

=============  ==============================================================================================
``base``       nouns that every stage shares: records, protocols, clocks, seeds
``collect``    real experience and labels in: tasks, environment runners, annotators, replay, datasets
``fit``        models learn from the data
``imagine``    roll a fitted model forward
``judge``      scores become one training reward
``optimize``   raise the judged reward: RLlib Learners and RLModules, best-of-n, the exact optimum
``probe``      measure objective and outcome, change nothing
``record``     keep every measurement: journal first, MLflow second
``report``     measurements in, tables and figures out
``serve``      Ray actors around the models
``loops``      one readable file per loop, and the driver that runs it
=============  ==============================================================================================

Importing this package loads neither torch nor Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxygap.base.errors import ProxyGapError

if TYPE_CHECKING:
    from proxygap.experiment import Experiment, load_experiment
    from proxygap.loops.run import RunSummary, run

__version__ = "0.1.0"
__all__ = ["Experiment", "ProxyGapError", "RunSummary", "load_experiment", "run"]

_HOMES = {
    "Experiment": "proxygap.experiment",
    "load_experiment": "proxygap.experiment",
    "RunSummary": "proxygap.loops.run",
    "run": "proxygap.loops.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'proxygap' has no attribute {name!r}; it offers {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
