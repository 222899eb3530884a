"""The value of a state, to second order, where the law is known: what value-aware losses weigh by without a critic.

Law and reward are expanded around an equilibrium, and the linear-quadratic problem that remains is solved by the finite
Riccati recursion (Bertsekas 2012, Dynamic Programming and Optimal Control, vol. 1, section 3.1, with cross terms and a
discount). Unlike the algebraic equation, the recursion also takes parts of the observation that no action moves, as
long as no reward depends on them: their value is 0, exactly.

Shape legend: B batch, O observation size, A action size, Z = O + A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proxygap.base.errors import InvalidExperiment

if TYPE_CHECKING:
    from proxygap.base.language import Float64
    from proxygap.base.protocols import Task

TOLERANCE = 1e-6
"""How far an equilibrium may drift in a step, and how steep the reward may be there."""


@dataclass(frozen=True, slots=True)
class LinearQuadratic:
    """A task near an equilibrium: x' = A x + B u, and a step costs x'Qx + u'Ru + 2 x'Nu (x, u from the equilibrium)."""

    A_OO: Float64
    B_OA: Float64
    Q_OO: Float64
    R_AA: Float64
    N_OA: Float64

    def cost_to_go(self, steps: int, discount: float) -> Float64:
        """P (O, O) of the least discounted cost x'Px of so many steps."""
        A, B, P = self.A_OO, self.B_OA, np.zeros_like(self.Q_OO)
        for _ in range(steps):
            cross_AO = discount * B.T @ P @ A + self.N_OA.T
            gain_AO = np.linalg.solve(self.R_AA + discount * B.T @ P @ B, cross_AO)
            P = self.Q_OO + discount * A.T @ P @ A - cross_AO.T @ gain_AO
            P = (P + P.T) / 2
        return P


@dataclass(frozen=True, slots=True)
class QuadraticValue:
    """V(s) = constant - (s - equilibrium)' P (s - equilibrium), in the units of the return."""

    cost_OO: Float64
    equilibrium_O: Float64

    @staticmethod
    def of(
        task: Task, *, equilibrium: Sequence[float] | None = None, steps: int | None = None, discount: float = 1.0
    ) -> QuadraticValue:
        """The value of the best that can be done near an equilibrium, with action 0.

        Args:
            task: knows its law of motion and its reward.
            equilibrium: the observation there. Default: zeros, which is upright on the cart-pole.
            steps: horizon. Default: the task's limit.
            discount: of rewards, per step.

        Raises:
            InvalidExperiment: the law is not known, the state is no equilibrium, or the reward is not greatest there.
        """
        center_O = np.zeros(task.obs_size) if equilibrium is None else np.asarray(equilibrium, np.float64)
        problem = linear_quadratic(task, center_O)
        return QuadraticValue(problem.cost_to_go(steps or task.max_episode_steps, discount), center_O)

    def value_gradient(self, obs_BO: Tensor) -> Tensor:
        """dV/ds, shape (B, O), detached."""
        cost_OO, center_O = (torch.as_tensor(array).to(obs_BO) for array in (self.cost_OO, self.equilibrium_O))
        return -2.0 * (obs_BO.detach() - center_O) @ cost_OO

    def value(self, obs_BO: Tensor) -> Tensor:
        """V without its constant, shape (B,)."""
        cost_OO, center_O = (torch.as_tensor(array).to(obs_BO) for array in (self.cost_OO, self.equilibrium_O))
        away_BO = obs_BO - center_O
        return -((away_BO @ cost_OO) * away_BO).sum(dim=-1)


def linear_quadratic(task: Task, equilibrium_O: Float64) -> LinearQuadratic:
    """A task's law and reward expanded by automatic differentiation in float64. Raises as `QuadraticValue.of`."""
    if not (task.known_dynamics and task.known_reward):
        raise _refusal(task, "has no law of motion and reward that are known", "Use a loss, or a loop, with a critic")

    point_Z = torch.cat([torch.as_tensor(equilibrium_O), torch.zeros(task.action_size, dtype=torch.float64)])
    size = task.obs_size

    def law(point_Z: Tensor) -> Tensor:
        return task.next_obs(point_Z[None, :size], point_Z[None, size:])[0]

    def reward(point_Z: Tensor) -> Tensor:
        obs_1O, action_1A = point_Z[None, :size], point_Z[None, size:]
        return task.reward(obs_1O, action_1A, task.next_obs(obs_1O, action_1A))[0]

    drift = float((law(point_Z) - point_Z[:size]).abs().max())
    functional: Any = torch.autograd.functional
    slope = float(functional.jacobian(reward, point_Z).abs().max())
    if drift > TOLERANCE or slope > TOLERANCE:
        raise _refusal(task, f"does not rest there: it drifts by {drift:.2g}, its reward rises by {slope:.2g}", _REST)
    motion_OZ = functional.jacobian(law, point_Z).numpy()
    cost_ZZ = -functional.hessian(reward, point_Z).numpy() / 2
    if np.linalg.eigvalsh(cost_ZZ).min() < -TOLERANCE:
        raise _refusal(task, "is not paid best there", _REST)
    parts = cost_ZZ[:size, :size], cost_ZZ[size:, size:], cost_ZZ[:size, size:]
    return LinearQuadratic(motion_OZ[:, :size], motion_OZ[:, size:], *parts)


_REST = "Give the observation at which action 0 keeps the task where its reward is greatest"


def _refusal(task: Task, problem: str, remedy: str) -> InvalidExperiment:
    return InvalidExperiment(f"{task.name} {problem}", field="task", remedy=remedy)
