"""How good the proxy is as a model of preferences: near home, on benchmarks, and where the policy has gone.

Shape legend: B answers, N pairs, M members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Answers, Float64, Preferences
from proxygap.base.records import Int64
from proxygap.base.seeds import generator
from proxygap.probe.benchmarks_of_rewards import benchmark_scores, make_benchmark
from proxygap.probe.evaluator import log_probs
from proxygap.probe.ranking import ranking_measurements
from proxygap.probe.reward_quality import accuracy, fitted_temperature, gold_order, preference_quality
from proxygap.probe.reward_quality import preference_probability as probability

if TYPE_CHECKING:
    from proxygap.base.measurement import Measurement
    from proxygap.base.protocols import LanguageModel
    from proxygap.probe.answers import AnswerSample

PAIRS = 2000
"""Pairs of answers behind each accuracy."""
RANKED = 500
"""Labeled pairs whose log-probabilities are followed."""


class ProxyQuality:
    """Measures one proxy. What does not change along a run is measured once.

    Args:
        seed: of the run.
        home: the reference's answers.
        scores_MB: the members' scores of them.
        judged_B: the judged reward of them.
    """

    def __init__(self, seed: int, home: AnswerSample, scores_MB: Float64, judged_B: Float64) -> None:
        self._seed = seed
        first_N, second_N = paired_rows(home, generator(seed, "probe/quality/home"))
        truth_N = gold_order(home.raw_gold_B[first_N], home.raw_gold_B[second_N])
        margin_MN = scores_MB[:, first_N] - scores_MB[:, second_N]
        half = len(truth_N) // 2
        # calibrated scores have lost the scale of Bradley-Terry: one half of the pairs gives it back to the other
        temperature = fitted_temperature(margin_MN[:, :half].mean(axis=0), truth_N[:half])
        scaled_MN = margin_MN[:, half:] / temperature if temperature > 0 else margin_MN[:, half:] * 1e6
        chance_N = probability(scaled_MN, np.zeros_like(scaled_MN))
        self.at_home = (*preference_quality(chance_N, truth_N[half:]), *self._benchmark(home, judged_B))

    def _benchmark(self, home: AnswerSample, judged_B: Float64) -> tuple[Measurement, ...]:
        try:
            items = make_benchmark(home, generator(self._seed, "probe/quality/benchmark"))
        except InvalidExperiment:  # too few answers per prompt to choose good and bad ones
            return ()
        return benchmark_scores(judged_B, items).measurements()

    def abroad(self, sample: AnswerSample, judged_B: Float64) -> float:
        """Share of pairs of the policy's own answers that the proxy orders as gold does."""
        first_N, second_N = paired_rows(sample, generator(self._seed, "probe/quality/abroad"))
        truth_N = gold_order(sample.raw_gold_B[first_N], sample.raw_gold_B[second_N])
        chance_N = gold_order(judged_B[first_N], judged_B[second_N])
        return accuracy(chance_N, truth_N)


def paired_rows(sample: AnswerSample, rng: np.random.Generator, count: int = PAIRS) -> tuple[Int64, Int64]:
    """Rows of pairs of answers to the same prompt, drawn by their weight; prompts take turns."""
    prompts = np.unique(sample.prompt_B)
    share = -(-count // len(prompts))
    firsts, seconds = [], []
    for prompt in prompts:
        rows_B = np.flatnonzero(sample.prompt_B == prompt)
        weight_B = sample.weight_B[rows_B]
        drawn = rng.choice(rows_B, size=2 * share, p=weight_B / weight_B.sum())
        firsts.append(drawn[:share])
        seconds.append(drawn[share:])
    return np.concatenate(firsts), np.concatenate(seconds)


class RankingFollower:
    """Ranking accuracy of a policy on the labeled pairs (Chen et al. 2024, 2405.19534).

    Args:
        preferences: the labels; ties are left out.
        reference: the policy that training starts from.
        prompt_PL: the task's prompt table.
        beta: coefficient of the KL penalty in the objective whose optimum is compared with.
        flip: share of labels known to be flipped, which bounds the proportion that prefers the chosen answer.
    """

    def __init__(
        self, preferences: Preferences, reference: LanguageModel, prompt_PL: Int64, beta: float, flip: float
    ) -> None:
        rows = np.flatnonzero(~preferences.tie_N)[:RANKED]
        self._sides = [_answers(items, rows) for items in (preferences.chosen, preferences.rejected)]
        self._ask: Callable[[LanguageModel], list[Float64]] = lambda model: [
            log_probs(model, prompt_PL, answers) for answers in self._sides
        ]
        self._reference = self._ask(reference)
        self._beta, self._proportion = beta, 1.0 - max(flip, 1e-3)

    def measure(self, policy: LanguageModel) -> tuple[Measurement, ...]:
        """Accuracy reached, that of the reference, and that of the exact optimum."""
        return ranking_measurements(
            *self._ask(policy), *self._reference, proportion_N=self._proportion, beta=self._beta
        )


def _answers(items: object, rows: Int64) -> Answers:
    columns = {name: np.asarray(column)[rows] for name, column in items.items()}  # type: ignore[attr-defined]
    blank = np.zeros(columns["token"].shape, np.float32)
    return Answers(columns["prompt"], columns["token"], columns["length"], blank)
