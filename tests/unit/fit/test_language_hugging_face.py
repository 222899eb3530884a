"""Models of transformers: our view against their own forward, and directories that must be refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging

from proxygap.base.errors import CheckpointRefused, InvalidExperiment
from proxygap.base.language import ItemSpec
from proxygap.fit.language.sampling import Draws
from proxygap.fit.language.settings import HuggingFaceLanguageModel, Pretraining
from proxygap.fit.language.states import load_module_state, module_state
from proxygap.testing.language_models import check_language_model

SPEC = ItemSpec(vocabulary=13, pad_token=0, prompt_length=4, max_tokens=6)
PROMPT_PL = torch.tensor([[0, 0, 0, 5], [0, 0, 3, 4], [0, 2, 7, 8], [6, 6, 2, 3]])

ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=13,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    ),
    "llama3": lambda: LlamaForCausalLM(
        LlamaConfig(
            vocab_size=13,
            hidden_size=16,
            head_dim=12,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="gelu",
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 50.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "cohere": lambda: CohereForCausalLM(
        CohereConfig(
            vocab_size=13,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            logit_scale=0.3,
            max_position_embeddings=32,
            bos_token_id=None,
            eos_token_id=None,
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=13, hidden_size=16, n_layer=1, n_head=2)),
}


def make_network(architecture):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(7)
        network = ARCHITECTURES[architecture]().eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn(weight.shape) * 0.2)
    return network


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory per architecture, as save_pretrained writes it."""
    root = tmp_path_factory.mktemp("models")
    for architecture in ARCHITECTURES:
        make_network(architecture).save_pretrained(root / architecture)
    return root


@pytest.fixture
def llama(folders, tmp_path):
    """A directory of its own, to be damaged."""
    return shutil.copytree(folders / "llama", tmp_path / "model")


