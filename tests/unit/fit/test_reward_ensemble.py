"""Fitted reward ensembles: what they learn against the best possible, shards bit for bit, diversity, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused, InvalidDataset, InvalidExperiment, NonFiniteValue
from proxygap.base.language import ItemSpec, take
from proxygap.base.protocols import State
from proxygap.base.seeds import generator
from proxygap.fit.reward.ensemble import merge, split
from proxygap.fit.reward.losses import Regression, RegressionThenScaled
from proxygap.fit.reward.settings import HuggingFaceNetwork, MlpReward, RewardTraining, TinyNetwork, TransformerReward
from proxygap.testing.reward import LinearTruth

UNEVEN = RewardTraining(epochs=2, batch_size=7, bootstrap=True, patience=1, weight_decay=0.01)
KINDS = {
    "mlp": MlpReward(hidden=(17, 9), frozen_layers=1, training=UNEVEN),
    "mlp-pretrain": MlpReward(hidden=(17,), diversity="pretrain", training=UNEVEN),
    "mlp-two-stages": MlpReward(
        hidden=(17,), loss=RegressionThenScaled(regression_share=0.5), training=UNEVEN.model_copy(update={"epochs": 12})
    ),
    "tiny": TransformerReward(pretrain_steps=2, training=UNEVEN),
    "tiny-pretrain": TransformerReward(
        network=TinyNetwork(layers=2), pretrain_steps=2, diversity="pretrain", training=UNEVEN
    ),
    "hugging-face": TransformerReward(network=HuggingFaceNetwork(layers=1, width=16, heads=2), training=UNEVEN),
}


@pytest.fixture
def truth():
    return LinearTruth.of(generator(0, "truth"))


@pytest.fixture
def data(truth):
    return truth.preferences(generator(1, "data"), 60, truth.token_gold)


def accuracy_M(model, truth, gold, rng):
    """Share of clean pairs that each member ranks right."""
    clean = truth.preferences(rng, 1500, gold)
    return (model.score(clean.chosen) > model.score(clean.rejected)).float().mean(dim=1).numpy()


def test_mlp_comes_near_the_ceiling_of_noisy_labels(truth):
    """With a share p of labels flipped, a member that ranks a share a of clean pairs right is right on a share
    a (1 - p) + (1 - a) p of labels: 1 - p at best."""
    noisy = truth.preferences(generator(1, "data"), 6000, truth.feature_gold, flips=0.25)
    training = RewardTraining(epochs=3, batch_size=64, learning_rate=2e-3, held_out=0.4)
    model = MlpReward(members=2, training=training).build(truth.spec, seed=0)
    report = model.fit(noisy)
    clean_M = accuracy_M(model, truth, truth.feature_gold, generator(2, "clean"))
    assert clean_M.min() > 0.9
    assert report.held_out_rows == pytest.approx(2400, abs=150)
    deviation = np.sqrt(0.75 * 0.25 / report.held_out_rows)
    assert report.held_out_accuracy_M == pytest.approx(0.5 * clean_M + 0.25, abs=3.5 * deviation)


def test_transformer_learns_a_sum_over_tokens(truth):
    data = truth.preferences(generator(1, "data"), 4000, truth.token_gold)
    model = TransformerReward(members=1, training=RewardTraining(epochs=6)).build(truth.spec, seed=0)
    report = model.fit(data)
    assert report.held_out_accuracy_M[0] > 0.86
    assert accuracy_M(model, truth, truth.token_gold, generator(2, "clean")).min() > 0.88


def test_regression_finds_the_ratings_and_the_second_stage_keeps_the_ranking(truth):
    data = truth.preferences(generator(1, "data"), 1500, truth.feature_gold)
    test = truth.items(generator(2, "test"), 400)
    gold = truth.feature_gold(test)
    training = RewardTraining(epochs=12, learning_rate=3e-3)
    for loss in (Regression(), RegressionThenScaled()):
        model = MlpReward(members=1, loss=loss, training=training).build(truth.spec, seed=0)
        model.fit(data)
        scores = model.score(test)[0].numpy()
        assert np.corrcoef(scores, gold)[0, 1] > 0.98
        if loss.kind == "regression":
            assert np.sqrt(np.square(scores - gold).mean()) < 0.2 * gold.std()


def test_a_segment_scores_the_sum_of_its_steps(truth, data):
    model = MlpReward(members=2, training=RewardTraining(epochs=1)).build(truth.spec, seed=0)
    model.fit(data)
    segments = truth.items(generator(2, "items"), 9, steps=4)
    whole = model.score(segments)
    steps = [model.score({"feature": segments["feature"][:, step : step + 1]}) for step in range(4)]
    torch.testing.assert_close(torch.stack(steps).sum(dim=0), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_tokens_short_cut_equals_the_whole_transformer(truth, layers):
    """Truncated rows and rows with more padding behind them give the same score: nothing behind the end is read."""
    model = TransformerReward(members=2, network=TinyNetwork(layers=layers)).build(truth.spec, seed=0)
    items = truth.items(generator(2, "items"), 20)
    other = {**items, "token": np.where(np.arange(6) < items["length"][:, None], items["token"], 7)}
    assert torch.equal(model.score(items), model.score(other))
    longest = int(items["length"][:5].max())
    short = {name: column[:5] for name, column in items.items()}
    short["token"] = short["token"][:, :longest]
    torch.testing.assert_close(model.score(short), model.score(items)[:, :5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [TinyNetwork(layers=1), TinyNetwork(layers=2), HuggingFaceNetwork(layers=2)])
def test_left_padding_is_not_seen(network):
    """A prompt of one token among padding scores as in a task whose prompts have that padding replaced... by none."""
    spec = ItemSpec(vocabulary=9, pad_token=0, prompt_length=3, max_tokens=2)
    model = TransformerReward(members=1, network=network).build(spec, seed=0)
    state = model.state()
    token = "token" if network.kind == "tiny_transformer" else "embed_tokens.weight"
    moved = {name: array.copy() for name, array in state.arrays.items()}
    moved[f"weights.{token}"][:, 0] += 5.0
    items = {
        "prompt_token": np.array([[0, 0, 4], [0, 5, 4]]),
        "token": np.array([[3, 0], [2, 3]]),
        "length": np.array([1, 2]),
    }
    before = model.score(items)
    model.load_state(State(moved, state.structure))
    torch.testing.assert_close(model.score(items), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_equal_the_whole_bit_for_bit(kind, truth, data):
    settings = KINDS[kind]
    whole = settings.build(truth.spec, seed=3)
    report = whole.fit(data)
    whole.calibrate(data.chosen)
    for shards in (((0, 1, 2), (3, 4)), ((4,), (1, 2), (0, 3))):
        parts = [settings.build(truth.spec, seed=3, member_ids=shard) for shard in shards]
        reports = [part.fit(data) for part in parts]
        for part in parts:
            part.calibrate(data.chosen)
        merged, mine = merge([part.state() for part in parts]), whole.state()
        assert merged.structure == mine.structure
        assert all(np.array_equal(merged.arrays[name], mine.arrays[name]) for name in mine.arrays)
        for part, shard, partial in zip(parts, shards, reports, strict=True):
            assert torch.equal(part.score(data.rejected), whole.score(data.rejected)[list(shard)])
            assert partial.held_out_loss_M == tuple(report.held_out_loss_M[member] for member in shard)


def test_a_split_state_makes_a_shard(truth, data):
    settings = KINDS["mlp"]
    whole = settings.build(truth.spec, seed=3)
    whole.fit(data)
    shard = settings.build(truth.spec, seed=3, member_ids=(1, 4))
    shard.load_state(split(whole.state(), (1, 4)))
    assert torch.equal(shard.score(data.chosen), whole.score(data.chosen)[[1, 4]])
    shard.fit(data)
    whole.fit(data)
    assert torch.equal(shard.score(data.chosen), whole.score(data.chosen)[[1, 4]])


def test_merge_refuses_shards_of_different_fits_and_shared_members(truth, data):
    settings = KINDS["mlp"]
    parts = [settings.build(truth.spec, seed=3, member_ids=shard) for shard in ((0, 1), (1, 2))]
    with pytest.raises(CheckpointRefused, match="share a member"):
        merge([part.state() for part in parts])
    parts[0].fit(data)
    with pytest.raises(CheckpointRefused, match=r"reward\.version"):
        merge([part.state() for part in parts])
    with pytest.raises(CheckpointRefused, match="lacks a member"):
        split(parts[0].state(), (3,))


@pytest.mark.parametrize("kind", ["mlp", "tiny"])
@pytest.mark.parametrize("diversity", ["fine_tune", "pretrain"])
def test_diversity_says_what_members_share_at_the_start(kind, diversity, truth):
    arrays = KINDS[kind].model_copy(update={"diversity": diversity}).build(truth.spec, seed=3).state().arrays
    trunk, head = ("weight_0", "weight_2") if kind == "mlp" else ("expand_0", "head_weight")
    assert np.array_equal(arrays[f"weights.{trunk}"][0], arrays[f"weights.{trunk}"][1]) == (diversity == "fine_tune")
    assert not np.array_equal(arrays[f"weights.{head}"][0], arrays[f"weights.{head}"][1])


def test_frozen_layers_stay_and_the_others_learn(truth, data):
    model = KINDS["mlp"].build(truth.spec, seed=3)
    before = model.state().arrays
    model.fit(data)
    after = model.state().arrays
    assert np.array_equal(before["weights.weight_0"], after["weights.weight_0"])
    assert np.array_equal(before["weights.bias_0"], after["weights.bias_0"])
    assert not np.array_equal(before["weights.weight_1"], after["weights.weight_1"])


def test_pretraining_lowers_the_likelihood_loss_and_spares_the_head(truth):
    """Answers that repeat one token leave it to be predicted: after pretraining the loss is far below log V."""
    from proxygap.fit.reward.networks import initial_members
    from proxygap.fit.reward.pretraining import pretrained_trunks
    from proxygap.fit.reward.transformer import TinyTransformer

    network = TinyTransformer(truth.spec, TinyNetwork())
    items = truth.items(generator(2, "items"), 64)
    items["token"] = np.where(items["token"] > 0, items["prompt_token"][:, 1:], 0)
    items["prompt_token"][:, 0] = 0
    columns = network.columns(items)
    rngs = [generator(0, "a"), generator(0, "b")]
    flat_MP = network.layout.flat(initial_members(network, rngs, rngs), torch.device("cpu"))
    trained_MP = pretrained_trunks(network, flat_MP, columns, ["x", "y"], seed=0, steps=150)

    def loss(weights_MP):
        with torch.no_grad():
            return network.bind(weights_MP).next_token_loss({n: c.expand(2, *c.shape) for n, c in columns.items()})

    assert loss(flat_MP).numpy() == pytest.approx([np.log(12)] * 2, rel=0.2)
    assert float(loss(trained_MP).max()) < 0.2
    assert torch.equal(
        network.layout.stacked(trained_MP)["head_weight"], network.layout.stacked(flat_MP)["head_weight"]
    )
    assert not torch.equal(trained_MP[0], trained_MP[1])


def test_held_out_pairs_are_never_trained_on(truth):
    """Contradicting the labels of held-out pairs changes no score, and turns their accuracy around."""
    from proxygap.fit.dynamics.training import is_held_out

    data = truth.preferences(generator(1, "data"), 400, truth.feature_gold)
    settings = MlpReward(members=1, training=RewardTraining(epochs=3))
    one, other = settings.build(truth.spec, seed=0), settings.build(truth.spec, seed=0)
    one.fit(data)
    apart = is_held_out(0, np.arange(400), settings.training.held_out)
    swapped = replace(
        data,
        chosen={
            n: np.where(apart.reshape(-1, *[1] * (c.ndim - 1)), data.rejected[n], c) for n, c in data.chosen.items()
        },
        rejected={
            n: np.where(apart.reshape(-1, *[1] * (c.ndim - 1)), data.chosen[n], c) for n, c in data.rejected.items()
        },
    )
    report = other.fit(swapped)
    assert torch.equal(one.score(data.chosen), other.score(data.chosen))
    assert report.held_out_accuracy_M[0] < 0.2


def test_patience_takes_the_best_weights_back(truth):
    """On pure noise a member with patience ends with a held-out loss no higher than one that trains on."""
    noise = truth.preferences(generator(1, "data"), 200, truth.feature_gold, flips=0.5)
    losses = {}
    for patience in (None, 2):
        training = RewardTraining(epochs=40, learning_rate=1e-2, held_out=0.3, patience=patience)
        settings = MlpReward(members=3, training=training)
        report = settings.build(truth.spec, seed=0).fit(noise)
        losses[patience] = report.held_out_loss_M
        assert (max(report.epochs_M) == 40) == (patience is None)
        alone = settings.build(truth.spec, seed=0, member_ids=(1,)).fit(noise)
        assert alone.epochs_M == report.epochs_M[1:2]
    assert all(stopped < 0.75 < run_on for stopped, run_on in zip(losses[2], losses[None], strict=True))


def test_too_few_pairs_serve_as_both_sides(truth, data):
    report = MlpReward(members=1).build(truth.spec, seed=0).fit(data[:2])
    assert (report.training_rows, report.held_out_rows) == (2, 0)


def test_ties_pull_scores_together_and_are_no_part_of_accuracy(truth, data):
    tied = replace(data, tie_N=np.ones(len(data), bool))
    model = MlpReward(members=1, training=RewardTraining(epochs=60, learning_rate=1e-2)).build(truth.spec, seed=0)
    before = (model.score(data.chosen) - model.score(data.rejected)).abs().mean()
    report = model.fit(tied)
    after = (model.score(data.chosen) - model.score(data.rejected)).abs().mean()
    assert np.isnan(report.held_out_accuracy_M[0])
    assert float(after) < 0.2 * float(before)


def spoiled(items, name, value, row=3):
    column = items[name].copy()
    column[row] = value
    return {**items, name: column}


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("token", 12, "items.token"),
        ("token", -1, "items.token"),
        ("prompt_token", 99, "items.prompt_token"),
        ("length", 0, "items.length"),
        ("length", 7, "items.length"),
    ],
)
def test_tokens_that_cannot_be_are_refused_with_their_row(name, value, field, truth, data):
    model = TransformerReward(members=1).build(truth.spec, seed=0)
    for use in (
        lambda: model.score(spoiled(data.chosen, name, value)),
        lambda: model.calibrate(spoiled(data.chosen, name, value)),
        lambda: model.fit(replace(data, chosen=spoiled(data.chosen, name, value, row=0))),
    ):
        with pytest.raises(InvalidDataset, match=r"row \d+ is outside") as caught:
            use()
        assert caught.value.field == field


def test_missing_columns_and_wrong_kinds_of_items_are_named(truth, data):
    with pytest.raises(InvalidDataset, match="mlp_reward reads features"):
        MlpReward(members=1).build(truth.spec, seed=0).score({"token": data.chosen["token"]})
    with pytest.raises(InvalidExperiment, match="no features"):
        MlpReward().build(replace(truth.spec, features=0), seed=0)
    for network in (TinyNetwork(), HuggingFaceNetwork()):
        with pytest.raises(InvalidExperiment, match="no tokens"):
            TransformerReward(network=network).build(replace(truth.spec, vocabulary=0), seed=0)


def test_nan_in_features_labels_and_weights_is_named(truth, data):
    model = MlpReward(members=3).build(truth.spec, seed=0)
    with pytest.raises(NonFiniteValue, match="row 3"):
        model.score(spoiled(data.chosen, "feature", np.nan))
    with pytest.raises(InvalidDataset, match="strength of pair 5"):
        model.fit(replace(data, strength_N=np.where(np.arange(60) == 5, -1.0, 1.0).astype(np.float32)))
    with pytest.raises(InvalidDataset, match="infinite"):
        model.fit(replace(data, chosen_rating_N=np.full(60, np.inf, np.float32)))
    with pytest.raises(InvalidDataset, match="no pairs"):
        model.fit(data[:0])
    state = model.state()
    state.arrays["weights.bias_1"][1] = np.nan
    model.load_state(state)
    with pytest.raises(NonFiniteValue, match="member 1"):
        model.score(data.chosen)
    with pytest.raises(NonFiniteValue, match="member 1"):
        model.fit(data)


def test_a_loss_of_ratings_needs_one(truth, data):
    none = np.full(60, np.nan, np.float32)
    unrated = replace(data, chosen_rating_N=none, rejected_rating_N=none)
    for loss in (Regression(), RegressionThenScaled()):
        with pytest.raises(InvalidDataset, match="no item has one"):
            MlpReward(members=1, loss=loss).build(truth.spec, seed=0).fit(unrated)


def test_a_state_of_another_kind_or_size_is_refused(truth):
    states = [KINDS[kind].build(truth.spec, seed=0).state() for kind in ("mlp", "mlp-pretrain", "tiny")]
    model = KINDS["mlp"].build(truth.spec, seed=0)
    with pytest.raises(CheckpointRefused, match=r"reward\.shapes"):
        model.load_state(states[1])
    with pytest.raises(CheckpointRefused, match=r"reward\.kind"):
        model.load_state(states[2])
    del states[0].arrays["shift"]
    with pytest.raises(CheckpointRefused, match=r"reward\.shift"):
        model.load_state(states[0])


def test_calibration_is_taken_back_by_a_fit_and_survives_constant_scores(truth, data):
    model = MlpReward(members=2, training=RewardTraining(epochs=1)).build(truth.spec, seed=0)
    same = take(data.chosen, np.zeros(8, np.int64))
    model.calibrate(same)
    torch.testing.assert_close(model.score(same), torch.zeros(2, 8), rtol=0.0, atol=1e-5)
    model.fit(data)
    assert model.state().arrays["scale"].tolist() == [1.0, 1.0]
    assert model.version == 2
    with pytest.raises(InvalidDataset, match="no items"):
        model.calibrate(take(data.chosen, slice(0, 0)))


def test_a_local_folder_loads_with_safetensors_only(tmp_path, truth, data):
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path / "model"

    def build():
        network = HuggingFaceNetwork(folder=str(folder))
        return TransformerReward(members=2, network=network, training=UNEVEN).build(truth.spec, seed=0)

    with pytest.raises(InvalidExperiment, match="no such model directory"):
        build()
    folder.mkdir()
    with pytest.raises(InvalidExperiment, match=r"no config\.json"):
        build()
    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    source = LlamaModel(config)
    source.save_pretrained(folder)
    model = build()
    embedding = source.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(model.state().arrays["weights.embed_tokens.weight"][1], embedding)
    model.fit(data)
    assert np.isfinite(model.score(data.chosen).numpy()).all()
    (folder / "model.safetensors").unlink()
    torch.save(source.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InvalidExperiment, match="no safetensors"):
        build()


def test_a_folder_of_a_smaller_vocabulary_is_refused(tmp_path, truth):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlamaModel(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidExperiment, match="knows 5 tokens, the task has 12"):
        TransformerReward(network=HuggingFaceNetwork(folder=str(tmp_path))).build(truth.spec, seed=0)
