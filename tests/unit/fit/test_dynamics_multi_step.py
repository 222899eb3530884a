"""Open-loop losses against a slow loop in raw units, one row, one member and one step at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.dynamics.generalized_gaussian import GeneralizedGaussian
from proxygap.fit.dynamics.losses import Likelihood, MultiStep, SquaredError
from proxygap.fit.dynamics.network import Normalizer, Sizes, forward, initial_weights
from proxygap.fit.dynamics.rows import Rows
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.fit.dynamics.supervision import fit_weights, raw_rows, side, successors
from proxygap.fit.dynamics.training import BOUND_PENALTY, Stack, held_out_loss, member_loss
from proxygap.testing.dynamics import linear_transitions


def episodes(lengths: list[int], seed: int = 0) -> Transitions:
    """A random walk with a law, in episodes of the given lengths, one after the other."""
    rng, parts = generator(seed, "episodes"), []
    for number, length in enumerate(lengths):
        rows = linear_transitions(rng, length, obs_size=2, action_size=1)
        obs = [rng.normal(size=2)]
        for action in rows.action_BA[:, 0]:
            obs.append(0.8 * obs[-1] + [0.2 * action, 0.1 * obs[-1][0]] + 0.05 * rng.normal(size=2))
        path = np.array(obs, np.float32)
        parts.append(
            replace(
                rows,
                obs_BO=path[:-1],
                next_obs_BO=path[1:],
                outcome_reward_B=path[1:, 0].copy(),
                terminated_B=np.arange(length) == length - 1,
                episode_B=np.full(length, number),
                step_B=np.arange(length),
            )
        )
    return Transitions.concatenate(parts)


def test_successors_follow_an_episode_wherever_its_rows_are():
    data = episodes([3, 2])
    assert successors(data).tolist() == [1, 2, -1, 4, -1]
    mixed = data[np.array([3, 0, 4, 1, 2])]
    assert successors(mixed).tolist() == [2, 3, -1, 4, -1]
    torn = replace(data, obs_BO=data.obs_BO + np.array([[0], [1], [0], [0], [0]], np.float32))
    assert successors(torn).tolist() == [-1, 2, -1, 4, -1]
    gap = data[np.array([0, 2, 3, 4])]
    assert successors(gap).tolist() == [-1, -1, 3, -1]


def slow_loss(weights, data, inside, settings, inputs, targets, held: bool) -> list[float]:
    """The definition: raw states, one path at a time; a step counts if its row is inside."""
    loss = SquaredError() if held else settings.loss
    weight_of = settings.loss.step_weights
    order, shaped = set(inside.tolist()), False
    std_T = targets.std
    raw = std_T.square() / std_T.square().mean() if settings.loss.raw_units else torch.ones_like(std_T)
    totals = []
    for member in range(len(weights["max_log_var"])):
        own = {name: weight[member : member + 1] for name, weight in weights.items()}
        per_row = []
        for start in inside:
            obs, row, parts, shares = torch.from_numpy(data.obs_BO[start]), int(start), [], []
            for step, share in enumerate(weight_of):
                action = torch.from_numpy(data.action_BA[row])
                output = forward(own, inputs(torch.cat([obs, action]))[None, None], shaped=shaped)
                change = torch.from_numpy(data.next_obs_BO[row]) - obs
                target = torch.cat([change, torch.tensor([data.outcome_reward_B[row]])])
                value = loss(output, targets(target)[None, None], raw[None, None])
                ended = torch.tensor([[float(data.terminated_B[row])]])
                value = value + torch.nn.functional.binary_cross_entropy_with_logits(output.logit, ended)
                if row in order:
                    parts.append(share * value)
                    shares.append(share)
                obs = obs + (output.mean[0, 0] * targets.std + targets.mean)[:2]
                last = row + 1 == len(data) or data.episode_B[row + 1] != data.episode_B[row]
                if last or step + 1 == len(weight_of):
                    break
                row += 1
            per_row.append(torch.stack(parts).sum() / sum(shares))
        totals.append(torch.stack(per_row).mean())
    return totals


@pytest.mark.parametrize(
    "loss",
    [
        MultiStep(steps=4, discount=0.7),
        MultiStep(steps=3, base=Likelihood()),
        MultiStep(steps=3, base=SquaredError(scale="raw")),
        SquaredError(scale="raw"),
        Likelihood(),
    ],
    ids=str,
)
def test_losses_and_gradients_equal_a_slow_loop(loss):
    data = episodes([5, 1, 4, 7])
    settings = GaussianEnsembleSettings(members=2, hidden=(6,), loss=loss)
    weights = initial_weights(Sizes(3, 3, (6,), True), range(2), 0)
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    inside = np.array([0, 1, 3, 4, 5, 7, 8, 10, 11, 12, 16])
    raw = raw_rows(data, True, torch.device("cpu"))
    inputs, targets = Normalizer.of(raw.input_NI[inside]), Normalizer.of(raw.target_NT[inside])
    scale = targets.std if loss.raw_units else None
    weight_NT = fit_weights(None, raw.target_NT, inside, scale)
    whole = Rows(inputs(raw.input_NI), targets(raw.target_NT), raw.terminated_N, weight_NT)
    own = side(data, whole, inside, loss, inputs, targets)
    index_MB = torch.arange(len(inside)).expand(2, -1)
    slow = torch.stack(slow_loss(weights, data, inside, settings, inputs, targets, held=False))
    expected = torch.autograd.grad(slow.sum(), list(weights.values()), allow_unused=True)
    for batch in (own.across(2), own.take(index_MB)):
        given = member_loss(settings, weights, batch)
        torch.testing.assert_close(given, slow, rtol=1e-4, atol=1e-5)
        for one, other in zip(
            torch.autograd.grad(given.sum(), list(weights.values()), allow_unused=True), expected, strict=True
        ):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)
    held = torch.stack(slow_loss(weights, data, inside, settings, inputs, targets, held=True))
    torch.testing.assert_close(held_out_loss(settings, weights, own.across(2)), held, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss", [Likelihood(), GeneralizedGaussian(), MultiStep(steps=3), MultiStep(steps=4, base=Likelihood())], ids=str
)
def test_gradients_written_by_hand_equal_those_of_autograd(loss):
    """Batches of several sizes in turn, so that memory of earlier steps is used again."""
    data = episodes([9, 12, 20, 30])
    settings = GaussianEnsembleSettings(members=3, hidden=(6, 5), loss=loss, learning_rate=1e-2)
    sizes = Sizes(3, 3, (6, 5), True, loss.learns_shape)
    raw, inside = raw_rows(data, True, torch.device("cpu")), np.arange(len(data))
    inputs, targets = Normalizer.of(raw.input_NI), Normalizer.of(raw.target_NT)
    whole = Rows(inputs(raw.input_NI), targets(raw.target_NT), raw.terminated_N, torch.rand(len(data), 3))
    own, stack = side(data, whole, inside, loss, inputs, targets), Stack(settings, initial_weights(sizes, range(3), 0))
    for count in (40, 20, 40, 7):
        batch = own.take(torch.randint(len(data), (3, count)))
        leaves = {name: weight.requires_grad_() for name, weight in stack.weights().items()}
        penalty = BOUND_PENALTY * (leaves["max_log_var"].sum() - leaves["min_log_var"].sum())
        total = member_loss(settings, leaves, batch).sum() + penalty
        expected = torch.autograd.grad(total, list(leaves.values()))
        stack.step(batch)
        for (name, given), wanted in zip(stack._grads.items(), expected, strict=True):
            torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


def build(loss: dict):
    settings = GaussianEnsembleSettings(members=2, hidden=(9,), loss=loss, batch_size=32, max_epochs=6)
    return settings.build(obs_size=2, action_size=1, learn_reward=True, learn_termination=True, seed=3)


def test_one_step_is_the_base_loss_bit_for_bit():
    data = episodes([20, 30, 25])
    for base in ({"kind": "mse"}, {"kind": "likelihood"}):
        one, plain = build({"kind": "multi_step", "steps": 1, "base": base}), build(base)
        one.fit(data, 0)
        plain.fit(data, 0)
        for name, array in plain.state().arrays.items():
            assert np.array_equal(array, one.state().arrays[name]), name


def test_rows_without_successors_are_fitted_as_one_step():
    """Every row an episode of its own: nothing follows, whatever the number of steps."""
    data = linear_transitions(generator(0, "data"), 200, obs_size=2, action_size=1)
    several, one = build({"kind": "multi_step", "steps": 4}), build({"kind": "mse"})
    several.fit(data, 0)
    one.fit(data, 0)
    for name, array in one.state().arrays.items():
        np.testing.assert_allclose(several.state().arrays[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def noisy_readings(rng: np.random.Generator, length: int) -> Transitions:
    """A slow random walk x' = 0.99 x + noise of variance 1, read with noise of the same variance."""
    rows, x, readings = linear_transitions(rng, length, obs_size=1, action_size=1), rng.normal(), []
    for _ in range(length + 1):
        readings.append(x + rng.normal())
        x = 0.99 * x + (1 - 0.99**2) ** 0.5 * rng.normal()
    path = np.array(readings, np.float32)[:, None]
    return replace(
        rows,
        obs_BO=path[:-1],
        next_obs_BO=path[1:],
        action_BA=np.zeros((length, 1), np.float32),
        episode_B=np.zeros(length, np.int64),
        step_B=np.arange(length),
    )


def test_open_loop_training_predicts_further_where_one_step_misleads():
    """One step ahead the best slope is 0.99 / 2, which forgets in a few steps what lasts for a hundred.

    Eight steps ahead that slope leaves the whole variance, 2; the best slope there leaves 2 - 2 (0.99^8 / 2)^2 = 1.57.
    """
    rng = generator(0, "readings")
    data, fresh = noisy_readings(rng, 4000), noisy_readings(rng, 8000)
    start, errors = np.arange(0, 7990), {}
    for steps in (1, 8):
        settings = GaussianEnsembleSettings(
            members=1,
            hidden=(8,),
            loss={"kind": "multi_step", "steps": steps},
            batch_size=256,
            max_epochs=20,
            learning_rate=1e-2,
            stopping="budget",
        )
        model = settings.build(obs_size=1, action_size=1, learn_reward=False, learn_termination=False, seed=0)
        model.fit(data, 0)
        obs = torch.from_numpy(fresh.obs_BO[start])
        for _ in range(8):
            obs = obs + model.predict(obs, torch.zeros(len(start), 1)).target_mean[0]
        errors[steps] = (obs - torch.from_numpy(fresh.next_obs_BO[start + 7])).square().mean().item()
    assert errors[8] < 0.9 * errors[1]