def build(folder, spec=SPEC, end_token=1, **options):
    return HuggingFaceLanguageModel(directory=str(folder), **options).build(
        spec, end_token=end_token, prompts=4, seed=0
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_directory_satisfies_the_clauses(folders, architecture):
    check_language_model(lambda: build(folders / architecture), PROMPT_PL, max_tokens=6, vocabulary=13, end_token=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_transformers_itself(folders, architecture):
    model, theirs = build(folders / architecture), AutoModelForCausalLM.from_pretrained(folders / architecture).eval()
    token_BT = torch.randint(2, 13, (4, 6), generator=torch.Generator().manual_seed(0))
    ours = model.continuation(PROMPT_PL, token_BT)
    seen_BS = torch.cat((PROMPT_PL, token_BT), dim=1)
    mask_BS = torch.cat((PROMPT_PL != 0, torch.ones_like(token_BT, dtype=torch.bool)), dim=1).long()
    options = {"position_ids": (mask_BS.cumsum(1) - 1).clamp(min=0)} if architecture != "bloom" else {}
    with torch.no_grad():
        batched = theirs(input_ids=seen_BS, attention_mask=mask_BS, output_hidden_states=True, **options)
    torch.testing.assert_close(ours.logits_BTV, batched.logits[:, 3:-1, :13], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.hidden_BTD, batched.hidden_states[-1][:, 3:-1], rtol=1e-5, atol=1e-5)
    for row in range(4):  # one row at a time, without padding or masks
        with torch.no_grad():
            alone_SV = theirs(input_ids=seen_BS[row : row + 1, 3 - row :]).logits[0]
        torch.testing.assert_close(ours.logits_BTV[row], alone_SV[row:-1, :13], rtol=1e-4, atol=1e-4)


def test_only_models_whose_logits_are_their_output_layer_take_the_short_way(folders):
    short = {architecture: build(folders / architecture)._direct for architecture in ARCHITECTURES}
    assert short == {"llama": True, "llama3": True, "gpt2": True, "cohere": False, "bloom": True}
    steps = {architecture for architecture in ARCHITECTURES if build(folders / architecture)._steps}
    assert steps == {"llama", "llama3"}


def test_greedy_answers_are_those_of_generate(folders):
    model, theirs = build(folders / "llama"), AutoModelForCausalLM.from_pretrained(folders / "llama").eval()
    ours = model.generate(PROMPT_PL, 6, generator=torch.Generator().manual_seed(0), temperature=1e-5)
    answered_BS = theirs.generate(
        PROMPT_PL,
        attention_mask=(PROMPT_PL != 0).long(),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=0,
    )[:, 4:]
    assert ours.token_BT[:, : answered_BS.shape[1]].tolist() == answered_BS.tolist()


def test_dropout_of_the_configuration_is_switched_off(llama):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    model = build(llama)
    token_BT = torch.full((4, 6), 3)
    quiet_BTV = model.eval().continuation(PROMPT_PL, token_BT).logits_BTV
    assert torch.equal(quiet_BTV, model.train().continuation(PROMPT_PL, token_BT).logits_BTV)


def test_our_steps_answer_as_the_loop_over_transformers_does(folders):
    model = build(folders / "llama3", end_token=None)
    lean = model.generate(PROMPT_PL, 6, generator=torch.Generator().manual_seed(0))
    model._steps = False
    plain = model.generate(PROMPT_PL, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lean.token_BT, plain.token_BT)
    torch.testing.assert_close(lean.log_prob_BT, plain.log_prob_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_answers_do_not_depend_on_leaving_out_rows_that_have_ended(folders, architecture, monkeypatch):
    model, prompt_BL = build(folders / architecture), PROMPT_PL.repeat(10, 1)
    model.end_token = None
    fixed = model.generate(prompt_BL, 12, generator=torch.Generator().manual_seed(0))
    model.end_token = int(fixed.token_BT[fixed.token_BT > 0].bincount().argmax())  # the one that comes most often
    left_out = model.generate(prompt_BL, 12, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Draws, "leave_out_ended", lambda self: None)
    whole = model.generate(prompt_BL, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(left_out.token_BT, whole.token_BT)
    assert 20 < int((whole.length_B < 12).sum()) < 40  # half were left out, some went on
    torch.testing.assert_close(left_out.log_prob_BT, whole.log_prob_BT, rtol=1e-5, atol=1e-5)


def test_tokens_beyond_the_task_are_never_drawn(folders):
    model = build(folders / "llama", ItemSpec(vocabulary=9, prompt_length=4, max_tokens=6), end_token=None)
    drawn = model.generate(PROMPT_PL.repeat(100, 1), 6, generator=torch.Generator().manual_seed(0))
    assert int(drawn.token_BT.max()) == 8
    view = model.continuation(PROMPT_PL[:1], drawn.token_BT[:1])
    assert view.logits_BTV.shape[-1] == 9


def test_loading_leaves_global_state_alone(folders):
    before, level, bars = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    build(folders / "llama")
    HuggingFaceLanguageModel(width=16, heads=2).build(SPEC, end_token=1, prompts=4, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
    assert torch.get_default_dtype() == torch.float32


def test_weights_travel_through_a_state(folders):
    settings = HuggingFaceLanguageModel(layers=1, width=16, heads=2, intermediate=24)
    one, two = (settings.build(SPEC, end_token=1, prompts=4, seed=seed) for seed in (0, 1))
    load_module_state(two, module_state(one))
    token_BT = torch.full((4, 6), 3)
    assert torch.equal(one(PROMPT_PL, token_BT).logits_BTV, two(PROMPT_PL, token_BT).logits_BTV)
    assert two.network.lm_head.weight is two.network.model.embed_tokens.weight  # still tied


def test_what_is_built_here_equals_what_it_saves_and_loads(tmp_path):
    built = HuggingFaceLanguageModel(layers=1, width=16, heads=2, intermediate=24).build(
        SPEC, end_token=1, prompts=4, seed=0
    )
    built.network.save_pretrained(tmp_path)
    token_BT = torch.randint(2, 13, (4, 6), generator=torch.Generator().manual_seed(0))
    ours, loaded = built(PROMPT_PL, token_BT), build(tmp_path)(PROMPT_PL, token_BT)
    assert torch.equal(ours.logits_BTV, loaded.logits_BTV)


def test_bfloat16_weights_give_float32_log_probabilities(folders):
    model = build(folders / "llama", dtype="bfloat16")
    drawn = model.generate(PROMPT_PL, 6, generator=torch.Generator().manual_seed(0))
    assert drawn.log_prob_BT.dtype == torch.float32
    state = module_state(model)
    load_module_state(model, state)
    assert {array.dtype.name for array in state.arrays.values()} == {"float32"}


def test_pretraining_is_for_random_weights_unless_asked_for():
    assert HuggingFaceLanguageModel().plan == Pretraining()
    assert HuggingFaceLanguageModel(directory="somewhere").plan.steps == 0
    assert HuggingFaceLanguageModel(directory="somewhere", pretraining=Pretraining(steps=7)).plan.steps == 7


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(InvalidExperiment, match="no such directory"):
        build(tmp_path / "nowhere")


def test_a_directory_without_a_configuration_is_refused(llama):
    (llama / "config.json").unlink()
    with pytest.raises(InvalidExperiment, match=r"no config\.json"):
        build(llama)


@pytest.mark.parametrize("text", ["{", '{"model_type": "unheard_of"}', "{}", '{"model_type": "vit"}'])
def test_an_unusable_configuration_is_refused(llama, text):
    (llama / "config.json").write_text(text)
    with pytest.raises(InvalidExperiment):
        build(llama)


def test_code_that_comes_with_the_model_is_not_run(llama, tmp_path):
    (llama / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    mapping = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (llama / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": mapping}))
    with pytest.raises(InvalidExperiment):
        build(llama)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_and_not_read(llama):
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    torch.save(weights, llama / "pytorch_model.bin")
    with pytest.raises(InvalidExperiment, match=r"pickled \(pytorch_model\.bin\)"):
        build(llama)
    (llama / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidExperiment, match=r"no \*\.safetensors"):
        build(llama)


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensors_are_refused_by_name(llama):
    change_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointRefused, match=r"missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        build(llama)


def test_unexpected_tensors_are_refused_by_name(llama):
    change_weights(llama, lambda weights: weights.update({"model.layers.7.extra.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointRefused, match=r"unexpected: model\.layers\.7\.extra\.weight"):
        build(llama)


def test_tensors_of_another_shape_are_refused_by_name(llama):
    change_weights(llama, lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(CheckpointRefused, match=r"model\.norm\.weight"):
        build(llama)


def test_a_truncated_file_is_refused(llama):
    content = (llama / "model.safetensors").read_bytes()
    (llama / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointRefused, match="weights"):
        build(llama)


def test_a_shard_that_is_not_there_is_refused(llama):
    make_network("llama").save_pretrained(llama, max_shard_size="8KB")
    (llama / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(llama.glob("*.safetensors"))
    assert len(shards) > 1
    build(llama)
    shards[0].unlink()
    with pytest.raises(CheckpointRefused):
        build(llama)


def test_a_model_with_fewer_tokens_than_the_task_is_refused(folders):
    with pytest.raises(InvalidExperiment, match="knows 13 tokens, the task has 14"):
        build(folders / "llama", ItemSpec(vocabulary=14, prompt_length=4, max_tokens=6))


def test_a_model_with_too_few_positions_is_refused(folders):
    with pytest.raises(InvalidExperiment, match="reads 32 tokens, prompt and answer have 33"):
        build(folders / "llama", ItemSpec(vocabulary=13, prompt_length=4, max_tokens=29))


def test_longer_sequences_than_the_model_reads_are_refused(folders):
    model = build(folders / "gpt2")
    with pytest.raises(InvalidExperiment, match="reads 32 tokens"):
        model.generate(PROMPT_PL, 30, generator=torch.Generator())
    with pytest.raises(InvalidExperiment, match="reads 32 tokens"):
        model.continuation(PROMPT_PL, torch.full((4, 30), 2))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width = 12 is not an even multiple of heads = 4"):
        HuggingFaceLanguageModel(width=12, heads=4)
