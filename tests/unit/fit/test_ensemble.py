from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused, NonFiniteValue
from proxygap.base.protocols import State
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.ensemble import merge, split
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.fit.dynamics.training import is_held_out
from proxygap.testing.dynamics import linear_transitions


def build(member_ids=None, seed=5, **options):
    options = {
        "members": 3,
        "elites": 2,
        "hidden": (33, 17),
        "batch_size": 50,
        "max_epochs": 12,
        "patience": 2,
    } | options
    settings = GaussianEnsembleSettings(**options)
    sizes = {"obs_size": 3, "action_size": 2, "learn_reward": True, "learn_termination": True}
    return settings.build(**sizes, seed=seed, member_ids=member_ids)


def data(rows=300, seed=0, **options):
    return linear_transitions(generator(seed, "data"), rows, **options)


def walk(rows=300):
    """The same rows as one long episode, so that each but the last has a successor."""
    sample = data(rows)
    sample.next_obs_BO[:-1] = sample.obs_BO[1:]
    return replace(sample, episode_B=np.zeros(rows, np.int64), step_B=np.arange(rows))


def weights(rows):
    return generator(0, "weights").random((rows, 4)).astype(np.float32)


def report_of(answer):
    return SimpleNamespace(epochs_M=tuple(answer["epochs_M"].tolist()), updates=int(answer["updates"]))


def inputs(rows, seed=1):
    sample = data(rows, seed)
    return torch.from_numpy(sample.obs_BO), torch.from_numpy(sample.action_BA)


def same(one: State, other: State) -> bool:
    return one.structure == other.structure and all(
        np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": {"kind": "mse"}},
        {"batches": "shared", "hidden": (64,)},
        {"loss": {"kind": "value_gradient"}},
        {"loss": {"kind": "generalized_gaussian"}},
        {"loss": {"kind": "multi_step", "steps": 3}, "stopping": "budget"},
    ],
    ids=str,
)
def test_shards_fit_to_the_bits_of_the_whole(options):
    """Without weights and budgets, then with both, as hosts are asked."""
    whole, shards = build(**options), [build((2,), **options), build((0, 1), **options)]
    budgets = np.array([2, 3, 4])
    for refit, more in ((walk(), {}), (walk(450), {"weight_NT": weights(450), "max_epochs_M": budgets})):
        reports = [report_of(shard.call("fit", {**refit.columns(), **more}, {"first_row": 0})) for shard in shards]
        report = whole.fit(refit, 0, **more)
    assert same(merge([shard.state() for shard in shards]), whole.state())
    assert report.epochs_M == (*reports[1].epochs_M, *reports[0].epochs_M)
    assert report.updates == max(shard.updates for shard in reports)
    assert np.array_equal(whole.held_out_loss_M, whole.state().arrays["held_out_loss"])
    if options.get("stopping") == "budget":
        assert report.epochs_M == (2, 3, 4)
    assert max(report.epochs_M) <= 4
    obs, action = inputs(37)
    joined = torch.cat([shards[1].predict(obs, action).target_mean, shards[0].predict(obs, action).target_mean])
    assert torch.equal(joined, whole.predict(obs, action).target_mean)
    member = torch.full((37,), 2)
    mine, theirs = (model.predict_rows(member, obs, action) for model in (whole, shards[0]))
    assert torch.equal(mine.target_mean, theirs.target_mean)
    assert torch.equal(mine.termination_logit, theirs.termination_logit)
    assert (mine.target_shape is None) == (options.get("loss", {}).get("kind") != "generalized_gaussian")
    if mine.target_shape is not None:
        assert torch.equal(mine.target_shape, theirs.target_shape)


def test_split_undoes_merge_and_seats_a_shard():
    whole = build()
    whole.fit(data(), 0)
    parts = [split(whole.state(), (1,)), split(whole.state(), (2, 0))]
    assert same(merge(parts), whole.state())
    shard = build((2, 0))
    shard.load_state(parts[1])
    assert shard.version == 1
    obs, action = inputs(5)
    torch.testing.assert_close(
        shard.predict(obs, action).target_mean, whole.predict(obs, action).target_mean[[2, 0]], rtol=0, atol=0
    )
    with pytest.raises(CheckpointRefused, match="member"):
        split(parts[0], (0,))


def test_merge_refuses_shards_of_different_fits():
    one, other = build((0,)), build((1, 2))
    one.fit(data(), 0)
    with pytest.raises(CheckpointRefused, match=r"dynamics\.version"):
        merge([one.state(), other.state()])
    other.fit(data(seed=3), 0)
    with pytest.raises(CheckpointRefused, match=r"dynamics\.input_mean"):
        merge([one.state(), other.state()])
    with pytest.raises(CheckpointRefused, match="share"):
        merge([one.state(), one.state()])


