"""Benchmarks of reward models: one good answer against one bad, and against many (RewardMATH's design).

A pair per prompt says little about what happens when a policy searches for the reward's favorites: a reward that errs
on one answer in ten is right in nine pairs of ten, and yet some error heads most rankings of ten. One-to-many items
ask that question directly (Kim et al. 2024, "Evaluating robustness of reward models for mathematical reasoning").

Shape legend: B answers, I items, K bad answers of an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side
from proxygap.base.records import Int64
from proxygap.probe.answers import AnswerSample


@dataclass(frozen=True, slots=True)
class RewardBenchmark:
    """Items as rows of a sample of answers: ``good_I`` has more gold than each of ``bad_IK``, same prompt.

    Args:
        good_I: row of the good answer.
        bad_IK: rows of the bad ones, drawn at random, so the first column is the pairwise benchmark's.
        skipped: items that could not be made because too few answers of their prompt are bad.
    """

    good_I: Int64
    bad_IK: Int64
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class RewardScores:
    """What a reward reached; ties are broken at random, in expectation.

    Args:
        pairwise: share of items whose good answer beats the first bad one.
        ranked_first: share of items whose good answer beats all bad ones.
        reciprocal_rank: mean of 1 / rank of the good answer.
        all_pairs: share of all I * K pairs won: the pairwise score without its sampling noise.
    """

    pairwise: float
    ranked_first: float
    reciprocal_rank: float
    all_pairs: float

    def measurements(self, prefix: str = "benchmark/") -> tuple[Measurement, ...]:
        """``objective/PREFIXpairwise``, ``ranked_first``, ``reciprocal_rank``, ``all_pairs``."""
        return tuple(
            Measurement(f"{prefix}{name}", getattr(self, name), Side.OBJECTIVE, "", Direction.HIGHER)
            for name in ("pairwise", "ranked_first", "reciprocal_rank", "all_pairs")
        )


def make_benchmark(
    sample: AnswerSample,
    rng: np.random.Generator,
    *,
    items: int = 500,
    bad: int = 9,
    good_share: float = 0.1,
    bad_share: float = 0.5,
) -> RewardBenchmark:
    """Draw items from the reference's answers, ranked by gold within each prompt.

    Answers are drawn by their weight, so likely answers make most items. Prompts take turns.

    Args:
        sample: the reference's answers, exact or sampled.
        rng: draws the answers.
        items: I, the items asked for.
        bad: K, the bad answers per item (9 in RewardMATH), all different.
        good_share: the good answer is among this share of the prompt's weight with the highest gold.
        bad_share: bad answers are among this share with the lowest gold.

    Raises:
        InvalidExperiment: no prompt has enough different answers.
    """
    pools = [_pools(sample, int(prompt), good_share, bad_share) for prompt in np.unique(sample.prompt_B)]
    usable = [(good_B, bad_B) for good_B, bad_B in pools if len(good_B) and len(bad_B) >= bad]
    if not usable:
        raise InvalidExperiment(
            f"no prompt has a good answer and {bad} bad ones",
            field="bad",
            value=bad,
            remedy="Ask for fewer bad answers, or sample more answers per prompt",
        )
    skipped = sum(1 for item in range(items) if len(pools[item % len(pools)][1]) < bad)
    good_I, bad_IK = [], []
    for item in range(items):
        good_B, bad_B = usable[item % len(usable)]
        good_I.append(rng.choice(good_B, p=_shares(sample, good_B)))
        bad_IK.append(rng.choice(bad_B, bad, replace=False, p=_shares(sample, bad_B)))
    return RewardBenchmark(np.array(good_I, dtype=np.int64), np.array(bad_IK, dtype=np.int64), skipped)


def benchmark_scores(score_B: Float64, benchmark: RewardBenchmark) -> RewardScores:
    """How a reward does on a benchmark.

    Args:
        score_B: the reward of every row of the sample that the benchmark was made from.
        benchmark: the items.
    """
    good_I1, bad_IK = score_B[benchmark.good_I][:, None], score_B[benchmark.bad_IK]
    won_IK = np.where(good_I1 > bad_IK, 1.0, np.where(good_I1 == bad_IK, 0.5, 0.0))
    above_I, ties_I = (bad_IK > good_I1).sum(axis=1), (bad_IK == good_I1).sum(axis=1)
    # among t ties the good answer takes each of t + 1 places with equal chance
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, bad_IK.shape[1] + 2))])
    reciprocal_I = (harmonic[above_I + ties_I + 1] - harmonic[above_I]) / (ties_I + 1)
    first_I = np.where(above_I == 0, 1.0 / (ties_I + 1), 0.0)
    return RewardScores(
        float(won_IK[:, 0].mean()), float(first_I.mean()), float(reciprocal_I.mean()), float(won_IK.mean())
    )


def consistency(score_I22: Float64) -> tuple[Measurement, ...]:
    """Contrast Instructions: two close prompts, each with the answer that is right for it and the other's.

    Args:
        score_I22: score of the answer that is right for prompt b, given prompt a, at [:, a, b].

    Returns:
        ``objective/consistency_response``, P(r(x, y) > r(x, y')), one prompt and two answers;
        ``objective/consistency_instruction``, P(r(x, y) > r(x', y)), one answer and two prompts (Shen et al. 2023,
        "The trickle-down impact of reward (in-)consistency on RLHF"). Ties count half, so a reward that is
        blind to prompts has one half in both.
    """
    right_I2 = np.diagonal(score_I22, axis1=1, axis2=2)
    other_answer_I2 = np.stack([score_I22[:, 0, 1], score_I22[:, 1, 0]], axis=1)
    other_prompt_I2 = other_answer_I2[:, ::-1]
    shares = [float((0.5 + 0.5 * np.sign(right_I2 - other)).mean()) for other in (other_answer_I2, other_prompt_I2)]
    return tuple(
        Measurement(f"consistency_{name}", share, Side.OBJECTIVE, "", Direction.HIGHER)
        for name, share in zip(("response", "instruction"), shares, strict=True)
    )


def _pools(sample: AnswerSample, prompt: int, good_share: float, bad_share: float) -> tuple[Int64, Int64]:
    """Rows of the prompt's good and bad answers; no bad one has as much gold as any good one."""
    rows_B = np.flatnonzero((sample.prompt_B == prompt) & (sample.weight_B > 0))
    rows_B = rows_B[np.argsort(sample.raw_gold_B[rows_B], kind="stable")]
    gold_B, weight_B = sample.raw_gold_B[rows_B], sample.weight_B[rows_B]
    reached_B = np.cumsum(weight_B) / weight_B.sum()
    top = int(np.searchsorted(reached_B, (1 - good_share) * (1 + 1e-12), "right"))
    good_from = gold_B[min(top, len(gold_B) - 1)]
    bad_to = gold_B[np.searchsorted(reached_B, bad_share * (1 - 1e-12), "left")]
    return rows_B[gold_B >= good_from], rows_B[(gold_B <= bad_to) & (gold_B < good_from)]


def _shares(sample: AnswerSample, rows_B: Int64) -> Float64:
    weight_B: Float64 = sample.weight_B[rows_B]
    shares_B: Float64 = weight_B / weight_B.sum()
    return shares_B
