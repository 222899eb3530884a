"""Every part at every seam: its ``kind`` in YAML, where it lives, one line, its paper.

Another package adds a part by an entry point in the group ``proxygap.<seam>`` (spaces become underscores) whose
object is a `Settings` class with a literal ``kind``.
"""

from __future__ import annotations

import importlib
import operator
from dataclasses import dataclass
from functools import cache, reduce
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import Field

from proxygap.base.config import Settings


@dataclass(frozen=True, slots=True)
class Part:
    """One entry of the registry; ``home`` is ``module:attribute`` of its settings class."""

    seam: str
    kind: str
    home: str
    line: str
    paper: str = ""

    def settings(self) -> type[Settings]:
        """The settings class; importing it loads neither torch nor Ray."""
        module, attribute = self.home.split(":")
        found: type[Settings] = getattr(importlib.import_module(module), attribute)
        return found


PARTS = (
    Part(
        "task",
        "gymnasium",
        "proxygap.collect.tasks.gymnasium_task:GymnasiumTask",
        "Any registered Gymnasium task with continuous actions, by its id.",
        "Towers et al. 2024, 2407.17032",
    ),
    Part(
        "task",
        "continuous_cartpole",
        "proxygap.collect.tasks.cartpole:ContinuousCartPole",
        "Cart-pole with a continuous force, as in the objective-mismatch study.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "dynamics model",
        "gaussian_ensemble",
        "proxygap.fit.dynamics.settings:GaussianEnsembleSettings",
        "Probabilistic ensemble of Gaussian networks, all members vectorized.",
        "Chua et al. 2018, 1805.12114",
    ),
    Part(
        "dynamics loss",
        "likelihood",
        "proxygap.fit.dynamics.losses:Likelihood",
        "Gaussian negative log-likelihood.",
        "Chua et al. 2018, 1805.12114",
    ),
    Part(
        "dynamics loss",
        "mse",
        "proxygap.fit.dynamics.losses:SquaredError",
        "Mean squared error of the normalized change of state.",
    ),
    Part(
        "optimizer",
        "sac",
        "proxygap.optimize.settings:SacSettings",
        "Soft actor-critic with the field's networks, several lean updates per Learner call.",
        "Haarnoja et al. 2018, 1812.05905",
    ),
    Part(
        "loop",
        "mbpo",
        "proxygap.loops.settings:MbpoLoop",
        "Model-based policy optimization: branched short rollouts from real states train SAC.",
        "Janner et al. 2019, 1906.08253",
    ),
    Part(
        "loop",
        "sac",
        "proxygap.loops.settings:SacLoop",
        "Model-free soft actor-critic: the baseline in the same frame.",
        "Haarnoja et al. 2018, 1812.05905",
    ),
)


@cache
def parts(seam: str | None = None) -> tuple[Part, ...]:
    """All parts (of one seam), ours first, then those of other packages."""
    seams = dict.fromkeys(part.seam for part in PARTS)
    foreign = (
        Part(name, point.name, point.value, _first_line(point.load()), f"from {point.dist.name if point.dist else '?'}")
        for name in seams
        for point in entry_points(group=f"proxygap.{name.replace(' ', '_')}")
    )
    return tuple(part for part in (*PARTS, *foreign) if seam in (None, part.seam))


def union(seam: str) -> Any:
    """The type of a field that holds one part of a seam, chosen by its ``kind``."""
    kinds = [part.settings() for part in parts(seam)]
    if len(kinds) == 1:
        return kinds[0]
    return Annotated[reduce(operator.or_, kinds), Field(discriminator="kind")]


def _first_line(part: type[Settings]) -> str:
    return (part.__doc__ or "").strip().partition("\n")[0]
