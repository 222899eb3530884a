"""Draws against hand computation, and the refusals of the sampler."""

from __future__ import annotations

import math

import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Generation
from proxygap.fit.language.sampling import Draws, in_chunks, real_prompt


def draws(rows, tokens, end_token=None, temperature=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Draws(rows, tokens, end_token=end_token, generator=generator, temperature=temperature)


def test_a_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform_number():
    uniform_TB = torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(0))[..., 0]
    probability_V = torch.tensor([0.2, 0.0, 0.5, 0.3])
    sampler = draws(5, 2)
    for _ in range(2):
        sampler.next(probability_V.log().expand(5, 4))
    expected_BT = [[0 if u < 0.2 else 2 if u < 0.7 else 3 for u in row] for row in uniform_TB.T.tolist()]
    drawn = sampler.generation(pad_token=0)
    assert drawn.token_BT.tolist() == expected_BT
    torch.testing.assert_close(drawn.log_prob_BT, probability_V.log()[drawn.token_BT])


def test_impossible_tokens_are_never_drawn():
    logits_BV = torch.full((4000, 5), -math.inf)
    logits_BV[:, 3] = 0.0
    sampler = draws(4000, 1)
    assert bool((sampler.next(logits_BV) == 3).all())
    assert bool((sampler.generation(0).log_prob_BT == 0).all())


def test_a_low_temperature_takes_the_best_and_still_reports_the_model():
    logits_BV = torch.tensor([[1.0, 2.0, 0.0]]).expand(50, 3)
    sampler = draws(50, 1, temperature=1e-3)
    assert bool((sampler.next(logits_BV) == 1).all())
    best = 2.0 - math.log(math.exp(1) + math.exp(2) + 1)
    torch.testing.assert_close(sampler.generation(0).log_prob_BT, torch.full((50, 1), best))


def test_answers_end_at_the_end_token_and_are_blanked_after_it():
    sampler = draws(3, 4, end_token=1)
    script_TB = [[2, 1, 3], [1, 3, 3], [3, 3, 1]]
    for token_B in script_TB:
        assert not sampler.over
        logits_BV = torch.full((3, 4), -30.0)
        logits_BV[torch.arange(3), torch.tensor(token_B)] = 30.0
        sampler.next(logits_BV)
    assert sampler.over  # one token early: everybody has ended
    drawn = sampler.generation(pad_token=0)
    assert drawn.token_BT.tolist() == [[2, 1, 0, 0], [1, 0, 0, 0], [3, 3, 1, 0]]
    assert drawn.length_B.tolist() == [2, 1, 3]
    assert drawn.log_prob_BT.shape == (3, 4)


def test_nothing_is_drawn_from_nan():
    sampler = draws(2, 1)
    sampler.next(torch.tensor([[0.0, 0.0], [math.nan, 0.0]]))
    with pytest.raises(NonFiniteValue, match="no distribution"):
        sampler.generation(0)


def test_nan_after_the_end_of_an_answer_is_no_error():
    sampler = draws(1, 2, end_token=1)
    sampler.next(torch.tensor([[-math.inf, 0.0]]))
    sampler.next(torch.tensor([[math.nan, 0.0]]))
    assert sampler.generation(0).token_BT.tolist() == [[1, 0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_are_refused(temperature):
    with pytest.raises(InvalidExperiment, match="temperature"):
        draws(1, 1, temperature=temperature)


def test_no_tokens_are_refused():
    with pytest.raises(InvalidExperiment, match="max_tokens"):
        draws(1, 0)


def test_padding_is_what_comes_before_the_first_other_token():
    prompt_BL = torch.tensor([[0, 0, 5], [0, 4, 0], [3, 0, 0], [0, 0, 0]])
    expected = [[False, False, True], [False, True, True], [True, True, True], [False, False, True]]
    assert real_prompt(prompt_BL, 0).tolist() == expected
    assert real_prompt(prompt_BL[2:3], 0) is None
    assert real_prompt(torch.zeros(4, 1, dtype=torch.int64), 0) is None


def test_many_rows_are_drawn_in_chunks_and_come_back_in_order():
    def generate(prompt_BL):
        sizes.append(len(prompt_BL))
        return Generation(prompt_BL * 10, prompt_BL[:, 0], prompt_BL / 2)

    for rows, expected in ((7, [3, 3, 1]), (3, [3]), (0, [0])):
        sizes = []
        prompt_B1 = torch.arange(rows)[:, None]
        whole = in_chunks(generate, prompt_B1, rows_on_cpu=3)
        assert sizes == expected
        assert torch.equal(whole.token_BT, prompt_B1 * 10)
        assert torch.equal(whole.length_B, prompt_B1[:, 0])
        assert torch.equal(whole.log_prob_BT, prompt_B1 / 2)


def test_rows_that_have_ended_are_left_out_by_halves():
    sampler = draws(4, 3, end_token=1)

    def draw(*tokens):
        logits_AV = torch.full((len(tokens), 5), -30.0)
        logits_AV[torch.arange(len(tokens)), torch.tensor(tokens)] = 30.0
        sampler.next(logits_AV)
        return sampler.leave_out_ended()

    assert draw(2, 1, 3, 4) is None
    assert draw(2, 3, 1, 4).tolist() == [0, 3]
    assert draw(3, 1).tolist() == [0]
    drawn = sampler.generation(pad_token=0)
    assert drawn.token_BT.tolist() == [[2, 2, 3], [1, 0, 0], [3, 1, 0], [4, 4, 1]]
    assert drawn.length_B.tolist() == [3, 1, 2, 3]


def test_each_row_keeps_its_own_randomness_when_others_are_left_out():
    uniform_TB = torch.rand(2, 4, 1, generator=torch.Generator().manual_seed(0))[..., 0]
    sampler = draws(4, 2, end_token=1)
    logits_BV = torch.full((4, 4), -math.inf)
    logits_BV[torch.arange(4), torch.tensor([1, 1, 1, 2])] = 0.0
    sampler.next(logits_BV)
    assert sampler.leave_out_ended().tolist() == [3]
    sampler.next(torch.tensor([[0.5, 0.0, 0.5, 0.0]]).log())
    assert sampler.generation(0).token_BT[3].tolist() == [2, 0 if float(uniform_TB[1, 3]) < 0.5 else 2]
