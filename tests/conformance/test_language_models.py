"""Every language model, against the clauses of `proxygap.testing.language_models`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proxygap.base.language import ItemSpec
from proxygap.base.seeds import torch_generator
from proxygap.fit.language.settings import (
    HuggingFaceLanguageModel,
    TableLanguageModel,
    TinyTransformerLanguageModel,
)
from proxygap.testing.language_models import (
    MarkovTask,
    check_generation,
    check_language_model,
    check_padding_is_not_read,
)

TASK = MarkovTask()


def sharpened(module):
    """Fresh weights answer nearly uniformly; larger ones make mistakes of position and padding visible."""
    generator = torch_generator(3, "sharpened")
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return module.eval()


SEQUENCE_MODELS = [
    pytest.param(TinyTransformerLanguageModel(layers=2, width=16, heads=2), id="tiny"),
    pytest.param(TinyTransformerLanguageModel(layers=1, width=12, heads=3, tied=False, feed_forward=2), id="untied"),
    pytest.param(HuggingFaceLanguageModel(layers=2, width=16, heads=2, intermediate=24), id="llama"),
    pytest.param(HuggingFaceLanguageModel(layers=1, width=16, heads=2, intermediate=24, tied=False), id="llama-untied"),
]


@pytest.mark.parametrize("settings", SEQUENCE_MODELS)
@pytest.mark.parametrize("end_token", [1, None], ids=["ends", "fixed-length"])
def test_sequence_models(settings, end_token):
    spec = TASK.item_spec
    check_language_model(
        lambda: sharpened(settings.build(spec, end_token=end_token, prompts=6, seed=4)),
        torch.from_numpy(TASK.prompt_tokens()),
        max_tokens=spec.max_tokens,
        vocabulary=spec.vocabulary,
        end_token=end_token,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_table(dtype):
    spec = ItemSpec(vocabulary=9, prompt_length=1, max_tokens=1)
    check_language_model(
        lambda: sharpened(TableLanguageModel(dtype=dtype).build(spec, end_token=None, prompts=5, seed=4)),
        torch.arange(5)[:, None],
        max_tokens=1,
        vocabulary=9,
        end_token=None,
    )


def test_the_suite_notices_a_model_that_reads_the_padding():
    settings = TinyTransformerLanguageModel(layers=1, width=16, heads=2)
    other_padding = ItemSpec(vocabulary=8, pad_token=7, prompt_length=3, max_tokens=8)
    model = sharpened(settings.build(other_padding, end_token=1, prompts=6, seed=4))
    prompt_BL = torch.from_numpy(TASK.prompt_tokens())
    check_padding_is_not_read(model, prompt_BL, 8, pad_token=7)
    with pytest.raises(AssertionError):
        check_padding_is_not_read(model, prompt_BL, 8, pad_token=0)


def test_the_suite_notices_log_probabilities_at_the_wrong_temperature():
    model = sharpened(
        TinyTransformerLanguageModel(width=16, heads=2).build(TASK.item_spec, end_token=1, prompts=6, seed=4)
    )
    prompt_BL = torch.from_numpy(TASK.prompt_tokens())
    check_generation(model, prompt_BL, 8, 1, 0, temperature=0.5)
    generate = model.generate

    def tempered(prompt_BL, max_tokens, *, generator, temperature=1.0):
        drawn = generate(prompt_BL, max_tokens, generator=generator, temperature=temperature)
        return replace(drawn, log_prob_BT=drawn.log_prob_BT / temperature)

    model.generate = tempered
    with pytest.raises(AssertionError):
        check_generation(model, prompt_BL, 8, 1, 0, temperature=0.5)