@pytest.mark.parametrize(
    ("options", "key"),
    [({"hidden": (33, 18)}, "hidden"), ({"members": 4, "elites": 2}, "member_ids"), ({"elites": 1}, "elite_count")],
)
def test_a_state_of_another_ensemble_is_refused_by_name(options, key):
    with pytest.raises(CheckpointRefused, match=rf"dynamics\.{key}"):
        build(**options).load_state(build().state())


def test_a_state_with_a_missing_or_misshapen_array_is_refused_by_name():
    model, state = build(), build().state()
    lacking = State({name: array for name, array in state.arrays.items() if name != "bias_1"}, state.structure)
    with pytest.raises(CheckpointRefused, match=r"dynamics\.bias_1"):
        model.load_state(lacking)
    bent = State({**state.arrays, "input_std": state.arrays["input_std"][:-1]}, state.structure)
    with pytest.raises(CheckpointRefused, match=r"dynamics\.input_std"):
        model.load_state(bent)


def test_recovers_the_mean_and_the_noise_of_a_linear_system():
    """Deviation within 10 percent of the truth on average, mean within a fraction of it."""
    model = build(hidden=(32,), max_epochs=60, patience=5, learning_rate=3e-3, batch_size=64)
    model.fit(data(3000, noise=0.3), 0)
    fresh = data(500, seed=9, noise=0.0)
    prediction = model.predict(torch.from_numpy(fresh.obs_BO), torch.from_numpy(fresh.action_BA))
    truth_BO = torch.from_numpy(fresh.next_obs_BO - fresh.obs_BO)
    std_M = prediction.target_std[..., :3].mean(dim=(1, 2))
    assert std_M.tolist() == pytest.approx([0.3] * 3, rel=0.1)
    error = (prediction.target_mean[..., :3] - truth_BO).square().mean(dim=(1, 2)).sqrt()
    assert error.max() < 0.1
    reward = fresh.next_obs_BO[:, 0]
    assert np.corrcoef(prediction.target_mean[0, :, 3].numpy(), reward)[0, 1] > 0.99
    clear = np.abs(reward - 1.0) > 0.4
    guessed = prediction.termination_logit[0].numpy()[clear] > 0
    assert (guessed == (reward[clear] > 1.0)).mean() > 0.98


def test_under_squared_error_the_deviation_is_the_held_out_residual():
    model = build(hidden=(32,), loss={"kind": "mse"}, max_epochs=60, learning_rate=3e-3, batch_size=64)
    model.fit(data(3000, noise=0.3), 0)
    std_MBT = model.predict(*inputs(4)).target_std
    assert torch.equal(std_MBT, std_MBT[:, :1].expand_as(std_MBT))
    assert std_MBT[:, 0, :3].mean(dim=1).tolist() == pytest.approx([0.3] * 3, rel=0.1)


def test_reported_scores_are_of_raw_units():
    """A better model of data 1000 times smaller has the same normalized error and T log(1000) more nats."""
    reports = []
    for scale in (1.0, 1e-3):
        sample = data(400)
        small = replace(
            sample,
            next_obs_BO=(sample.obs_BO + scale * (sample.next_obs_BO - sample.obs_BO).astype(np.float64)).astype(
                np.float32
            ),
            outcome_reward_B=(scale * sample.outcome_reward_B).astype(np.float32),
        )
        reports.append(build().fit(small, 0))
    one, other = reports
    np.testing.assert_allclose(one.held_out_mse_M, other.held_out_mse_M, rtol=0.02)
    gained = np.subtract(other.held_out_log_likelihood_M, one.held_out_log_likelihood_M)
    np.testing.assert_allclose(gained, 4 * np.log(1000.0), rtol=0.01)


def test_constant_dimensions_fit_and_predict():
    sample = data(200)
    sample.obs_BO[:, 1] = sample.next_obs_BO[:, 1] = 7.0
    sample.action_BA[:, 0] = 1.0
    model = build()
    report = model.fit(sample, 0)
    assert np.isfinite(report.held_out_log_likelihood_M).all()
    prediction = model.predict(torch.from_numpy(sample.obs_BO), torch.from_numpy(sample.action_BA))
    assert bool(prediction.target_mean.isfinite().all())
    assert prediction.target_mean[..., 1].abs().max() < 0.5


def test_dropping_old_rows_moves_none_across_the_split():
    sample, model = data(300), build(max_epochs=1)
    whole, tail = model.fit(sample, 0), build(max_epochs=1).fit(sample[slice(100, 300)], 100)
    head = build(max_epochs=1).fit(sample[slice(0, 100)], 0)
    assert whole.held_out_rows == tail.held_out_rows + head.held_out_rows
    assert whole.training_rows == tail.training_rows + head.training_rows
    assert build(max_epochs=1, held_out_limit=10).fit(sample, 0).held_out_rows == 10


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_few_rows_are_trained_and_scored_on_alike(rows):
    report = build().fit(data(rows), 0)
    assert (report.training_rows, report.held_out_rows) == (rows, 0)
    assert np.isfinite(report.held_out_mse_M).all()


