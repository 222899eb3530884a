from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.errors import NonFiniteValue
from proxygap.base.seeds import generator
from proxygap.fit.dynamics import training as training_module
from proxygap.fit.dynamics.network import Normalizer, Sizes, forward, initial_weights
from proxygap.fit.dynamics.rows import Batch, Rows, Side
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.fit.dynamics.training import (
    BOUND_PENALTY,
    Stack,
    _Batches,
    _Progress,
    held_out_loss,
    is_held_out,
    member_loss,
    train,
)

SIZES = Sizes(inputs=3, targets=2, hidden=(7, 5), termination=True)


def rows(count: int, seed: int = 0) -> Rows:
    rng = generator(seed, "rows")
    draw = rng.normal(size=(count, 3)).astype(np.float32)
    target = np.stack([draw.sum(1), draw[:, 0] * draw[:, 1]], axis=1) + 0.1 * rng.normal(size=(count, 2))
    return Rows(
        torch.from_numpy(draw),
        torch.from_numpy(target.astype(np.float32)),
        torch.from_numpy((draw[:, 0] > 0).astype(np.float32)),
    )


def every_row(data: Rows, members: int) -> Batch:
    rows_MN = Rows(*(t.expand(members, *t.shape) for t in (data.input_NI, data.target_NT, data.terminated_N)))
    return Batch((rows_MN,), (torch.ones(members, len(data)),))


def slow_member(weights, x, y, ended, decays, steps, learning_rate):
    """One member as plain torch modules with their own Adam, the L2 term written out in the loss as MBPO does."""
    layers = [torch.nn.Linear(*weights[f"weight_{k}"].shape) for k in range(3)]
    for k, layer in enumerate(layers):
        layer.weight.data, layer.bias.data = weights[f"weight_{k}"].T.clone(), weights[f"bias_{k}"][0].clone()
    upper, lower = (weights[name][0].clone().requires_grad_() for name in ("max_log_var", "min_log_var"))
    parameters = [p for layer in layers for p in layer.parameters()]
    adam = torch.optim.Adam([*parameters, upper, lower], lr=learning_rate)
    softplus = torch.nn.functional.softplus
    for _ in range(steps):
        h = x
        for layer in layers[:-1]:
            h = layer(h)
            h = h * torch.sigmoid(h)
        out = layers[-1](h)
        mean, log_var, logit = out[:, :2], out[:, 2:4], out[:, 4]
        log_var = lower + softplus(upper - softplus(upper - log_var) - lower)
        loss = ((mean - y) ** 2 / log_var.exp() + log_var).mean()
        p = torch.sigmoid(logit)
        loss = loss - (ended * p.log() + (1 - ended) * (1 - p).log()).mean()
        loss = loss + BOUND_PENALTY * (upper.sum() - lower.sum())
        loss = loss + sum(0.5 * decay * (layer.weight**2).sum() for decay, layer in zip(decays, layers, strict=True))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {f"weight_{k}": layer.weight.detach().T for k, layer in enumerate(layers)} | {
        "max_log_var": upper.detach(),
        "min_log_var": lower.detach(),
    }


def test_vectorized_steps_equal_one_plain_module_per_member():
    settings = GaussianEnsembleSettings(members=3, hidden=(7, 5), weight_decay=(1e-2, 5e-2), learning_rate=3e-3)
    weights = initial_weights(SIZES, range(3), seed=1)
    data = rows(32)
    stack = Stack(settings, weights)
    batch = every_row(data, 3)
    for _ in range(5):
        stack.step(batch)
    trained = stack.weights()
    for member in range(3):
        slow = slow_member(
            {name: weight[member] for name, weight in weights.items()},
            data.input_NI,
            data.target_NT,
            data.terminated_N,
            decays=(1e-2, 5e-2, 5e-2),
            steps=5,
            learning_rate=3e-3,
        )
        for name, value in slow.items():
            torch.testing.assert_close(trained[name][member].reshape(value.shape), value, rtol=1e-4, atol=2e-5)


def test_weightless_padding_changes_no_loss():
    settings = GaussianEnsembleSettings(members=2, hidden=(7, 5))
    weights, data = initial_weights(SIZES, range(2), seed=1), rows(19)
    expected = member_loss(settings, weights, every_row(data, 2))
    padded = Side(data).across(2)
    assert padded.steps[0].input_NI.shape == (2, 32, 3)
    torch.testing.assert_close(member_loss(settings, weights, padded), expected)
    taken = Side(data).take(torch.arange(19).expand(2, -1))
    assert taken.steps[0].input_NI.shape == (2, 32, 3)
    torch.testing.assert_close(member_loss(settings, weights, taken), expected)


