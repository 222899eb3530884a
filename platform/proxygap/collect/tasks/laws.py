"""Laws of Gymnasium environments that their observations determine: reward and termination, batched.

A law is stated only where it holds for every reachable transition with the default arguments of the environment; the
rest is learned. Thresholds are compared in float64, as the environments do: a law and its environment can then differ
only where rounding an observation to float32 carries it across the threshold (a band of one part in 10^7 around it).

Shape legend: B batch, O observation size, A action size. Actions are in [-1, 1]. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Law = Callable[[Tensor, Tensor, Tensor], Tensor]
    """(obs_BO, action_BA, next_obs_BO) -> (B,)."""


@dataclass(frozen=True, slots=True)
class Laws:
    """What is known of one environment; None is learned."""

    reward: Law | None = None
    terminated: Law | None = None


def laws_of(env_id: str) -> Laws:
    """The laws of a Gymnasium id (a module prefix is ignored); nothing is known of ids not listed here."""
    return _LAWS.get(env_id.rpartition(":")[2], Laws())


def _never(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """Episodes end by the time limit only."""
    return next_obs_BO.new_zeros(len(next_obs_BO)).bool()


def _inverted_pendulum_terminated(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """The pole leans more than 0.2 rad (inverted_pendulum_v5.py, ``step``)."""
    return ~(next_obs_BO[:, 1].double().abs() <= 0.2) | ~_finite(next_obs_BO)


def _inverted_pendulum_reward(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:
    """1 for each step that does not end the episode (inverted_pendulum_v5.py, ``step``)."""
    return (~_inverted_pendulum_terminated(obs_BO, action_BA, next_obs_BO)).to(next_obs_BO.dtype)


def _pendulum_reward(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """Minus (angle^2 + 0.1 velocity^2 + 0.001 torque^2), before the step (pendulum.py, ``step``); torque is 2 a."""
    angle_B = obs_BO[:, 1].atan2(obs_BO[:, 0])
    torque_B = 2.0 * action_BA[:, 0]
    return -(angle_B.square() + 0.1 * obs_BO[:, 2].square() + 0.001 * torque_B.square())


def _hopper_terminated(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """Not (height > 0.7, |angle| < 0.2, the rest of the state within 100) (hopper_v5.py, ``is_healthy``).

    The observation clips velocities at 10, so a speed above 100 would go unseen; joint damping and the actuators'
    limits keep speeds far below it.
    """
    height_B, angle_B = next_obs_BO[:, 0].double(), next_obs_BO[:, 1].double()
    bounded_B = (next_obs_BO[:, 1:].double().abs() < 100.0).all(dim=1)
    return ~((height_B > 0.7) & (angle_B.abs() < 0.2) & bounded_B)


def _walker_terminated(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """Not (0.8 < height < 2, |angle| < 1) (walker2d_v5.py, ``is_healthy``)."""
    height_B, angle_B = next_obs_BO[:, 0].double(), next_obs_BO[:, 1].double()
    return ~((height_B > 0.8) & (height_B < 2.0) & (angle_B.abs() < 1.0))


def _ant_terminated(obs_BO: Tensor, action_BA: Tensor, next_obs_BO: Tensor) -> Tensor:  # noqa: ARG001
    """Not (0.2 <= height <= 1, all finite) (ant_v5.py, ``is_healthy``)."""
    height_B = next_obs_BO[:, 0].double()
    return ~((height_B >= 0.2) & (height_B <= 1.0) & _finite(next_obs_BO))


def _finite(obs_BO: Tensor) -> torch.Tensor:
    return obs_BO.isfinite().all(dim=1)


_LAWS = {
    "Ant-v5": Laws(terminated=_ant_terminated),
    "HalfCheetah-v5": Laws(terminated=_never),
    "Hopper-v5": Laws(terminated=_hopper_terminated),
    "InvertedPendulum-v5": Laws(_inverted_pendulum_reward, _inverted_pendulum_terminated),
    "Pendulum-v1": Laws(_pendulum_reward, _never),
    "Swimmer-v5": Laws(terminated=_never),
    "Walker2d-v5": Laws(terminated=_walker_terminated),
}
