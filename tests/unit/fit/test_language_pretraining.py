"""Pretraining against the likelihood of a known chain, and a table against its enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Answers, Enumeration, ItemSpec
from proxygap.base.seeds import generator
from proxygap.fit.language.pretrain import pretrained, pretrained_with_report
from proxygap.fit.language.settings import (
    HuggingFaceLanguageModel,
    Pretraining,
    TableLanguageModel,
    TinyTransformerLanguageModel,
)
from proxygap.testing.language_models import MarkovTask

TASK = MarkovTask()
PLAN = Pretraining(steps=150, batch_size=64, learning_rate=1e-2, demonstrations=4000)


class TableTask(MarkovTask):
    """Three prompts, two answers each."""

    end_token = None
    item_spec = ItemSpec(vocabulary=3, prompt_length=1, max_tokens=1)

    def __init__(self):
        self.log_prob_PK = np.log([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])

    def prompt_tokens(self):
        return np.arange(3)[:, None]

    def demonstrations(self, rng, count):
        none = np.zeros((0, 1), np.int64)
        return Answers(none[:, 0], none, none[:, 0], np.zeros((0, 1), np.float32))

    def enumeration(self):
        return Enumeration(self.log_prob_PK, np.zeros((3, 2)))


@pytest.mark.parametrize(
    "settings",
    [
        TinyTransformerLanguageModel(layers=1, width=32, heads=2, pretraining=PLAN),
        HuggingFaceLanguageModel(layers=1, width=32, heads=2, intermediate=64, pretraining=PLAN),
    ],
    ids=lambda settings: settings.kind,
)
def test_the_fit_comes_close_to_the_best_possible_likelihood(settings):
    module, report = pretrained_with_report(settings, TASK, seed=3)
    assert not module.training
    assert (report.steps, report.training_rows, report.held_out_rows) == (150, 3600, 400)
    best = TASK.loss(TASK.demonstrations(generator(9, "fresh"), 20_000))
    assert report.held_out_loss_before == pytest.approx(math.log(8), abs=0.15)  # nearly uniform over 8 tokens
    assert best - 0.05 < report.held_out_loss < best + 0.05
    assert all(weight.grad is None for weight in module.parameters())


def test_what_it_says_is_distributed_as_what_it_read():
    settings = TinyTransformerLanguageModel(layers=1, width=32, heads=2, pretraining=PLAN)
    module = pretrained(settings, TASK, seed=3)
    prompt_B = np.arange(6000) % 6
    drawn = module.generate(
        torch.from_numpy(TASK.prompt_tokens()[prompt_B]), 8, generator=torch.Generator().manual_seed(0)
    )
    said = Answers(prompt_B, *(tensor.numpy() for tensor in (drawn.token_BT, drawn.length_B, drawn.log_prob_BT)))
    read = TASK.demonstrations(generator(5, "fresh"), 6000)
    assert said.length_B.mean() == pytest.approx(read.length_B.mean(), abs=0.25)
    gold, expected = TASK.gold(said), TASK.gold(read)
    assert gold.mean() == pytest.approx(expected.mean(), abs=0.15)


@pytest.mark.parametrize(
    "settings",
    [
        TinyTransformerLanguageModel(layers=1, width=8, heads=2, pretraining=Pretraining(steps=5, demonstrations=50)),
        HuggingFaceLanguageModel(
            layers=1, width=8, heads=2, intermediate=8, pretraining=Pretraining(steps=5, demonstrations=50)
        ),
    ],
    ids=lambda settings: settings.kind,
)
def test_equal_seeds_give_equal_weights_and_others_others(settings):
    before = torch.get_rng_state()
    one, two, other = (pretrained(settings, TASK, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())
    assert not all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_no_steps_leave_the_built_model():
    settings = TinyTransformerLanguageModel(width=8, heads=2, pretraining=Pretraining(steps=0))
    module, report = pretrained_with_report(settings, TASK, seed=1)
    built = settings.build(TASK.item_spec, end_token=1, prompts=6, seed=1)
    assert all(torch.equal(weight, built.state_dict()[name]) for name, weight in module.state_dict().items())
    assert report.steps == 0
    assert math.isnan(report.held_out_loss)


def test_a_table_is_the_enumeration_itself():
    task = TableTask()
    module = pretrained(TableLanguageModel(dtype="float64"), task, seed=0)
    view = module.continuation(torch.tensor([[2], [0]]), torch.zeros(2, 1, dtype=torch.int64))
    log_prob_BV = view.logits_BTV[:, 0].log_softmax(-1)
    np.testing.assert_allclose(log_prob_BV[:, :2].detach().numpy(), task.log_prob_PK[[2, 0]], rtol=0, atol=1e-15)
    assert bool((log_prob_BV[:, 2].exp() == 0).all())  # a token that is no answer
    entropy = -(log_prob_BV.exp() * log_prob_BV).sum()
    (gradient_PV,) = torch.autograd.grad(entropy, [module.logits_PV])
    assert bool(gradient_PV.isfinite().all())
    assert bool((gradient_PV[:, 2] == 0).all())


def test_a_value_head_on_a_wide_enough_code_represents_any_value():
    module = TableLanguageModel(hidden_width=16).build(TableTask.item_spec, end_token=None, prompts=3, seed=0)
    hidden_BTD = module.continuation(torch.arange(3)[:, None], torch.zeros(3, 1, dtype=torch.int64)).hidden_BTD
    assert hidden_BTD.shape == (3, 1, 16)
    assert int(torch.linalg.matrix_rank(hidden_BTD[:, 0])) == 3


def test_misfits_of_model_and_task_are_refused():
    with pytest.raises(InvalidExperiment, match="exactly one token"):
        pretrained(TableLanguageModel(), TASK, seed=0)
    with pytest.raises(InvalidExperiment, match="0 demonstrations"):
        pretrained(TinyTransformerLanguageModel(), TableTask(), seed=0)
    table = TableLanguageModel().build(TableTask.item_spec, end_token=None, prompts=2, seed=0)
    with pytest.raises(InvalidExperiment, match="does not fit a table of 2 prompts"):
        table.set_log_probs(TableTask().log_prob_PK)
    open_ended = TableTask()
    open_ended.enumeration = lambda: None
    with pytest.raises(InvalidExperiment, match="not enumerated"):
        pretrained(TableLanguageModel(), open_ended, seed=0)
    with pytest.raises(InvalidExperiment, match="one token"):
        table.generate(torch.zeros(1, 1, dtype=torch.int64), 2, generator=torch.Generator())


def test_a_fit_that_diverges_is_an_error():
    plan = Pretraining(steps=60, learning_rate=1e30, demonstrations=100)
    with pytest.raises(NonFiniteValue, match="diverged"):
        pretrained(TinyTransformerLanguageModel(width=8, heads=2, pretraining=plan), TASK, seed=0)
