"""Every language task keeps every clause of the seam."""

from dataclasses import replace

import numpy as np
import pytest

from proxygap.base.language import Enumeration
from proxygap.collect.tasks.arms import Arms
from proxygap.collect.tasks.bandit_lm import BanditLm
from proxygap.collect.tasks.sequence_lm import SequenceLm
from proxygap.collect.tasks.text_lm import TextLm
from proxygap.testing import language_tasks as suite

TASKS = [
    Arms(truth_seed=0),
    Arms(arms=2, truth_seed=5),
    BanditLm(truth_seed=0),
    BanditLm(prompts=50, answers=7, features=4, odd_share=0.0, skew=0.0, truth_seed=1),
    SequenceLm(truth_seed=0),
    SequenceLm(words=7, max_tokens=6, prompts=7, class_words=2, end_probability=0.2, truth_seed=3),
    TextLm(),
    TextLm(scorer="readability", words=400, prompts=10, prompt_words=3, max_tokens=12),
]


@pytest.mark.parametrize("clause", suite.CLAUSES, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.hash[:4]}")
def test_language_task_keeps_the_clause(task, clause):
    clause(task)


class Broken:
    """A true task, with one lie at a time."""

    def __init__(self, true, lie):
        self.true, self.lie = true, lie

    def __getattr__(self, name):
        if name.startswith("__") or name in ("true", "lie"):
            raise AttributeError(name)
        return self.lie.get(name, getattr(self.true, name))


BANDIT, SEQUENCE = BanditLm(truth_seed=0), SequenceLm(truth_seed=0, end_probability=0.2)
TRUTH = BANDIT.enumeration()
COLUMNS = SEQUENCE.items(suite.sample(SEQUENCE))


def late_end(rng, count):
    rows = SEQUENCE.demonstrations(rng, count)
    return replace(rows, length_B=np.minimum(rows.length_B + 1, SEQUENCE.max_tokens))


@pytest.mark.parametrize(
    ("clause", "true", "lie"),
    [
        (suite.sizes_agree, SEQUENCE, {"prompt_tokens": lambda: np.full((8, 1), 26)}),
        (suite.sizes_agree, SEQUENCE, {"end_token": 0}),
        (suite.sizes_agree, SEQUENCE, {"prompt_tokens": lambda: np.ones((8, 1), np.int64)}),
        (suite.sizes_agree, TextLm(), {"prompt_tokens": lambda: TextLm().prompt_tokens()[:, ::-1]}),
        (suite.demonstrations_are_answers, SEQUENCE, {"demonstrations": late_end}),
        (suite.demonstrations_are_answers, SEQUENCE, {"demonstrations": lambda rng, count: suite.sample(BANDIT, 3)}),
        (
            suite.demonstrations_follow_their_generator,
            SEQUENCE,
            {"demonstrations": lambda rng, count: SEQUENCE.demonstrations(np.random.default_rng(0), count)},
        ),
        (suite.gold_is_pure, SEQUENCE, {"gold": lambda answers: SEQUENCE.gold(answers) - len(answers)}),
        (suite.gold_is_pure, SEQUENCE, {"gold": lambda answers: answers.token_BT.sum(axis=1).astype(float)}),
        (suite.items_are_columns, SEQUENCE, {"items": lambda answers: COLUMNS}),
        (suite.styles_are_numbers, SEQUENCE, {"styles": lambda answers: {"length": answers.length_B}}),
        (suite.text_is_readable, SEQUENCE, {"text": lambda answers: [("a", "b")] * len(answers)}),
        (suite.bad_answers_are_refused, SEQUENCE, {"gold": lambda answers: np.zeros(len(answers))}),
        (
            suite.enumeration_is_the_truth,
            BANDIT,
            {"enumeration": lambda: Enumeration(TRUTH.reference_log_prob_PK, TRUTH.gold_PK + 0.1)},
        ),
        (
            suite.enumeration_is_the_truth,
            BANDIT,
            {"enumeration": lambda: Enumeration(TRUTH.reference_log_prob_PK, -TRUTH.gold_PK)},
        ),
    ],
)
def test_the_suite_catches_a_task_that_lies(clause, true, lie):
    with pytest.raises(AssertionError):
        clause(Broken(true, lie))
