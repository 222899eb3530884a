"""The small transformer against a slow second implementation: NumPy, float64, one row, no cache, no masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused, InvalidExperiment
from proxygap.base.language import ItemSpec
from proxygap.base.protocols import State
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.sampling import Draws
from proxygap.fit.language.settings import TinyTransformerLanguageModel
from proxygap.fit.language.states import load_module_state, module_state

SPEC = ItemSpec(vocabulary=9, pad_token=0, prompt_length=4, max_tokens=6)


def build(tied=True, seed=0, **sizes):
    settings = TinyTransformerLanguageModel(**({"layers": 2, "width": 12, "heads": 3, "tied": tied} | sizes))
    model = settings.build(SPEC, end_token=1, prompts=0, seed=seed)
    generator = torch_generator(seed, "larger")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def slow_hidden(model, tokens):
    """Final states (S, D) of one row of tokens without padding."""
    weights = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}
    heads = model.settings.heads

    def norm(x, weight):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight

    x = np.stack([weights["token_VD"][token] + weights["position_SD"][i] for i, token in enumerate(tokens)])
    for layer in range(model.settings.layers):
        block = {name.split(".")[-1]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        q, k, v = np.split(norm(x, block["attention_norm"]) @ block["qkv"].T, 3, axis=-1)
        attended = np.zeros_like(x)
        size = x.shape[1] // heads
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(tokens)):
                score = k[: i + 1, part] @ q[i, part] / np.sqrt(size)
                share = np.exp(score - score.max())
                attended[i, part] = share / share.sum() @ v[: i + 1, part]
        x = x + attended @ block["attention_out"].T
        inner = norm(x, block["feed_norm"]) @ block["feed_in"].T
        x = x + (inner / (1 + np.exp(-inner))) @ block["feed_out"].T
    return norm(x, weights["final_norm"])


@pytest.mark.parametrize("tied", [True, False])
def test_continuation_equals_the_slow_implementation(tied):
    model = build(tied)
    prompts = [[5], [3, 4], [2, 7, 8], [6, 6, 2, 3], [4, 0, 5]]  # the last holds the padding token inside
    prompt_BL = torch.tensor([[0] * (4 - len(prompt)) + prompt for prompt in prompts])
    token_BT = torch.randint(2, 9, (5, 6), generator=torch.Generator().manual_seed(0))
    view = model.continuation(prompt_BL, token_BT)
    head_VD = (model.token_VD if tied else model.head_VD).detach().double().numpy()
    for row, prompt in enumerate(prompts):
        hidden_SD = slow_hidden(model, prompt + token_BT[row, :-1].tolist())[len(prompt) - 1 :]
        np.testing.assert_allclose(view.hidden_BTD[row].detach().numpy(), hidden_SD, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(view.logits_BTV[row].detach().numpy(), hidden_SD @ head_VD.T, rtol=2e-5, atol=2e-5)


def test_greedy_generation_equals_the_slow_implementation():
    model = build(seed=2)
    prompts = [[5], [3, 4], [2, 7, 8], [6, 6, 2, 3]]
    prompt_BL = torch.tensor([[0] * (4 - len(prompt)) + prompt for prompt in prompts])
    drawn = model.generate(prompt_BL, 6, generator=torch.Generator().manual_seed(0), temperature=1e-4)
    head_VD = model.token_VD.detach().double().numpy()
    for row, prompt in enumerate(prompts):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 6 and (len(tokens) == len(prompt) or tokens[-1] != 1):
            tokens.append(int((head_VD @ slow_hidden(model, tokens)[-1]).argmax()))
        answer = tokens[len(prompt) :]
        assert drawn.token_BT[row].tolist() == answer + [0] * (6 - len(answer))


def test_a_long_generation_crosses_the_strides_of_the_cache():
    spec = ItemSpec(vocabulary=9, pad_token=0, prompt_length=4, max_tokens=90)
    model = TinyTransformerLanguageModel(width=12, heads=2).build(spec, end_token=None, prompts=0, seed=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8.0)
    prompt_BL = torch.tensor([[0, 0, 2, 3], [4, 5, 6, 7]])
    drawn = model.generate(prompt_BL, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_prob_BTV = model.continuation(prompt_BL, drawn.token_BT).logits_BTV.log_softmax(-1)
    expected_BT = log_prob_BTV.gather(-1, drawn.token_BT[..., None])[..., 0]
    assert float(expected_BT.std()) > 0.3  # far from uniform: the comparison says something
    torch.testing.assert_close(drawn.log_prob_BT, expected_BT, rtol=1e-4, atol=1e-4)


def test_answers_do_not_depend_on_leaving_out_rows_that_have_ended(monkeypatch):
    model = build(seed=2)
    prompt_BL = torch.tensor([[0, 0, 2, 3], [4, 5, 6, 7]]).repeat(20, 1)
    model.end_token = None
    fixed = model.generate(prompt_BL, 6, generator=torch.Generator().manual_seed(0))
    model.end_token = int(fixed.token_BT[fixed.token_BT > 0].bincount().argmax())  # the one that comes most often
    left_out = model.generate(prompt_BL, 6, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Draws, "leave_out_ended", lambda self: None)
    whole = model.generate(prompt_BL, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(left_out.token_BT, whole.token_BT)
    assert 20 < int((whole.length_B < 6).sum()) < 40  # half were left out, some went on
    torch.testing.assert_close(left_out.log_prob_BT, whole.log_prob_BT, rtol=1e-5, atol=1e-5)


def test_sequences_beyond_the_positions_are_refused():
    model = build()
    with pytest.raises(InvalidExperiment, match="at most 9 tokens"):
        model.generate(torch.full((1, 4), 2), 7, generator=torch.Generator())
    with pytest.raises(InvalidExperiment, match="at most 9 tokens"):
        model.continuation(torch.full((1, 5), 2), torch.full((1, 6), 2))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width = 10 is not a multiple of heads = 4"):
        TinyTransformerLanguageModel(width=10)


def test_seeds_differ_and_no_global_generator_is_used():
    before = torch.get_rng_state()
    one, two = build(seed=0), build(seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.token_VD, two.token_VD)


def test_weights_travel_through_a_state_bit_for_bit():
    one, two = build(seed=0), build(seed=1)
    state = module_state(one)
    kept = {name: array.copy() for name, array in state.arrays.items()}
    load_module_state(two, state)
    assert all(torch.equal(weight, two.state_dict()[name]) for name, weight in one.state_dict().items())
    with torch.no_grad():
        two.token_VD.zero_()
        one.token_VD.zero_()
    assert all(np.array_equal(array, state.arrays[name]) for name, array in kept.items())


@pytest.mark.parametrize("change", ["missing", "unexpected", "reshaped"])
def test_weights_of_another_model_are_refused(change):
    model = build()
    arrays = dict(module_state(model).arrays)
    if change == "missing":
        del arrays["final_norm"]
    elif change == "unexpected":
        arrays["extra"] = np.zeros(1)
    else:
        arrays["final_norm"] = arrays["final_norm"][:-1]
    before = model.final_norm.detach().clone()
    with pytest.raises(CheckpointRefused, match="extra" if change == "unexpected" else "final_norm"):
        load_module_state(model, State(arrays, {}))
    assert torch.equal(before, model.final_norm)
