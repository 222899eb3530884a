from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from proxygap.base.seeds import generator
from proxygap.fit.dynamics.generalized_gaussian import GeneralizedGaussian
from proxygap.fit.dynamics.losses import Likelihood, SquaredError
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.testing.dynamics import linear_transitions

DATA = linear_transitions(generator(0, "data"), 120)


def fitted(*, loss=None, hidden=(24, 24), learned=True, members=5, member_ids=None, fits=1):
    settings = GaussianEnsembleSettings(
        members=members, hidden=hidden, batch_size=40, max_epochs=3, loss=loss or Likelihood()
    )
    model = settings.build(
        obs_size=3, action_size=2, learn_reward=learned, learn_termination=learned, seed=5, member_ids=member_ids
    )
    for _ in range(fits):
        model.fit(DATA, 0)
    return model


def rows(members, count=37, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(members, count, 3, generator=rng), 2 * torch.rand(members, count, 2, generator=rng) - 1


def compared(prediction, model, member_ids, obs_KBO, action_KBA, **tolerance):
    """Against `predict` of the same members on the same rows, field by field."""
    for k, member in enumerate(member_ids):
        exact = model.predict(obs_KBO[k], action_KBA[k])
        place = model.member_ids.index(member)
        for field in dataclasses.fields(exact):
            found, expected = getattr(prediction, field.name), getattr(exact, field.name)
            assert (found is None) == (expected is None), field.name
            if found is not None:
                assert found.dtype == torch.float32
                torch.testing.assert_close(found[k], expected[place], **tolerance)


@pytest.mark.parametrize("member_ids", [(0, 1, 2, 3, 4), (1, 2, 3), (4, 0, 3), (2, 2, 0), (3,)], ids=str)
@pytest.mark.parametrize("loss", [Likelihood(), SquaredError(), GeneralizedGaussian()], ids=lambda loss: loss.kind)
def test_members_step_as_they_predict(loss, member_ids):
    model = fitted(loss=loss)
    obs_KBO, action_KBA = rows(len(member_ids))
    prediction = model.step_members(member_ids, obs_KBO, action_KBA)
    compared(prediction, model, member_ids, obs_KBO, action_KBA, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 300, 5000])
def test_many_rows_and_few_agree(count):
    model = fitted(hidden=(64, 64, 64), learned=False)
    obs_KBO, action_KBA = rows(2, count)
    prediction = model.step_members((3, 1), obs_KBO, action_KBA)
    assert prediction.target_mean.shape == (2, count, 3)
    compared(prediction, model, (3, 1), obs_KBO, action_KBA, rtol=1e-4, atol=1e-5)


def test_bfloat16_errs_by_its_own_rounding():
    """Errors stay within a few roundings (2^-8) of the targets' own scale."""
    model = fitted(hidden=(200, 200, 200))
    obs_KBO, action_KBA = rows(3, 500)
    exact = model.step_members((4, 0, 2), obs_KBO, action_KBA)
    coarse = model.step_members((4, 0, 2), obs_KBO, action_KBA, "bfloat16")
    scale_T = exact.target_mean.std(dim=(0, 1))
    error_T = (coarse.target_mean - exact.target_mean).abs().mean(dim=(0, 1))
    assert coarse.target_mean.dtype == coarse.target_std.dtype == torch.float32
    assert bool((error_T > 0).all()), "it is another arithmetic"
    assert bool((error_T < 0.02 * scale_T).all()), (error_T / scale_T).tolist()
    torch.testing.assert_close(coarse.target_std, exact.target_std, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stepping_is_pure_and_follows_the_weights(precision):
    model, other = fitted(), fitted(fits=2)
    obs_KBO, action_KBA = rows(2)
    kept, state = obs_KBO.clone(), model.state()
    first = model.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean
    again = model.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean
    assert torch.equal(first, again)
    assert torch.equal(obs_KBO, kept)
    for more in range(6):
        model.step_members((more % 5, more % 3), obs_KBO, action_KBA, precision)
    assert torch.equal(first, model.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean)
    assert all(np.array_equal(array, state.arrays[name]) for name, array in model.state().arrays.items())
    model.load_state(other.state())
    theirs = other.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean
    assert torch.equal(model.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean, theirs)
    assert not torch.equal(first, theirs)
    model.fit(DATA, 0)
    assert not torch.equal(model.step_members((4, 1), obs_KBO, action_KBA, precision).target_mean, theirs)


def test_a_shard_steps_what_it_holds():
    shard, whole = fitted(member_ids=(1, 4)), fitted()
    obs_KBO, action_KBA = rows(2)
    torch.testing.assert_close(
        shard.step_members((4, 1), obs_KBO, action_KBA).target_mean,
        whole.step_members((4, 1), obs_KBO, action_KBA).target_mean,
    )
    with pytest.raises(ValueError, match=r"members \[0\] are not held here"):
        shard.step_members((0, 1), obs_KBO, action_KBA)


def test_rows_of_members_in_bfloat16_are_those_of_its_steps():
    model = fitted(hidden=(64, 64))
    obs_KBO, action_KBA = rows(3, 40)
    steps = model.step_members((4, 0, 2), obs_KBO, action_KBA, "bfloat16")
    member_B = torch.tensor([4, 0, 2]).repeat_interleave(40)
    found = model.predict_rows(member_B, obs_KBO.flatten(0, 1), action_KBA.flatten(0, 1), "bfloat16")
    torch.testing.assert_close(found.target_mean, steps.target_mean.flatten(0, 1), rtol=0.01, atol=0.01)
    exact = model.predict_rows(member_B, obs_KBO.flatten(0, 1), action_KBA.flatten(0, 1))
    assert not torch.equal(found.target_mean, exact.target_mean)
    torch.testing.assert_close(found.target_mean, exact.target_mean, rtol=0.05, atol=0.05)
    shard = fitted(hidden=(64, 64), member_ids=(2, 4))
    mine = member_B != 0
    held = shard.predict_rows(member_B[mine], *(rows.flatten(0, 1)[mine] for rows in (obs_KBO, action_KBA)), "bfloat16")
    assert torch.equal(held.target_mean, found.target_mean[mine])