@pytest.mark.parametrize("batches", ["bootstrap", "shared"])
def test_an_epoch_sees_each_sampled_row_once(batches):
    settings = GaussianEnsembleSettings(members=2, batch_size=10, batches=batches)
    sampler = _Batches(
        settings, Side(rows(25)), [generator(0, "a"), generator(0, "b" if batches == "bootstrap" else "a")]
    )
    first, second = sampler.epoch(), sampler.epoch()
    assert [batch.shape[1] for batch in first] == [9, 8, 8]
    once, again = (torch.cat(epoch, dim=1) for epoch in (first, second))
    assert not torch.equal(once, again)
    assert torch.equal(once.sort().values, again.sort().values)
    if batches == "shared":
        assert torch.equal(once[0], once[1])
        assert once[0].sort().values.tolist() == list(range(25))
    else:
        assert not torch.equal(once[0].sort().values, once[1].sort().values)
        assert len(once[0].unique()) < 25


def test_held_out_rows_never_change_sides():
    numbers = np.arange(40_000, dtype=np.int64)
    sides = is_held_out(7, numbers, 0.2)
    assert sides.mean() == pytest.approx(0.2, abs=4 * (0.16 / 40_000) ** 0.5)
    assert np.array_equal(is_held_out(7, numbers[12_345:20_000], 0.2), sides[12_345:20_000])
    assert not np.array_equal(is_held_out(8, numbers, 0.2), sides)
    neighbors = np.corrcoef(sides[:-1], sides[1:])[0, 1]
    assert abs(neighbors) < 0.03
    assert np.all(is_held_out(7, numbers, 0.3)[sides]), "a larger share only adds rows"


def test_patience_counts_relative_gains_and_keeps_any_better_loss():
    progress = _Progress(GaussianEnsembleSettings(patience=2, min_gain=0.1), 200)

    def improves(loss: float) -> bool:
        progress.epochs += 1
        assert progress.due
        return progress.improves(loss)

    assert improves(1.0)
    assert improves(0.95)  # better, though no gain of 10 percent
    assert not progress.stopped
    assert improves(0.89)  # 11 percent below 1.0
    assert not improves(0.9)
    assert not progress.stopped
    assert improves(0.85)
    assert progress.stopped
    assert (progress.loss, progress.epochs) == (0.85, 5)


def test_held_out_loss_is_the_squared_error_whatever_the_training_loss():
    settings = GaussianEnsembleSettings(members=2, hidden=(4,))
    sizes = Sizes(3, 2, (4,), False)
    weights = initial_weights(sizes, (0, 1), 0)
    rows = Rows(torch.randn(40, 3), torch.randn(40, 2), None)
    batch = Side(rows).across(2)
    error_MBT = forward(weights, rows.input_NI.expand(2, -1, -1)).mean - rows.target_NT
    by_hand_M = error_MBT.square().mean(dim=(1, 2))
    torch.testing.assert_close(held_out_loss(settings, weights, batch), by_hand_M)
    assert not torch.allclose(member_loss(settings, weights, batch), by_hand_M)
    weight_BT = torch.rand(40, 2)
    weighted = Side(Rows(rows.input_NI, rows.target_NT, None, weight_BT)).across(2)
    by_hand_M = (weight_BT * error_MBT.square()).mean(dim=(1, 2))
    torch.testing.assert_close(held_out_loss(settings, weights, weighted), by_hand_M)


@pytest.mark.parametrize("batches", ["bootstrap", "shared"])
def test_each_member_gets_its_own_best_weights_back(batches):
    """The returned weights reproduce the reported best loss of every member, and no member depends on the others."""
    settings = GaussianEnsembleSettings(
        members=4, hidden=(7, 5), batch_size=32, max_epochs=60, patience=2, batches=batches, learning_rate=2e-2
    )
    training, held_out = rows(300), rows(100, seed=1)

    def run(ids):
        rngs = [generator(0, "shared" if batches == "shared" else f"{member}") for member in ids]
        return train(settings, initial_weights(SIZES, ids, 2), Side(training), Side(held_out), ids, rngs)

    whole = run((0, 1, 2, 3))
    assert len(set(whole.epochs_M)) > 1, "the case is only telling when members stop at different times"
    output = forward(whole.weights, held_out.input_NI.expand(4, -1, -1))
    loss_M = (output.mean - held_out.target_NT).square().mean(dim=(1, 2))
    loss_M = loss_M + torch.nn.functional.binary_cross_entropy_with_logits(
        output.logit, held_out.terminated_N.expand(4, -1), reduction="none"
    ).mean(dim=1)
    np.testing.assert_allclose(loss_M.numpy(), whole.held_out_loss_M, rtol=1e-4, atol=1e-5)
    for member in range(4):
        alone = run((member,))
        assert alone.epochs_M == whole.epochs_M[member : member + 1]
        for name, weight in alone.weights.items():
            assert torch.equal(weight[0], whole.weights[name][member]), name


