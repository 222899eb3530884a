"""The runner of answers: what it draws, that it can be continued, and that it takes new weights. No Ray cluster."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from proxygap.base.language import Answers, token_log_probs
from proxygap.collect.answer_runner import AnswerRunner
from proxygap.collect.tasks.bandit_lm import BanditLm
from proxygap.collect.tasks.sequence_lm import SequenceLm
from proxygap.fit.language.settings import TableLanguageModel, TinyTransformerLanguageModel
from proxygap.optimize.language.module import LanguageModule
from proxygap.rllib import DEFAULT_MODULE_ID, RLModuleSpec, SACConfig

SEQUENCES: Any = SequenceLm(words=9, class_words=2, max_tokens=7, prompts=5, end_probability=0.2).for_seed(0)
BANDIT: Any = BanditLm(prompts=4, answers=8).for_seed(0)
TINY = TinyTransformerLanguageModel(layers=1, width=16, heads=2)


def runner(
    task: Any = SEQUENCES, *, model: Any = TINY, seed: int = 0, worker_index: int = 0, temperature: float = 1.0
) -> AnswerRunner:
    options = {
        "model": model,
        "spec": task.item_spec,
        "end_token": task.end_token,
        "prompts": len(task.prompt_tokens()),
        "seed": 3,
        "value_head": True,
    }
    space = gym.spaces.Discrete(1)
    module = RLModuleSpec(
        module_class=LanguageModule, observation_space=space, action_space=space, model_config=options
    )
    runner_options = {"task": task, "seed": seed, "threads": 1, "temperature": temperature}
    config = SACConfig().environment(observation_space=space, action_space=space, env_config=runner_options)
    threads = torch.get_num_threads()
    made = AnswerRunner(config=config.rl_module(rl_module_spec=module), worker_index=worker_index)
    torch.set_num_threads(threads)
    return made


def equal(one: Answers, other: Answers) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("prompt_B", "token_BT", "length_B", "log_prob_BT")
    )


PROMPTS = np.array([4, 0, 0, 2, 1, 3, 3])


def test_answers_are_complete_and_their_log_probabilities_are_the_models() -> None:
    subject = runner()
    answers = subject.sample(prompt_B=PROMPTS)
    assert answers.token_BT.shape == answers.log_prob_BT.shape == (7, 7)
    assert (answers.token_BT.dtype, answers.length_B.dtype) == (np.int64, np.int64)
    assert answers.log_prob_BT.dtype == np.float32
    assert np.array_equal(answers.prompt_B, PROMPTS)
    assert (answers.token_BT[~answers.mask_BT] == SEQUENCES.item_spec.pad_token).all()
    prompt, token = torch.from_numpy(SEQUENCES.prompt_tokens()[PROMPTS]), torch.from_numpy(answers.token_BT)
    with torch.no_grad():
        logits = subject.module.model.continuation(prompt, token).logits_BTV
    expected = token_log_probs(logits, token, torch.from_numpy(answers.length_B))
    np.testing.assert_allclose(answers.log_prob_BT, expected.numpy(), atol=1e-5)
    ends = answers.token_BT[np.arange(7), answers.length_B - 1] == SEQUENCES.end_token
    assert (ends | (answers.length_B == 7)).all()
    assert len(SEQUENCES.gold(answers)) == 7


def test_answers_of_a_table_follow_its_probabilities() -> None:
    subject = runner(BANDIT, model=TableLanguageModel())
    reference = np.exp(BANDIT.enumeration().reference_log_prob_PK)
    subject.module.model.set_log_probs(np.log(reference))
    answers = subject.sample(prompt_B=np.repeat([2], 40_000))
    counts = np.bincount(answers.token_BT[:, 0], minlength=8)
    expected = 40_000 * reference[2]
    assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-squared with 7 degrees of freedom: p = 1e-4


def test_a_low_temperature_draws_the_likeliest_and_reports_temperature_one() -> None:
    subject = runner(BANDIT, model=TableLanguageModel(), temperature=0.01)
    log_reference = BANDIT.enumeration().reference_log_prob_PK
    subject.module.model.set_log_probs(log_reference)
    answers = subject.sample(prompt_B=np.arange(4))
    assert np.array_equal(answers.token_BT[:, 0], log_reference.argmax(axis=1))
    np.testing.assert_allclose(answers.log_prob_BT[:, 0], log_reference.max(axis=1), rtol=1e-5)


def test_seeds_and_workers_draw_apart_and_each_repeatably() -> None:
    draws = [runner(seed=s, worker_index=w).sample(prompt_B=PROMPTS) for s, w in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert equal(draws[0], draws[1])
    assert not equal(draws[0], draws[2])
    assert not equal(draws[0], draws[3])


def test_state_continues_bit_for_bit() -> None:
    first, second = runner(), runner(seed=7)
    first.sample(prompt_B=PROMPTS)
    state = first.part_state()
    kept = state.arrays["draws"].copy()
    expected = first.sample(prompt_B=PROMPTS)
    assert np.array_equal(kept, state.arrays["draws"])
    second.load_part_state(state)
    assert equal(second.sample(prompt_B=PROMPTS), expected)


def test_new_weights_are_taken() -> None:
    first, second = runner(), runner()
    with torch.no_grad():
        for param in first.module.model.parameters():
            param.mul_(3.0)
    second.set_state({"rl_module": {DEFAULT_MODULE_ID: first.module.get_state()}})
    assert equal(first.sample(prompt_B=PROMPTS), second.sample(prompt_B=PROMPTS))
    assert not equal(runner().sample(prompt_B=PROMPTS), runner(seed=0).sample(prompt_B=PROMPTS[::-1].copy()))


def test_answers_of_runners_can_be_put_together_even_when_one_has_none() -> None:
    parts = [runner(worker_index=1).sample(prompt_B=PROMPTS), runner().sample(prompt_B=np.zeros(0, np.int64))]
    assert len(Answers.concatenate(parts)) == 7


@pytest.mark.parametrize("prompt", [-1, 5])
def test_a_prompt_that_the_task_does_not_have_is_refused(prompt: int) -> None:
    with pytest.raises(IndexError, match="5 prompts"):
        runner().sample(prompt_B=np.array([0, prompt]))
