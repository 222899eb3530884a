"""Cart-pole with a continuous force, as the objective-mismatch study uses it; cheap, and known in closed form.

Physics: the cart-pole of Barto, Sutton and Anderson 1983 with Gymnasium's constants and explicit Euler steps. Reward:
that of Chua et al. 2018 (1805.12114, cart-pole), on which Lambert et al. 2020 (2002.04523) measure the mismatch.

Shape legend: B batch, D distractors, O = 4 + D (cart position m, cart velocity m/s, pole angle rad, pole velocity
rad/s; 0 is upright and centered, positive leans to the right; then the distractors), A = 1. Importing this module loads
neither Gymnasium nor torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from proxygap.collect.tasks.one_reward import ControlTask

if TYPE_CHECKING:
    import torch

    from proxygap.collect.tasks.standard import Float32Env

GRAVITY = 9.8
CART_MASS = 1.0
POLE_MASS = 0.1
STEP_S = 0.02
POLE_LENGTH = 1.0
"""Length of the pole, m; twice the distance to its center of mass that the equations of motion use."""
POSITION_LIMIT = 2.4
"""The episode ends where the cart is farther from the center, m."""
ANGLE_LIMIT = math.radians(12.0)
"""The episode ends where the pole leans more, rad."""
ACTION_COST = 0.01
"""Price of a squared action."""
CHAOS = 3.9
"""Growth rate of the distractors' logistic map. At 4, rounding to float32 soon hits 1/2, and the map ends at 0."""
DISTRACTOR_SIZE = 3.0
"""Amplitude of the distractors: errors of theirs outweigh those of the physical state."""


class ContinuousCartPole(ControlTask):
    """Keep a pole upright over the center of a track (Lambert et al. 2020, 2002.04523, section 4)."""

    kind: Literal["continuous_cartpole"] = "continuous_cartpole"
    force_limit: PositiveFloat = 10.0
    """Force at action 1, N; with less, a lean that has gone too far cannot be caught."""
    process_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to both velocities at each step, m/s and rad/s; 0 is deterministic."""
    start_spread: float = Field(default=0.05, ge=0.0, le=0.2)
    """Each part of the start state is uniform in plus or minus this; a wider start asks more of model and policy."""
    max_episode_steps: PositiveInt = 200
    """Steps of 0.02 s after which an episode is truncated."""
    distractors: NonNegativeInt = 0
    """Further parts of the observation, each on a chaotic course of its own that neither action nor reward touches.
    They can be learned, but take capacity from what matters (as in Voelcker et al. 2022, 2204.01464, section 5)."""

    @property
    def name(self) -> str:
        """``ContinuousCartPole``."""
        return "ContinuousCartPole"

    @property
    def obs_size(self) -> int:
        """Positions and velocities of cart and pole, and the distractors."""
        return 4 + self.distractors

    @property
    def action_size(self) -> int:
        """One: the force, in units of the limit."""
        return 1

    @property
    def known_reward(self) -> bool:
        """True."""
        return True

    @property
    def known_termination(self) -> bool:
        """True."""
        return True

    @property
    def known_dynamics(self) -> bool:
        """True."""
        return True

    def check(self) -> None:
        """Nothing to refuse: every setting that validates can be run."""

    def make_env(self) -> Float32Env:
        """A fresh environment: observations (O,) float32, actions (1,) in [-1, 1], truncated at the time limit."""
        from gymnasium.wrappers import TimeLimit

        from proxygap.collect.tasks.cartpole_env import CartPoleEnv

        return TimeLimit(CartPoleEnv(self), self.max_episode_steps)

    def reward(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Closeness of the tip to its goal, exp(-distance^2 / length^2), minus 0.01 action^2, shape (B,)."""
        position_B, angle_B = next_obs_BO[:, 0], next_obs_BO[:, 2]
        across_B = position_B + POLE_LENGTH * angle_B.sin()
        below_B = POLE_LENGTH * (1.0 - angle_B.cos())
        closeness_B = (-(across_B.square() + below_B.square()) / POLE_LENGTH**2).exp()
        return closeness_B - ACTION_COST * action_BA[:, 0].square()

    def terminated(self, obs_BO: torch.Tensor, action_BA: torch.Tensor, next_obs_BO: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Whether cart or pole has left its limits (not-a-number counts as outside), bool, shape (B,)."""
        position_B, angle_B = next_obs_BO[:, 0].double(), next_obs_BO[:, 2].double()
        return ~((position_B.abs() <= POSITION_LIMIT) & (angle_B.abs() <= ANGLE_LIMIT))

    def next_obs(self, obs_BO: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
        """The state 0.02 s later without process noise, shape (B, O): `cartpole_env.advance`, batched."""
        import torch

        physical_B4 = torch.stack(self._advanced(obs_BO, self.force_limit * action_BA[:, 0]), dim=1)
        return torch.cat([physical_B4, wandered(obs_BO[:, 4:])], dim=1) if self.distractors else physical_B4

    def _advanced(self, obs_BO: torch.Tensor, force_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The four physical coordinates one explicit Euler step later, each (B,); force in N."""
        position_B, velocity_B, angle_B, spin_B = obs_BO[:, :4].unbind(dim=1)
        half, mass = POLE_LENGTH / 2, CART_MASS + POLE_MASS
        sine_B, cosine_B = angle_B.sin(), angle_B.cos()
        thrust_B = (force_B + POLE_MASS * half * spin_B.square() * sine_B) / mass
        moment_B = half * (4.0 / 3.0 - POLE_MASS * cosine_B.square() / mass)
        spin_rate_B = (GRAVITY * sine_B - cosine_B * thrust_B) / moment_B
        acceleration_B = thrust_B - POLE_MASS * half * spin_rate_B * cosine_B / mass
        return (
            position_B + STEP_S * velocity_B,
            velocity_B + STEP_S * acceleration_B,
            angle_B + STEP_S * spin_B,
            spin_B + STEP_S * spin_rate_B,
        )


Distractor = TypeVar("Distractor", float, "torch.Tensor")


def wandered(distractor: Distractor) -> Distractor:
    """A distractor, or any number of them, a step later: the logistic map of distractor / `DISTRACTOR_SIZE`."""
    return CHAOS * distractor * (1.0 - distractor / DISTRACTOR_SIZE)