def test_a_snapshot_is_taken_of_the_members_that_improved_and_of_no_other(monkeypatch):
    """One of three improves in the second epoch: the other two get the weights of the first one back."""
    told = iter([[1.0, 1.0, 1.0], [9.0, 0.5, 9.0]])
    seen = []

    def scores(stack, *_):
        seen.append(stack.weights())
        return next(told)

    monkeypatch.setattr(training_module, "_scores", scores)
    settings = GaussianEnsembleSettings(members=3, hidden=(7, 5), max_epochs=2, learning_rate=1e-2)
    rngs = [generator(0, f"{member}") for member in range(3)]
    weights = initial_weights(SIZES, range(3), 0)
    trained = train(settings, weights, Side(rows(60)), Side(rows(20, seed=1)), range(3), rngs)
    assert trained.held_out_loss_M.tolist() == [1.0, 0.5, 1.0]
    first, second = seen
    for name, weight in trained.weights.items():
        assert not torch.equal(first[name], second[name])
        for member, expected in enumerate((first, second, first)):
            assert torch.equal(weight[member], expected[name][member]), (name, member)


def test_a_budget_is_spent_exactly_and_ends_with_the_last_weights():
    settings = GaussianEnsembleSettings(members=3, hidden=(7, 5), stopping="budget", batch_size=32, learning_rate=1e-2)
    training, held_out, budgets = Side(rows(100)), Side(rows(40, seed=1)), [3, 1, 5]
    weights = initial_weights(SIZES, range(3), 0)
    trained = train(settings, weights, training, held_out, range(3), [generator(0, f"{m}") for m in range(3)], budgets)
    assert trained.epochs_M == (3, 1, 5)
    assert trained.updates == 5 * 4
    losses_M = held_out_loss(settings, trained.weights, held_out.across(3))
    np.testing.assert_allclose(losses_M.numpy(), trained.held_out_loss_M, rtol=1e-5)
    for member, budget in enumerate(budgets):
        one = Stack(settings, initial_weights(SIZES, (member,), 0))
        batches = _Batches(settings, training, [generator(0, f"{member}")])
        for _ in range(budget):
            for index_AB in batches.epoch():
                one.step(training.take(index_AB))
        for name, weight in one.weights().items():
            assert torch.equal(trained.weights[name][member], weight[0]), name


def test_a_member_that_diverges_is_named():
    settings = GaussianEnsembleSettings(members=2, hidden=(7, 5))
    weights = initial_weights(SIZES, (4, 9), 0)
    weights["bias_1"][1] = torch.nan
    with pytest.raises(NonFiniteValue, match="member 9"):
        train(settings, weights, Side(rows(40)), Side(rows(10)), (4, 9), [generator(0, "a"), generator(0, "b")])


def test_initial_weights_are_those_of_the_members_wherever_they_are_held():
    sizes = Sizes(inputs=400, targets=2, hidden=(300,), termination=False)
    whole, shard = initial_weights(sizes, range(4), 3), initial_weights(sizes, (3, 1), 3)
    for name in whole:
        assert torch.equal(whole[name][[3, 1]], shard[name])
    scaled = whole["weight_0"] * 2 * 400**0.5
    assert scaled.abs().max() <= 2.0
    assert scaled.std().item() == pytest.approx(0.8796, abs=0.005)  # of a standard normal cut at two deviations
    assert not torch.equal(whole["weight_0"][0], whole["weight_0"][1])


def test_a_constant_column_keeps_its_scale():
    data = torch.tensor([[1.0, 1000.1, 0.0], [3.0, 1000.1, 0.0], [5.0, 1000.1, 0.0]])
    normalizer = Normalizer.of(data)
    assert normalizer.std.tolist() == pytest.approx([(8 / 3) ** 0.5, 1.0, 1.0])
    assert normalizer(data).mean(dim=0).abs().max() < 1e-4


def test_log_variance_stays_within_learned_bounds():
    sizes = Sizes(inputs=1, targets=1, hidden=(4,), termination=False)
    weights = initial_weights(sizes, (0,), 0)
    for push, bound in ((1e4, 0.5), (-1e4, -10.0)):
        weights["bias_1"][0, 0, 1] = push
        assert forward(weights, torch.zeros(1, 1, 1)).log_var.item() == pytest.approx(bound, abs=1e-3)
