"""The clocks of a run, and what one tick of each means. They are never mixed up and never reset.

========================  =====================================================================
iteration                 one pass of the loop's ``training_step``
real_step                 one transition taken in the real environment by the behavior policy
imagined_step             one transition taken inside a fitted model
model_update              one gradient step of a model (a step of all members together is one)
policy_update             one gradient step of the policy and its critics
label                     one preference label bought from a labeler
========================  =====================================================================

Steps of evaluation episodes advance no clock: measuring changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, slots=True)
class Clocks:
    """A reading of all clocks at one moment."""

    iteration: int = 0
    real_step: int = 0
    imagined_step: int = 0
    model_update: int = 0
    policy_update: int = 0
    label: int = 0

    def tick(self, **counts: int) -> Clocks:
        """Advance the named clocks by non-negative counts."""
        if any(count < 0 for count in counts.values()):
            raise ValueError(f"clocks never run backwards: {counts}")
        return replace(self, **{name: getattr(self, name) + count for name, count in counts.items()})

    def as_dict(self) -> dict[str, int]:
        """Name to reading, in the order of the table above."""
        return asdict(self)
