"""Where hosted models live and what they may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from proxygap.base.config import Settings


class Hosting(Settings):
    """Ray actors that own one model: the members of an ensemble are dealt among them, a single model is copied."""

    hosts: int = Field(default=0, ge=0, le=1024)
    """Actors that share the work; 0 keeps the model in the process of the loop, with equal numbers."""
    cpus: NonNegativeFloat = 1.0
    """CPUs reserved per host."""
    gpus: NonNegativeFloat = 0.0
    """GPUs reserved per host; the model runs on one when it is above 0."""
    accelerator_type: str | None = None
    """Ray's name of the accelerator that a host needs, e.g. ``H100``."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that the node of a host must have, by Ray's selector syntax, e.g. ``{pool: reward}`` or
    ``{zone: "in(a,b)"}``. Kinds of hosts with different labels have pools of their own."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources reserved per host, by the names that the nodes were started with."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Whether hosts share nodes or keep apart; the STRICT forms fail instead of compromising."""
    deadline_s: PositiveFloat = 60.0
    """Longest wait for one prediction, restarts of the host included."""
    fit_deadline_s: PositiveFloat = 3600.0
    """Longest wait for one fit, restarts of the host included."""
    max_restarts: int = Field(default=3, ge=-1)
    """Restarts of a host before the run fails; -1 never gives up."""
    max_pending: PositiveInt = 64
    """Requests that may wait at a host; a caller beyond that waits itself (back-pressure)."""
    max_batch: PositiveInt = 65_536
    """Rows of waiting requests that a host runs together."""


class Serve(Settings):
    """Hosting of each kind of model."""

    dynamics: Hosting = Hosting()
    """The members of the dynamics ensemble."""
    reward: Hosting = Hosting()
    """The members of the reward ensemble."""
    reference: Hosting = Hosting()
    """Copies of the frozen reference policy; each holds the whole model, the rows of a batch are dealt among them."""
