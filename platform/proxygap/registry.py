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
        "task",
        "arms",
        "proxygap.collect.tasks.arms:Arms",
        "One prompt, many arms, proxies that are gold plus error: over-optimization without training, exact.",
        "Gao et al. 2023, 2210.10760",
    ),
    Part(
        "task",
        "bandit_lm",
        "proxygap.collect.tasks.bandit_lm:BanditLm",
        "Prompts whose answers can be listed: KL, gold, best-of-n and the optimum are exact.",
    ),
    Part(
        "task",
        "sequence_lm",
        "proxygap.collect.tasks.sequence_lm:SequenceLm",
        "Short sequences over a small vocabulary, with a programmatic gold reward.",
    ),
    Part(
        "task",
        "text_lm",
        "proxygap.collect.tasks.text_lm:TextLm",
        "English words, with a real scorer as gold: lexicon sentiment or readability.",
    ),
    Part(
        "task",
        "mo_gymnasium",
        "proxygap.collect.tasks.mo_gymnasium_task:MoGymnasiumTask",
        "Any MO-Gymnasium task by its id: several rewards apart, discrete actions or real ones.",
        "Felten et al. 2023, NeurIPS Datasets and Benchmarks",
    ),
    Part(
        "task",
        "multi_bandit_lm",
        "proxygap.collect.tasks.multi_bandit_lm:MultiBanditLm",
        "Listed answers that pay several rewards, with a known front: convex, straight or concave.",
    ),
    Part(
        "task",
        "multi_sequence_lm",
        "proxygap.collect.tasks.multi_sequence_lm:MultiSequenceLm",
        "Short sequences that pay several conflicting rewards, with a front by dynamic programming.",
    ),
    Part(
        "task",
        "composite_bandit_lm",
        "proxygap.collect.tasks.composite_bandit_lm:CompositeBanditLm",
        "Component rewards that gold follows up to a point and not beyond, correlated as asked.",
        "Moskovitz et al. 2024, 2310.04373",
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
        "Mean squared error of the change of state, normalized or in raw units.",
    ),
    Part(
        "dynamics loss",
        "multi_step",
        "proxygap.fit.dynamics.losses:MultiStep",
        "Error of open-loop predictions of several steps.",
        "Abbeel et al. 2005, NeurIPS",
    ),
    Part(
        "dynamics loss",
        "expert_distance",
        "proxygap.fit.dynamics.weights:ExpertDistance",
        "Likelihood weighted by nearness to an expert's transitions.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "dynamics loss",
        "value_gradient",
        "proxygap.fit.dynamics.weights:ValueGradient",
        "Squared error weighted by the squared gradient of the value (VaGraM).",
        "Voelcker et al. 2022, 2204.01464",
    ),
    Part(
        "dynamics loss",
        "generalized_gaussian",
        "proxygap.fit.dynamics.generalized_gaussian:GeneralizedGaussian",
        "Exact likelihood of errors whose tails are learned.",
        "Kim et al. 2024, 2408.02295",
    ),
    Part(
        "uncertainty",
        "disagreement",
        "proxygap.fit.uncertainty.settings:DisagreementSettings",
        "Variance of the members' mean predictions.",
        "Lakshminarayanan et al. 2017, 1612.01474",
    ),
    Part(
        "uncertainty",
        "deup",
        "proxygap.fit.uncertainty.settings:DeupSettings",
        "A predictor of the model's error on transitions it was not trained on, less the noise.",
        "Lahlou et al. 2023, 2102.08501",
    ),
    Part(
        "planner",
        "cem",
        "proxygap.imagine.planners.settings:CemPlanner",
        "Cross-entropy method over action sequences.",
        "Chua et al. 2018, 1805.12114",
    ),
    Part(
        "planner",
        "icem",
        "proxygap.imagine.planners.settings:IcemPlanner",
        "Cross-entropy method with colored noise, kept elites and shrinking rounds.",
        "Pinneri et al. 2020, 2008.06389",
    ),
    Part(
        "planner",
        "mppi",
        "proxygap.imagine.planners.settings:MppiPlanner",
        "Candidates averaged by their exponentiated return.",
        "Williams et al. 2017; Nagabandi et al. 2019, 1909.11652",
    ),
    Part(
        "language model",
        "table",
        "proxygap.fit.language.settings:TableLanguageModel",
        "A logit per prompt and answer, for answers of one token.",
    ),
    Part(
        "language model",
        "tiny_transformer",
        "proxygap.fit.language.settings:TinyTransformerLanguageModel",
        "Our own causal transformer, sized for a processor core.",
    ),
    Part(
        "language model",
        "hugging_face",
        "proxygap.fit.language.settings:HuggingFaceLanguageModel",
        "A causal language model of transformers: a local directory with safetensors, or a fresh Llama.",
    ),
    Part(
        "reward model",
        "mlp_reward",
        "proxygap.fit.reward.settings:MlpReward",
        "MLP on the features of each step, summed over a segment; members vectorized.",
        "Christiano et al. 2017, 1706.03741",
    ),
    Part(
        "reward model",
        "transformer_reward",
        "proxygap.fit.reward.settings:TransformerReward",
        "Causal transformer with a scalar head on the answer's last token.",
        "Coste et al. 2024, 2310.02743",
    ),
    Part(
        "reward model",
        "correlated_proxies",
        "proxygap.fit.reward.settings:CorrelatedProxies",
        "Gold plus error of a known kind, shared between members as far as asked: no training.",
    ),
    Part(
        "reward model",
        "gold",
        "proxygap.fit.reward.settings:Gold",
        "What is wanted, as the reward: the control that no over-optimization can touch.",
    ),
    Part(
        "reward loss",
        "bradley_terry",
        "proxygap.fit.reward.losses:BradleyTerry",
        "Log-likelihood of the preference; flips may be known.",
        "Bradley and Terry 1952; Christiano et al. 2017, 1706.03741",
    ),
    Part(
        "reward loss",
        "margin",
        "proxygap.fit.reward.losses:Margin",
        "Bradley-Terry with a margin that grows with the strength of the preference.",
        "Touvron et al. 2023, 2307.09288",
    ),
    Part(
        "reward loss",
        "scaled_bradley_terry",
        "proxygap.fit.reward.losses:ScaledBradleyTerry",
        "Bradley-Terry weighted by the strength of the preference.",
        "Wang et al. 2024, 2410.01257",
    ),
    Part(
        "reward loss",
        "regression",
        "proxygap.fit.reward.losses:Regression",
        "Squared error to ratings of single items.",
        "Wang et al. 2024, 2410.01257",
    ),
    Part(
        "reward loss",
        "regression_then_scaled",
        "proxygap.fit.reward.losses:RegressionThenScaled",
        "Regression to ratings first, then scaled Bradley-Terry from there.",
        "Wang et al. 2024, 2410.01257",
    ),
    Part(
        "aggregate",
        "single",
        "proxygap.judge.aggregates:Single",
        "One member alone.",
    ),
    Part(
        "aggregate",
        "mean",
        "proxygap.judge.aggregates:Mean",
        "The members' mean.",
    ),
    Part(
        "aggregate",
        "median",
        "proxygap.judge.aggregates:Median",
        "The members' median.",
    ),
    Part(
        "aggregate",
        "worst_case",
        "proxygap.judge.aggregates:WorstCase",
        "The lowest member (WCO).",
        "Coste et al. 2024, 2310.02743",
    ),
    Part(
        "aggregate",
        "uncertainty_weighted",
        "proxygap.judge.aggregates:UncertaintyWeighted",
        "Mean minus a penalty times the members' variance (UWO).",
        "Coste et al. 2024, 2310.02743",
    ),
    Part(
        "aggregate",
        "lower_confidence_bound",
        "proxygap.judge.aggregates:LowerConfidenceBound",
        "Mean minus some standard deviations.",
    ),
    Part(
        "aggregate",
        "quantile",
        "proxygap.judge.aggregates:Quantile",
        "A quantile of the members.",
    ),
    Part(
        "aggregate",
        "kl_robust",
        "proxygap.judge.aggregates:KlRobust",
        "The mean under the worst reweighting of members within a KL ball.",
    ),
    Part(
        "transform",
        "log_sigmoid_centered",
        "proxygap.judge.transforms:LogSigmoidCentered",
        "Log-sigmoid of the score above a quantile of the reference's.",
        "Wang et al. 2024, 2402.00742",
    ),
    Part(
        "transform",
        "par",
        "proxygap.judge.transforms:PreferenceAsReward",
        "Mean probability of beating reference answers.",
        "Fu et al. 2025, 2502.18770",
    ),
    Part(
        "transform",
        "clip",
        "proxygap.judge.transforms:Clip",
        "Cut off beyond two bounds.",
    ),
    Part(
        "transform",
        "whiten",
        "proxygap.judge.transforms:Whiten",
        "Scale by the standard deviation of all rewards so far.",
    ),
    Part(
        "transform",
        "ppo_c",
        "proxygap.judge.transforms:ConfidenceCalibrated",
        "Reward calibrated by the confidence that an answer states.",
        "Leng et al. 2024, 2410.09724",
    ),
    Part(
        "combination",
        "conjunction",
        "proxygap.judge.combine:Conjunction",
        "Log-probability that all rewards are good, row by row.",
        "Wang et al. 2024, 2402.00742",
    ),
    Part(
        "combination",
        "chebyshev",
        "proxygap.judge.combine:WorstShortfall",
        "Shortfall of the worst reward from an ideal, row by row.",
        "Steuer and Choo 1983",
    ),
    Part(
        "weighting",
        "fixed",
        "proxygap.judge.weighting.fixed:Fixed",
        "The same weights throughout.",
    ),
    Part(
        "weighting",
        "random_schedule",
        "proxygap.judge.weighting.random_schedule:RandomSchedule",
        "Weights that wander at random: the control of every dynamic scheme.",
    ),
    Part(
        "weighting",
        "chebyshev",
        "proxygap.judge.weighting.chebyshev:Chebyshev",
        "More weight to what falls shortest of an ideal point; reaches concave fronts.",
        "Lin et al. 2024, 2402.19078",
    ),
    Part(
        "weighting",
        "lagrangian",
        "proxygap.judge.weighting.lagrangian:Lagrangian",
        "Multipliers that hold each reward at its proxy point, with a search for the points.",
        "Moskovitz et al. 2024, 2310.04373",
    ),
    Part(
        "weighting",
        "hypervolume_guided",
        "proxygap.judge.weighting.hypervolume_guided:HypervolumeGuided",
        "Fixed weights times what the newest vector adds to the front.",
        "Lu et al. 2025, 2509.11452",
    ),
    Part(
        "weighting",
        "gradient_influence",
        "proxygap.judge.weighting.gradient_influence:GradientInfluence",
        "More weight to rewards whose gradient agrees with the sum of all.",
        "Lu et al. 2025, 2509.11452",
    ),
    Part(
        "weighting",
        "pama",
        "proxygap.judge.weighting.pama:Pama",
        "Closed form of the min-norm advantage, row by row: the least clipped one.",
        "He and Maghsudi 2025, 2508.07768",
    ),
    Part(
        "weighting",
        "mgda",
        "proxygap.judge.weighting.mgda:Mgda",
        "The shortest vector in the hull of the gradients.",
        "Desideri 2012; Sener and Koltun 2018, 1810.04650",
    ),
    Part(
        "weighting",
        "jacobian",
        "proxygap.judge.weighting.jacobian:Jacobian",
        "UPGrad, CAGrad, PCGrad and others of TorchJD, from the gradients' inner products.",
        "Quinton and Rey 2024, 2406.16232",
    ),
    Part(
        "weighting",
        "mixing_law",
        "proxygap.judge.weighting.mixing_law:MixingLaw",
        "Weights from an online estimate of what each moves.",
        "Chen et al. 2024, 2411.05735",
    ),
    Part(
        "optimizer",
        "sac",
        "proxygap.optimize.settings:SacSettings",
        "Soft actor-critic with the field's networks, several lean updates per Learner call.",
        "Haarnoja et al. 2018, 1812.05905",
    ),
    Part(
        "optimizer",
        "ppo",
        "proxygap.optimize.ppo.settings:PpoSettings",
        "Proximal policy optimization for continuous actions, all epochs of a rollout in one Learner call.",
        "Schulman et al. 2017, 1707.06347",
    ),
    Part(
        "optimizer",
        "rloo",
        "proxygap.optimize.language.settings:Rloo",
        "REINFORCE with the other answers to the same prompt as baseline.",
        "Ahmadian et al. 2024, 2402.14740",
    ),
    Part(
        "optimizer",
        "grpo",
        "proxygap.optimize.language.settings:Grpo",
        "Group-relative policy optimization; Dr.GRPO by its options.",
        "Shao et al. 2024, 2402.03300",
    ),
    Part(
        "optimizer",
        "token_ppo",
        "proxygap.optimize.language.settings:TokenPpo",
        "PPO over tokens with a value head.",
        "Ziegler et al. 2019, 1909.08593",
    ),
    Part(
        "optimizer",
        "reinforce",
        "proxygap.optimize.language.settings:Reinforce",
        "REINFORCE++: rewards to go, normalized over the batch.",
        "Hu 2025, 2501.03262",
    ),
    Part(
        "critic loss",
        "squared",
        "proxygap.optimize.td_error:SquaredTdError",
        "Half the mean squared temporal-difference error.",
        "Haarnoja et al. 2018, 1812.05905",
    ),
    Part(
        "critic loss",
        "generalized_gaussian",
        "proxygap.optimize.td_error:GeneralizedGaussianTdError",
        "Likelihood of errors whose shape is learned; noisy and disputed transitions weigh less.",
        "Kim et al. 2024, 2408.02295",
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
    Part(
        "loop",
        "pets",
        "proxygap.loops.settings:PetsLoop",
        "Planning in an ensemble of dynamics models, refitted as real steps come in.",
        "Chua et al. 2018, 1805.12114",
    ),
    Part(
        "loop",
        "ppo",
        "proxygap.loops.settings:PpoLoop",
        "Model-free PPO on what the task pays, one reward or several.",
        "Schulman et al. 2017, 1707.06347",
    ),
    Part(
        "loop",
        "preference_control",
        "proxygap.loops.settings:PreferenceControlLoop",
        "PPO or SAC on a reward learned from preferences over segments, labels bought in rounds.",
        "Christiano et al. 2017, 1706.03741",
    ),
    Part(
        "loop",
        "language_rl",
        "proxygap.loops.settings:LanguageRlLoop",
        "Policy gradient over tokens against a proxy reward, with a KL to the reference.",
        "Ziegler et al. 2019, 1909.08593",
    ),
    Part(
        "loop",
        "best_of_n",
        "proxygap.loops.settings:BestOfNLoop",
        "Best of n answers by proxy, for n = 1, 2, 4, ...: an optimizer without a policy.",
        "Gao et al. 2023, 2210.10760",
    ),
    Part(
        "loop",
        "tilt",
        "proxygap.loops.settings:TiltLoop",
        "The exact optimum of proxy minus KL, where answers can be listed.",
        "Korbak et al. 2022, 2205.11275",
    ),
    Part(
        "loop",
        "model_population",
        "proxygap.loops.model_settings:ModelPopulationLoop",
        "Many models of one task, each fitted and planned with: one point per model.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "loop",
        "adversarial_model",
        "proxygap.loops.model_settings:AdversarialModelLoop",
        "Models that keep their likelihood and lose their return, by fine-tuning or evolution.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "dataset",
        "random",
        "proxygap.loops.data_settings:RandomData",
        "Episodes of uniform random actions.",
    ),
    Part(
        "dataset",
        "on_policy",
        "proxygap.loops.data_settings:OnPolicyData",
        "What a teacher lived through while it learned.",
    ),
    Part(
        "dataset",
        "expert",
        "proxygap.loops.data_settings:ExpertData",
        "Episodes of a trained policy, or of a planner on the task's own law.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "dataset",
        "grid",
        "proxygap.loops.data_settings:GridData",
        "A regular grid over states and actions, sent one step ahead by the task's own law.",
        "Lambert et al. 2020, 2002.04523",
    ),
    Part(
        "dataset",
        "file",
        "proxygap.loops.data_settings:FileData",
        "Episodes from a parquet file, by path or URI.",
    ),
    Part(
        "search",
        "random",
        "proxygap.sweep.settings:RandomSearch",
        "Settings drawn independently.",
    ),
    Part(
        "search",
        "grid",
        "proxygap.sweep.settings:GridSearch",
        "Every combination once.",
    ),
    Part(
        "search",
        "tpe",
        "proxygap.sweep.settings:TpeSearch",
        "Tree-structured Parzen estimator, one goal or several.",
        "Watanabe 2023, 2304.11127",
    ),
    Part(
        "search",
        "gp",
        "proxygap.sweep.settings:GpSearch",
        "Gaussian process that fits the noise, with log expected improvement.",
        "Frazier 2018, 1807.02811",
    ),
    Part(
        "search",
        "nsga2",
        "proxygap.sweep.settings:Nsga2Search",
        "Evolution toward the front of several goals.",
        "Deb et al. 2002",
    ),
    Part(
        "scheduler",
        "none",
        "proxygap.sweep.settings:NoScheduler",
        "Every trial runs to its end.",
    ),
    Part(
        "scheduler",
        "asha",
        "proxygap.sweep.settings:Asha",
        "Asynchronous successive halving.",
        "Li et al. 2020, 1810.05934",
    ),
    Part(
        "scheduler",
        "median_stopping",
        "proxygap.sweep.settings:MedianStopping",
        "Stops what is below the median of the others.",
        "Golovin et al. 2017",
    ),
    Part(
        "scheduler",
        "pbt",
        "proxygap.sweep.settings:PopulationBased",
        "Poor trials continue from good ones with changed values: weights as schedules.",
        "Jaderberg et al. 2017, 1711.09846",
    ),
)


def parts(seam: str | None = None) -> tuple[Part, ...]:
    """All parts (of one seam), ours first, then those of other packages."""
    return tuple(part for part in (*PARTS, *_foreign()) if seam in (None, part.seam))


@cache
def _foreign() -> tuple[Part, ...]:
    """Parts of other packages; the files of all that is installed are read for it once in a process."""
    installed, seams = entry_points(), dict.fromkeys(part.seam for part in PARTS)
    return tuple(
        Part(name, point.name, point.value, _first_line(point.load()), f"from {point.dist.name if point.dist else '?'}")
        for name in seams
        for point in installed.select(group=f"proxygap.{name.replace(' ', '_')}")
    )


def union(seam: str) -> Any:
    """The type of a field that holds one part of a seam, chosen by its ``kind``."""
    kinds = [part.settings() for part in parts(seam)]
    if len(kinds) == 1:
        return kinds[0]
    return Annotated[reduce(operator.or_, kinds), Field(discriminator="kind")]


def _first_line(part: type[Settings]) -> str:
    return (part.__doc__ or "").strip().partition("\n")[0]
