"""Settings of the loops; importing them loads neither torch nor Ray.

Besides its fields, each class says what it goes with: the family of its tasks, its optimizers (the default first) and
the models that it can host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from proxygap.base.config import Settings

if TYPE_CHECKING:
    from proxygap.experiment import Experiment
    from proxygap.loops.loop import Loop
    from proxygap.loops.off_policy import OffPolicy

Family = Literal["control", "language"]


class SacLoop(Settings):
    """Model-free soft actor-critic on RLlib: the baseline in the same frame (Haarnoja et al. 2018)."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ("sac",)
    hosted: ClassVar[tuple[str, ...]] = ()
    kind: Literal["sac"] = "sac"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 50
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 1
    """Real steps per environment between two calls of the Learner."""
    updates_per_step: PositiveInt = 1
    """Gradient steps of the policy per real step."""

    def algorithm(self) -> type[OffPolicy]:
        """The RLlib Algorithm."""
        from proxygap.loops.sac import Sac

        return Sac

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.off_policy import LoopConfig

        loop: Loop = LoopConfig.for_run(self.algorithm(), experiment, seed).build_algo()
        return loop


class MbpoLoop(Settings):
    """Model-based policy optimization on RLlib's SAC (Janner et al. 2019, 1906.08253)."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ("sac",)
    hosted: ClassVar[tuple[str, ...]] = ("dynamics",)
    kind: Literal["mbpo"] = "mbpo"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 50
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 1
    """Real steps per environment between two calls of the Learner."""
    updates_per_step: PositiveInt = 20
    """Gradient steps of the policy per real step (G)."""
    refit_every: PositiveInt = 250
    """Real steps between two fits of the ensemble (F)."""
    real_share: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of real transitions in each policy batch."""

    def algorithm(self) -> type[OffPolicy]:
        """The RLlib Algorithm."""
        from proxygap.loops.mbpo import Mbpo

        return Mbpo

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.off_policy import LoopConfig

        loop: Loop = LoopConfig.for_run(self.algorithm(), experiment, seed).build_algo()
        return loop


class PetsLoop(Settings):
    """Planning in an ensemble that is refitted to what was lived (PETS; Chua et al. 2018, 1805.12114, algorithm 1).

    A plan per environment and real step is most of the cost, and an evaluation plans at every step of its episodes:
    ``probe.episodes`` times the episode's length, and ``probe.imagined_horizon`` steps more inside each elite member.
    """

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ()
    hosted: ClassVar[tuple[str, ...]] = ("dynamics",)
    kind: Literal["pets"] = "pets"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 50
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 1
    """Real steps per environment in one call of the environment runners."""
    refit_every: PositiveInt = 200
    """Real steps between two fits of the ensemble; the paper refits after every episode."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.pets import PetsConfig

        loop: Loop = PetsConfig.for_run(experiment, seed).build_algo()
        return loop


class PpoLoop(Settings):
    """Proximal policy optimization on RLlib on the task's own reward, or on its component rewards apart."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ("ppo",)
    hosted: ClassVar[tuple[str, ...]] = ()
    kind: Literal["ppo"] = "ppo"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 2048
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 2048
    """Real steps per environment between two calls of the Learner: the length of the rollouts."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.on_policy import PpoConfig
        from proxygap.loops.ppo import Ppo

        loop: Loop = PpoConfig.for_run(Ppo, experiment, seed).build_algo()
        return loop


class PreferenceControlLoop(Settings):
    """RLlib's PPO or SAC on a reward learned from preferences over segments (Christiano et al. 2017, 1706.03741)."""

    family: ClassVar[Family] = "control"
    optimizers: ClassVar[tuple[str, ...]] = ("ppo", "sac")
    hosted: ClassVar[tuple[str, ...]] = ("reward",)
    kind: Literal["preference_control"] = "preference_control"
    real_steps: PositiveInt
    """Budget of real steps; the run ends when it is spent, never after."""
    steps_per_iteration: PositiveInt = 2048
    """Real steps of one RLlib iteration: how often progress is shown and a request to stop is heard."""
    steps_per_sample: PositiveInt = 2048
    """Real steps per environment between two calls of the Learner: the length of PPO's rollouts; SAC wants 1."""
    updates_per_step: PositiveInt = 1
    """Gradient steps of the policy per real step, for SAC."""
    segment_length: PositiveInt = 25
    """Steps of the segments that are compared."""
    label_rounds: PositiveInt = 10
    """Times that labels are bought and the reward is refitted, evenly over the budget."""
    candidate_factor: PositiveInt = 10
    """Candidate pairs per label, of which those that the members disagree most about are asked; 1 asks at random."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.preference_control import start

        loop: Loop = start(experiment, seed)
        return loop


class LanguageRlLoop(Settings):
    """Token-level policy gradient on RLlib against a learned proxy reward; one answer is one real step."""

    family: ClassVar[Family] = "language"
    optimizers: ClassVar[tuple[str, ...]] = ("rloo", "grpo", "token_ppo", "reinforce")
    hosted: ClassVar[tuple[str, ...]] = ("reward", "reference")
    kind: Literal["language_rl"] = "language_rl"
    real_steps: PositiveInt
    """Budget of answers; the run ends when it is spent, never after."""
    kl_stop: PositiveFloat | None = None
    """Stop improving once the policy is this far from its reference, in nats; the run still spends its budget."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.language_rl import LanguageConfig

        loop: Loop = LanguageConfig.for_run(experiment, seed).build_algo()
        return loop


class BestOfNLoop(Settings):
    """Best of n answers by proxy, for n = 1, 2, 4, ...: an optimizer without a policy (Gao et al. 2023, 2210.10760)."""

    family: ClassVar[Family] = "language"
    optimizers: ClassVar[tuple[str, ...]] = ()
    hosted: ClassVar[tuple[str, ...]] = ("reward", "reference")
    kind: Literal["best_of_n"] = "best_of_n"
    real_steps: PositiveInt = 1024
    """Largest n; a real step is an answer that the choice is made from."""
    pool: PositiveInt = 4096
    """Answers drawn per prompt, from which every n is estimated without bias; not used where answers can be listed."""
    per_doubling: PositiveInt = 2
    """Values of n measured for each doubling."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.best_of_n import BestOfN

        return BestOfN(experiment, seed)


class TiltLoop(Settings):
    """The exact optimum of proxy minus KL, for tasks whose answers can be listed: RL without its noise."""

    family: ClassVar[Family] = "language"
    optimizers: ClassVar[tuple[str, ...]] = ()
    hosted: ClassVar[tuple[str, ...]] = ("reward", "reference")
    kind: Literal["tilt"] = "tilt"
    real_steps: PositiveInt = 24
    """Points on the way, even in the square root of the KL; a real step is one of them."""
    largest_kl: PositiveFloat = 6.0
    """KL from the reference at the last point, in nats."""

    def start(self, experiment: Experiment, seed: int) -> Loop:
        """The loop of one run."""
        from proxygap.loops.best_of_n import Tilt

        return Tilt(experiment, seed)
