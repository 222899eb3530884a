"""Attacks on models that keep their likelihood on the data: what `AdversarialModel` climbs, rung by rung.

Source of the idea: Lambert et al. 2020 (2002.04523), section 4.2, who search the last layer with CMA-ES.

Shape legend: Q honest models, C candidates of each, E episodes, R rungs, N rows, T predicted targets; M members, H
features as in `last_layer`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import derived_seed, generator
from proxygap.fit.dynamics.sizes import target_count
from proxygap.fit.dynamics.weights import nearest_distance
from proxygap.loops.datasets import dataset
from proxygap.loops.last_layer import LastLayers, ranked

if TYPE_CHECKING:
    from proxygap.base.language import Float64
    from proxygap.base.records import Float32
    from proxygap.loops.adversarial_model import AdversarialModel
    from proxygap.loops.model_settings import EvolutionAttack, FlipAttack


class Flip:
    """Fine-tuning toward dynamics in which actions have the opposite effect, far from the data; without memory.

    The far rows are among those of every fit, of the honest one with weight 0, so that all rungs normalize alike.
    """

    def __init__(self, loop: AdversarialModel, settings: FlipAttack) -> None:
        self._loop, self._settings = loop, settings
        self._far: Transitions | None = None
        self._wrong: Transitions | None = None

    def climb(self, rung: int) -> int:
        """Honest models; then a fine-tune of them with true targets; then with wrong ones, ever heavier."""
        loop = self._loop
        rows, weight_NT = self._given(self.wrong if rung > 1 else self.far, self._penalty(rung))
        if rung == 0:
            updates = loop.fit(rows, loop.settings.epochs, weight_NT, fresh=True)
            loop.honest = loop.population.state()
            return updates
        assert loop.honest is not None, "the first rung fits them"
        loop.population.load_state(loop.honest)
        return loop.fit(rows, self._settings.epochs, weight_NT, fresh=False)

    def _penalty(self, rung: int) -> float:
        """Weight of the far rows, all together, against the data; the control has that of the strongest attack."""
        penalties = self._settings.penalties
        return 0.0 if rung == 0 else penalties[-1] if rung == 1 else penalties[rung - 2]

    @property
    def far(self) -> Transitions:
        """Rows far from all data, with their true targets."""
        if self._far is None:
            loop, near = self._loop, self._loop.data.rows
            away, _ = dataset(loop.experiment, self._settings.away, loop.seed, loop.tell)
            distance_N = nearest_distance(
                *(np.hstack([r.obs_BO, r.action_BA]).astype(np.float64) for r in (away, near))
            )
            apart = away[distance_N >= np.quantile(distance_N, self._settings.spare)]
            self._far = replace(apart, episode_B=apart.episode_B + near.episode_B.max() + 1)
        return self._far

    @property
    def wrong(self) -> Transitions:
        """The same rows, with what the honest models predict for the opposite action."""
        loop, far = self._loop, self.far
        assert loop.honest is not None, "the first rung fits them"
        if self._wrong is None:
            loop.population.load_state(loop.honest)
            target_BT = loop.population.predict(far.obs_BO, -far.action_BA).mean(axis=0)
            size = far.obs_BO.shape[1]
            reward_B = target_BT[:, size] if target_BT.shape[1] > size else far.outcome_reward_B
            self._wrong = replace(far, next_obs_BO=far.obs_BO + target_BT[:, :size], outcome_reward_B=reward_B)
        return self._wrong

    def _given(self, far: Transitions, penalty: float) -> tuple[Transitions, Float32]:
        """The data, with its own numbers and so its own held-out rows, then the far rows; and what each weighs."""
        data, targets = self._loop.data, target_count(self._loop.experiment.control_task)
        own_NT = np.ones((len(data.rows), targets), np.float32) if data.weight_NT is None else data.weight_NT
        share = penalty * float(own_NT.mean()) * len(own_NT) / len(far)
        far_NT = np.full((len(far), targets), share, np.float32)
        return Transitions.concatenate([data.rows, far]), np.concatenate([own_NT, far_NT])

    def measurements(self, rung: int) -> tuple[Measurement, ...]:
        """What the rung is: weight of the far targets, and whether they are wrong."""
        return (one("penalty", self._penalty(rung), Side.MODEL), one("attacked", float(rung > 1), Side.MODEL))

    def state(self) -> State:
        """Nothing: the far rows follow from the honest models."""
        return State({}, {})

    def load_state(self, state: State) -> None:
        """Nothing to take up."""


class Evolution:
    """(mu, lambda) evolution of the last layers, each honest model's apart; the step follows what can be afforded."""

    def __init__(self, loop: AdversarialModel, settings: EvolutionAttack) -> None:
        self._loop, self._settings = loop, settings
        self._layers: LastLayers | None = None
        self._center_QMHT: Float64 = np.zeros((0, 0, 0, 0))
        self._step_Q = np.full(loop.settings.models, settings.initial_step)

    def climb(self, rung: int) -> int:
        """Honest models; then the best candidate of one more generation."""
        loop = self._loop
        if rung == 0:
            updates = loop.fit(loop.data.rows, loop.settings.epochs, loop.data.weight_NT, fresh=True)
            loop.honest = loop.population.state()
            likelihood_Q, return_Q = self._tried()
            self._center_QMHT = np.zeros(self.layers.shape)
        else:
            updates, (likelihood_Q, return_Q) = 0, self._generation(rung)
        loop.note_rung(rung, {"search_log_likelihood": likelihood_Q, "search_return": return_Q})
        return updates

    def _generation(self, rung: int) -> tuple[Float64, Float64]:
        """Draw, try, choose and move on; the block then holds the best of each. What the search saw of them."""
        settings, shape = self._settings, self.layers.shape
        rng = generator(self._loop.seed, f"adversary/generation/{rung}")
        drawn = rng.standard_normal((shape[0], settings.candidates, *shape[1:])) / np.sqrt(shape[2])
        vector_QCMHT = self._center_QMHT[:, None] + self._step_Q[:, None, None, None, None] * drawn
        self._loop.population.load_state(self.layers.changed(vector_QCMHT))
        likelihood_QC, return_QC = (tried.reshape(shape[0], -1) for tried in self._tried())
        least_Q = self._loop.found["search_log_likelihood"][0] - settings.tolerance
        order_QC = np.array([ranked(*each) for each in zip(return_QC, likelihood_QC, least_Q, strict=True)])
        affordable_Q = (likelihood_QC >= least_Q[:, None]).mean(axis=1)
        self._step_Q = self._step_Q * np.where(affordable_Q > 0.5, 1.25, 0.8)
        chosen_QC = np.take_along_axis(vector_QCMHT, order_QC[:, :, None, None, None], axis=1)
        self._center_QMHT = chosen_QC[:, : settings.parents].mean(axis=1)
        self._loop.population.load_state(self.layers.changed(chosen_QC[:, :1]))
        best = np.arange(shape[0]), order_QC[:, 0]
        return likelihood_QC[best], return_QC[best]

    def _tried(self) -> tuple[Float64, Float64]:
        """Of the models that the block holds: likelihood of trained rows, and return on the search's own episodes."""
        loop = self._loop
        found = loop.population.evaluate(derived_seed(loop.seed, "adversary/search"), self._settings.search_episodes)
        return loop.population.score(loop.data.trained_on).log_likelihood_Q, found["outcome_return"].mean(axis=1)

    @property
    def layers(self) -> LastLayers:
        """The honest models' last layers."""
        if self._layers is None:
            loop = self._loop
            assert loop.honest is not None, "the first rung fits them"
            self._layers = LastLayers(loop.experiment.dynamics, loop.honest, loop.data.trained_on)
        return self._layers

    def measurements(self, rung: int) -> tuple[Measurement, ...]:
        """What the search believes: the return of what it chose, and how much of the loss was luck of its episodes."""
        found = {name: self._loop.found[name] for name in ("search_return", "search_log_likelihood", "outcome_return")}
        believed_R, real_R = found["search_return"].mean(axis=1), found["outcome_return"].mean(axis=(1, 2))
        luck = (believed_R[0] - believed_R[rung]) - (real_R[0] - real_R[rung])
        likelihood = found["search_log_likelihood"][rung].mean()
        return (
            one("search_return", believed_R[rung], Side.MODEL, "reward", Direction.LOWER),
            one("search_log_likelihood", likelihood, Side.MODEL, "nats", Direction.HIGHER),
            one("search_luck", luck, Side.GAP, "reward", Direction.LOWER),
            one("search_step", self._step_Q.mean(), Side.MODEL, "std"),
        )

    def state(self) -> State:
        """Where the search is, and how far it reaches."""
        return State({"center": self._center_QMHT.copy(), "step": self._step_Q.copy()}, {})

    def load_state(self, state: State) -> None:
        """Search on from there."""
        self._center_QMHT, self._step_Q = np.array(state.arrays["center"]), np.array(state.arrays["step"])


def one(name: str, value: float, side: Side, unit: str = "", direction: Direction = Direction.NEITHER) -> Measurement:
    """A measurement of a number of any kind."""
    return Measurement(name, float(value), side, unit, direction)
