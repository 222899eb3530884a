"""What a run says about itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from proxygap.base.clock import Clocks


@dataclass(frozen=True, slots=True)
class Progress:
    """The state of one seed after an iteration. Numbers that are not known yet are NaN.

    Args:
        seed: which run.
        state: ``starting``, ``running``, ``finished``, ``failed`` or ``interrupted``.
        clocks: all clocks now.
        budget: real steps at which the run ends.
        steps_per_second: real steps per second of wall clock, over the last iterations.
        eta_s: seconds until the budget is spent, at that speed.
        objective: newest value of the objective that the verdict looks at.
        outcome: newest value of the first outcome.
        correlation: Spearman correlation of the two so far, signed so that + means "better goes with better".
        note: one line about the newest event, e.g. a restarted host.
    """

    seed: int
    state: str
    clocks: Clocks
    budget: int
    steps_per_second: float
    eta_s: float
    objective: float
    outcome: float
    correlation: float
    note: str = ""
