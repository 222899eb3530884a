"""Settings come out of a host's recipe as they went in; rows are dealt to hosts in whole blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from proxygap.base.errors import HostFailed, InvalidDataset
from proxygap.fit.language.settings import TableLanguageModel, TinyTransformerLanguageModel
from proxygap.serve.local_language import LocalLanguage, build_copy
from proxygap.serve.packing import packed, unpacked
from proxygap.serve.settings import Hosting
from proxygap.testing import hosted


def copy() -> LocalLanguage:
    settings = TinyTransformerLanguageModel(layers=1, width=32, heads=2)
    sizes = {"vocabulary": 7, "prompt_length": 2, "max_tokens": 4}
    return build_copy(settings=packed(settings), spec=sizes, block_rows=4, device="cpu", end_token=1, prompts=3, seed=0)


ARRAYS = {
    "prompt_token": np.tile([[2, 3]], (9, 1)),
    "token": np.tile([[4, 5, 1, 0]], (9, 1)),
    "length": np.full(9, 3),
}


def test_settings_survive_json() -> None:
    for settings in (Hosting(hosts=3, cpus=0.5), TableLanguageModel(dtype="float64")):
        assert unpacked(json.loads(json.dumps(packed(settings)))) == settings


@pytest.mark.parametrize(
    "home", ["proxygap.missing:Settings", "proxygap.serve.settings:Missing", "json:JSONDecoder", "nonsense"]
)
def test_settings_that_the_host_does_not_know_are_named(home: str) -> None:
    with pytest.raises(HostFailed, match=f"settings = '{home}'"):
        unpacked({"home": home, "fields": {}})


def test_a_copy_keeps_the_clauses_of_a_hosted_model() -> None:
    options = {"max_tokens": 4, "seed": 3, "temperature": 1.0}
    prompts = {"prompt_token": ARRAYS["prompt_token"], "first_block": np.asarray(2)}
    hosted.check_pure(copy, "log_probs", ARRAYS, {})
    hosted.check_rows_independent(copy, "log_probs", ARRAYS, {})
    hosted.check_read_only_inputs(copy, "log_probs", ARRAYS, {})
    hosted.check_pure(copy, "generate", prompts, options)
    hosted.check_read_only_inputs(copy, "generate", prompts, options)
    assert not copy().batchable("generate")
    with pytest.raises(KeyError, match="no method 'train'"):
        copy().call("train", {}, {})


def test_blocks_draw_by_their_number_in_the_whole_call() -> None:
    model, prompt_BL = copy(), ARRAYS["prompt_token"]
    whole = model.generate(prompt_BL, 4, seed=3)
    options = {"max_tokens": 4, "seed": 3, "temperature": 1.0}
    first = model.call("generate", {"prompt_token": prompt_BL[:4], "first_block": np.asarray(0)}, options)
    rest = model.call("generate", {"prompt_token": prompt_BL[4:], "first_block": np.asarray(1)}, options)
    np.testing.assert_array_equal(whole.token_BT.numpy(), np.concatenate([first["token"], rest["token"]]))
    assert not np.array_equal(whole.token_BT[:4].numpy(), whole.token_BT[4:8].numpy())  # equal prompts, other draws


def test_padding_of_a_whole_block_changes_nothing() -> None:
    model = copy()
    wide = model.log_probs(ARRAYS["prompt_token"], ARRAYS["token"], ARRAYS["length"])
    narrow = model.log_probs(ARRAYS["prompt_token"], ARRAYS["token"][:, :3], ARRAYS["length"])
    assert (wide[:, 3] == 0).all()
    np.testing.assert_array_equal(wide[:, :3].numpy(), narrow.numpy())


def test_a_state_moves_to_a_fresh_copy() -> None:
    one, other = copy(), copy()
    one.load(other.state())
    assert one.version == 1
    other.load_state(one.state())
    assert other.version == 1
    with pytest.raises(InvalidDataset, match=r"token = (9|10): row 0"):
        other.log_probs(ARRAYS["prompt_token"], ARRAYS["token"] + 5, ARRAYS["length"])
