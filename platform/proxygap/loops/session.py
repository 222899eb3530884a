"""The Ray session of a command: joins the cluster that it is pointed at, or starts one here and takes it down again."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

_CHATTY = ("ray.rllib", "ray._common.deprecation", "ray._private.authentication", "ray.tune.utils.util")
"""Loggers whose warnings are about Ray's own inside, or repeat what ``proxygap doctor`` says."""


def starts_here() -> bool:
    """Whether `ray_session` would start a Ray of its own on this machine."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the length of a block.

    ``RAY_ADDRESS`` names a cluster to join. Without it a local Ray starts, quiet, without a dashboard and with Ray's
    token authentication on (its default); it ends with the block. A session that is up already is used and left alone.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    joined = os.environ.get("RAY_ADDRESS")
    own = {} if joined else {"include_dashboard": False}
    ray.init(address=joined or "local", logging_level=logging.WARNING, log_to_driver=False, **own)
    try:
        yield
    finally:
        ray.shutdown()
