from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from proxygap.base.errors import InvalidExperiment
from proxygap.base.language import Answers
from proxygap.base.seeds import generator
from proxygap.probe.answers import AnswerSample
from proxygap.probe.benchmarks_of_rewards import RewardBenchmark, benchmark_scores, consistency, make_benchmark
from proxygap.probe.links import predictor_difference


def sample_of(gold_PK, weight_PK=None):
    """Answers of a reference over a table of golds."""
    prompts, answers = gold_PK.shape
    rows = gold_PK.size
    weight = np.full(rows, 1 / rows) if weight_PK is None else (weight_PK / weight_PK.sum()).ravel()
    record = Answers(
        np.repeat(np.arange(prompts), answers),
        np.tile(np.arange(answers), prompts)[:, None],
        np.ones(rows, dtype=np.int64),
        np.zeros((rows, 1), dtype=np.float32),
    )
    log_prob = np.log(weight * prompts)
    return AnswerSample(record, weight, gold_PK.ravel(), gold_PK.ravel(), log_prob, log_prob, 0.0, "exact")


def test_items_hold_one_good_answer_and_different_bad_ones_of_its_prompt():
    sample = sample_of(generator(0, "test").standard_normal((4, 100)))
    bench = make_benchmark(sample, generator(1, "test"), items=200, bad=9)
    gold, prompt = sample.gold_B, sample.prompt_B
    assert bench.bad_IK.shape == (200, 9)
    assert (prompt[bench.good_I][:, None] == prompt[bench.bad_IK]).all()
    assert all(len(set(row)) == 9 for row in bench.bad_IK)
    for one in range(4):
        own = gold[prompt == one]
        assert gold[bench.good_I[prompt[bench.good_I] == one]].min() >= np.quantile(own, 0.9)
        assert gold[bench.bad_IK[prompt[bench.good_I] == one]].max() <= np.quantile(own, 0.5)
    assert np.bincount(prompt[bench.good_I]).tolist() == [50] * 4


def test_likely_answers_make_most_items():
    gold = np.tile(np.arange(20.0), (1, 1))
    weight = np.ones((1, 20))
    weight[0, 19] = 9.0  # the best answer alone fills the top tenth
    weight[0, 3] = 20.0
    bench = make_benchmark(sample_of(gold, weight), generator(0, "test"), items=300, bad=1)
    assert set(bench.good_I) == {19}
    assert (bench.bad_IK == 3).mean() > 0.7


def test_scores_by_hand():
    score = np.array([5.0, 1.0, 2.0, 7.0, 5.0])
    bench = RewardBenchmark(np.array([0, 0, 1]), np.array([[1, 2], [3, 4], [0, 3]]))
    found = benchmark_scores(score, bench)
    assert found.pairwise == pytest.approx((1 + 0 + 0) / 3)
    assert found.all_pairs == pytest.approx((2 + 0.5 + 0) / 6)
    assert found.ranked_first == pytest.approx(1 / 3)
    # second item: one above, one tie: ranks 2 and 3 with equal chance
    assert found.reciprocal_rank == pytest.approx((1 + (1 / 2 + 1 / 3) / 2 + 1 / 3) / 3)


def test_gold_is_always_right_and_a_constant_scores_chance():
    sample = sample_of(generator(2, "test").standard_normal((5, 60)))
    bench = make_benchmark(sample, generator(3, "test"), items=100, bad=9)
    perfect = benchmark_scores(sample.gold_B, bench)
    assert [m.value for m in perfect.measurements()] == [1.0] * 4
    chance = benchmark_scores(np.zeros(len(sample)), bench)
    assert (chance.pairwise, chance.ranked_first) == (0.5, pytest.approx(0.1))
    assert chance.reciprocal_rank == pytest.approx(np.mean(1 / np.arange(1, 11)))


def test_one_to_many_is_the_probability_of_beating_the_largest_of_many_errors():
    # gold 2 against nine at 0, unit normal errors: pairwise Phi(sqrt 2), first place E[Phi(2 + z)^9]
    gold = np.zeros((4000, 10))
    gold[:, 0] = 2.0
    sample = sample_of(gold)
    bench = make_benchmark(sample, generator(4, "test"), items=4000, bad=9, good_share=0.05)
    score = sample.gold_B + generator(5, "test").standard_normal(len(sample))
    found = benchmark_scores(score, bench)
    z = np.linspace(-8, 8, 4001)
    first = np.trapezoid(norm.cdf(2 + z) ** 9 * norm.pdf(z), z)
    assert found.all_pairs == pytest.approx(norm.cdf(np.sqrt(2)), abs=0.02)
    assert found.ranked_first == pytest.approx(first, abs=0.03)


def test_one_to_many_predicts_the_gold_of_best_of_n_better_than_one_pair():
    rng = generator(6, "test")
    sample = sample_of(rng.standard_normal((20, 64)))
    bench = make_benchmark(sample, rng, items=200, bad=9)
    pairwise, first, induced = [], [], []
    for noise in np.tile(np.linspace(0.2, 3.0, 15), 2):
        score = sample.gold_B + noise * rng.standard_t(3, len(sample))
        found = benchmark_scores(score, bench)
        best = score.reshape(20, 64).argmax(axis=1) + 64 * np.arange(20)
        pairwise.append(found.pairwise)
        first.append(found.ranked_first)
        induced.append(sample.gold_B[best].mean())
    gain = predictor_difference(first, pairwise, induced, generator(7, "test"))
    assert gain.estimate > 0
    assert gain.samples == 30


def test_too_few_answers_are_refused():
    with pytest.raises(InvalidExperiment, match="9 bad ones"):
        make_benchmark(sample_of(np.arange(10.0)[None, :]), generator(0, "test"), items=5, bad=9)
    with pytest.raises(InvalidExperiment):
        make_benchmark(sample_of(np.ones((2, 50))), generator(0, "test"), items=5, bad=3)


def test_prompts_without_enough_bad_answers_are_left_out_and_counted():
    gold = np.vstack([np.arange(40.0), np.ones(40)])
    bench = make_benchmark(sample_of(gold), generator(0, "test"), items=10, bad=9)
    assert bench.skipped == 5
    assert (bench.good_I < 40).all()
    assert len(bench.good_I) == 10


def test_consistency_of_a_reader_of_prompts_and_of_a_blind_reward():
    rng = generator(8, "test")
    reader = np.zeros((500, 2, 2))
    reader[:, 0, 0] = reader[:, 1, 1] = 1.0
    blind = np.repeat(rng.standard_normal((500, 1, 2)), 2, axis=1)
    assert [m.value for m in consistency(reader)] == [1.0, 1.0]
    assert [m.value for m in consistency(blind)] == [0.5, 0.5]
    # right against the other answer under prompt 0 alone: half of each kind
    half = np.array([[[2.0, 1.0], [3.0, 0.0]]])
    assert [m.value for m in consistency(half)] == [0.5, 0.0]
