"""The arms model: exact moments, one truth per seed, and the known regimes of over-optimization without training."""

import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from proxygap.base.errors import InvalidDataset, InvalidExperiment
from proxygap.base.language import Answers
from proxygap.collect.tasks.arms import Arms
from proxygap.collect.tasks.bandit_lm import BanditLm
from proxygap.collect.tasks.sequence_lm import SequenceLm
from proxygap.collect.tasks.text_lm import TextLm
from proxygap.testing.language_tasks import sample

ORDERS = (4, 16, 64, 256, 1024)


def answers_of(token_B, prompt_B=None, length_B=None):
    token_BT = np.asarray(token_B, np.int64)[:, None]
    rows = len(token_BT)
    prompt_B = np.zeros(rows, np.int64) if prompt_B is None else np.asarray(prompt_B, np.int64)
    length_B = np.ones(rows, np.int64) if length_B is None else np.asarray(length_B, np.int64)
    return Answers(prompt_B, token_BT, length_B, np.zeros((rows, 1), np.float32))


def test_gold_is_standardized_over_the_arms():
    task = Arms(arms=500, truth_seed=3)
    gold_K = task.gold(answers_of(np.arange(500)))
    assert abs(gold_K.mean()) < 1e-12
    assert abs(gold_K.std() - 1.0) < 1e-12
    assert np.array_equal(task.enumeration().gold_PK[0], gold_K)
    assert np.allclose(np.exp(task.enumeration().reference_log_prob_PK), 1 / 500, rtol=1e-12)


def test_two_arms_are_one_deviation_either_side():
    assert sorted(Arms(arms=2, truth_seed=9).gold(answers_of([0, 1]))) == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("task", [Arms(arms=50), BanditLm(prompts=2, answers=8), SequenceLm()])
def test_a_truth_follows_its_run_unless_it_is_fixed(task):
    def gold(task):
        return task.gold(sample(task))

    assert task.for_seed(4).truth_seed == 4
    assert np.array_equal(gold(task.for_seed(4)), gold(task.for_seed(4)))
    assert not np.array_equal(gold(task.for_seed(4)), gold(task.for_seed(5)))
    fixed = task.model_copy(update={"truth_seed": 7})
    assert fixed.for_seed(4) is fixed
    assert np.array_equal(gold(fixed), gold(task.for_seed(7)))
    rows = sample(task.for_seed(4))
    with pytest.raises(InvalidExperiment, match=r"task\.truth_seed = 'run'.*for_seed"):
        task.gold(rows)


def test_settings_are_strict():
    with pytest.raises(ValidationError):
        Arms(truth_seed="today")
    with pytest.raises(ValidationError):
        Arms(truth_seed=-1)
    with pytest.raises(ValidationError):
        Arms(arms=1)
    assert Arms.model_validate({"kind": "arms", "truth_seed": "run"}) == Arms()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (answers_of([3, 8]), r"answers\.token = 8: answers use tokens 0 to 7; row 1 .*1 rows"),
        (answers_of([3, -1, -1]), r"answers\.token = -1: .*row 1 .*2 rows"),
        (answers_of([3, 4], length_B=[1, 0]), r"answers\.length = 0: an answer has at least one token; row 1"),
        (answers_of([3], length_B=[2]), r"answers\.length = 2: an answer has at most 1 tokens"),
        (answers_of([3], prompt_B=[1]), r"answers\.prompt = 1: the task has prompts 0 to 0"),
        (answers_of([3, 4], length_B=[1]), r"answers\.shape = .*shape \(B,\)"),
        (Answers(*(np.zeros(1),) * 1, np.zeros((1, 1)), np.ones(1, np.int64), None), r"answers\.dtype = .*integers"),
    ],
)
def test_bad_answers_are_refused_by_name(bad, message):
    task = Arms(arms=8, truth_seed=0)
    for method in (task.gold, task.items, task.styles, task.text):
        with pytest.raises(InvalidDataset, match=message):
            method(bad)


def best_of_n(score_K, gold_K, order):
    """Exact: the arm of rank u (a share of all) is the best of n with probability u^n - (u - 1/N)^n."""
    rank_K = np.arange(1, len(score_K) + 1) / len(score_K)
    weight_K = rank_K**order - (rank_K - 1 / len(score_K)) ** order
    return float(weight_K @ gold_K[np.argsort(score_K)])


def proxies(gold_K, error, rng):
    scores = gold_K + (
        rng.standard_t(3, (5, len(gold_K))) / np.sqrt(3) if error == "t3" else rng.normal(size=(5, 8000))
    )
    return (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)


@pytest.mark.parametrize(
    ("error", "aggregate", "expected"),
    [
        ("t3", "single", (0.80, 1.25, 1.35, 1.14, 0.79)),
        ("t3", "min", (0.88, 1.57, 2.12, 2.58, 2.95)),
        ("gaussian", "single", (0.73, 1.26, 1.68, 2.02, 2.29)),
    ],
)
def test_best_of_n_has_the_known_regimes(error, aggregate, expected):
    """Numbers of an earlier, separate program, mean over 10 seeds; only a single proxy with heavy tails falls."""
    curves = []
    for seed in range(10):
        gold_K = Arms(truth_seed=seed).enumeration().gold_PK[0]
        score_MK = proxies(gold_K, error, np.random.default_rng(seed))
        picked = [score_MK.min(axis=0)] if aggregate == "min" else list(score_MK)
        curves.append(np.mean([[best_of_n(score_K, gold_K, n) for n in ORDERS] for score_K in picked], axis=0))
    np.testing.assert_allclose(np.mean(curves, axis=0), expected, atol=0.15)  # few arms decide the tail: 3 errors
    drop_S = np.max(curves, axis=1) - np.array(curves)[:, -1]
    if (error, aggregate) == ("t3", "single"):
        assert (drop_S > 0.3).all()
    else:
        assert (drop_S < 0.05).all()


def test_importing_the_settings_loads_no_torch_and_no_scorer():
    modules = "arms, bandit_lm, sequence_lm, text_lm"
    code = f"import sys; from proxygap.collect.tasks import {modules}; print([m for m in HEAVY if m in sys.modules])"
    heavy = "HEAVY = ('torch', 'ray', 'transformers', 'vaderSentiment', 'textstat', 'nltk', 'gymnasium');"
    run = subprocess.run([sys.executable, "-c", heavy + code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
    assert {cls.family for cls in (Arms, BanditLm, SequenceLm, TextLm)} == {"language"}
