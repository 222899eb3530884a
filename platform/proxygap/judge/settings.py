"""Settings of the judge; importing them loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import model_validator

from proxygap.base.config import Settings
from proxygap.judge.aggregates import AnyAggregate, Mean
from proxygap.judge.transforms import AnyTransform

if TYPE_CHECKING:
    from proxygap.judge.judging import Judging


class Judge(Settings):
    """How an ensemble's scores become the one reward that is optimized: aggregated, then transformed in this order."""

    aggregate: AnyAggregate = Mean()
    """How members' scores become one."""
    transforms: tuple[AnyTransform, ...] = ()
    """What is done to that score, first to last."""

    @model_validator(mode="after")
    def _baselines_stand_still(self) -> Judge:
        moving = ""
        for transform in self.transforms:
            if moving and transform.needs_reference:
                raise ValueError(
                    f"{transform.kind} fixes a baseline in the units of {moving}, which changes them as it judges; "
                    f"put {transform.kind} before {moving}"
                )
            moving = transform.kind if transform.moving else moving
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether answers of the reference policy must be judged first, with `Judging.reference`."""
        return any(transform.needs_reference for transform in self.transforms)

    @property
    def needs_confidence(self) -> bool:
        """Whether every judged row must come with a stated confidence (or NaN)."""
        return any(transform.needs_confidence for transform in self.transforms)

    def build(self) -> Judging:
        """A judge without memories."""
        from proxygap.judge.judging import Judging

        return Judging(self)