def test_nonfinite_data_is_refused_by_column():
    sample = data(20)
    sample.next_obs_BO[3, 1] = np.inf
    with pytest.raises(NonFiniteValue, match="next_obs_BO = 'row 3'"):
        build().fit(sample, 0)


def test_rows_without_weight_teach_nothing():
    """Two laws in one dataset: each model learns the law of the rows that carry its weight."""
    one, other = data(600, noise=0.0), data(600, seed=1, noise=0.0)
    flipped = replace(other, next_obs_BO=2 * other.obs_BO - other.next_obs_BO)
    both = Transitions.concatenate([one, flipped])
    obs, change = torch.from_numpy(one.obs_BO), torch.from_numpy(one.next_obs_BO - one.obs_BO)
    action = torch.from_numpy(one.action_BA)
    for share, sign in ((1.0, 1.0), (0.0, -1.0)):
        model = build(loss={"kind": "mse"}, hidden=(32,), max_epochs=40, learning_rate=3e-3)
        weight_NT = np.repeat(np.array([share, 1.0 - share], np.float32), 600)[:, None].repeat(4, axis=1)
        model.fit(both, 0, weight_NT)
        predicted = model.predict(obs, action).target_mean[model.elites[0], :, :3]
        assert (predicted - sign * change).square().mean() < 0.05 * change.square().mean()


def test_weights_count_among_training_rows_whatever_the_held_out_ones_weigh():
    """Held-out rows that all weigh nothing are scored alike, and a fit whose training rows weigh nothing is refused."""
    sample, model = data(), build()
    apart = is_held_out(5, np.arange(300), 0.2)
    weight_NT = np.repeat((~apart).astype(np.float32)[:, None], 4, axis=1)
    model.fit(sample, 0, weight_NT)
    assert (model.held_out_loss_M > 0).all()
    with pytest.raises(ValueError, match="no training row"):
        build().fit(sample, 0, 1.0 - weight_NT)


@pytest.mark.parametrize("budgets", [[1, 1], [1, 0, 1]], ids=str)
def test_budgets_that_fit_no_member_are_refused(budgets):
    with pytest.raises(ValueError, match="budget of at least 1 epoch"):
        build().fit(data(), 0, max_epochs_M=np.array(budgets))


def test_elites_are_the_best_on_held_out_rows():
    model = build(members=5, elites=2)
    report = model.fit(data(), 0)
    losses = model.state().arrays["held_out_loss"]
    assert report.elites == model.elites == tuple(np.argsort(losses)[:2])


def test_rows_of_members_held_elsewhere_are_refused():
    shard = build((0, 2))
    obs, action = inputs(2)
    with pytest.raises(ValueError, match=r"members \[1, 9\] are not held here"):
        shard.predict_rows(torch.tensor([9, 1]), obs, action)


def test_calls_of_a_host_answer_rows_first():
    model, twin, sample = build(), build(), data(120)
    answer = model.call("fit", sample.columns(), {"first_row": 4})
    report = twin.fit(sample, 4)
    assert answer["held_out_log_likelihood_M"].tolist() == list(report.held_out_log_likelihood_M)
    assert answer["elites"].tolist() == list(report.elites)
    obs, action = inputs(9)
    arrays = {"obs_BO": obs.numpy(), "action_BA": action.numpy()}
    whole = model.call("predict", arrays, {})
    expected = twin.predict(obs, action)
    assert np.array_equal(whole["target_mean"], expected.target_mean.transpose(0, 1).numpy())
    assert np.array_equal(whole["termination_logit"], expected.termination_logit.T.numpy())
    member = np.arange(9) % 3
    some = model.call("predict_rows", {**arrays, "member_B": member}, {})
    assert np.array_equal(
        some["target_std"], twin.predict_rows(torch.from_numpy(member), obs, action).target_std.numpy()
    )
    with pytest.raises(KeyError, match="forget"):
        model.call("forget", {}, {})


def test_no_transitions_are_refused():
    with pytest.raises(ValueError, match="no transitions"):
        build().fit(data(5)[slice(0, 0)], 0)


def test_every_fit_draws_samples_of_its_own():
    """The same weights and data, as the second fit and as the seventh."""
    first = build()
    first.fit(data(), 0)
    state = first.state()
    later = build()
    later.load_state(State(state.arrays, {**state.structure, "version": 6}))
    first.fit(data(), 0)
    later.fit(data(), 0)
    assert not np.array_equal(first.state().arrays["weight_0"], later.state().arrays["weight_0"])


def test_another_seed_is_another_ensemble():
    obs, action = inputs(3)
    assert not torch.equal(build().predict(obs, action).target_mean, build(seed=6).predict(obs, action).target_mean)
