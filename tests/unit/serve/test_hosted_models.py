"""Every model that can be hosted keeps the clauses of `HostedModel`; members are dealt out evenly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import NonFiniteValue
from proxygap.base.protocols import Arrays, HostedModel
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.serve.dynamics import build_shard, shard_members
from proxygap.testing import hosted

SETTINGS = GaussianEnsembleSettings(members=3, hidden=(8,), max_epochs=2, batch_size=16)


def ensemble() -> HostedModel:
    return build_shard(
        settings=SETTINGS.model_dump(mode="json"),
        member_ids=[0, 1, 2],
        device="cpu",
        obs_size=2,
        action_size=1,
        learn_reward=True,
        learn_termination=True,
        seed=3,
    )


def affine() -> HostedModel:
    return hosted.Affine(factor=2.0, shift=1.0)


RNG = np.random.default_rng(0)
INPUTS: Arrays = {"obs_BO": RNG.normal(size=(9, 2)).astype(np.float32), "action_BA": np.zeros((9, 1), np.float32)}
CASES: list[tuple[Callable[[], HostedModel], str, Arrays]] = [
    (affine, "apply", {"x_BF": RNG.normal(size=(9, 3))}),
    (ensemble, "predict", INPUTS),
    (ensemble, "predict_rows", {"member_B": np.arange(9) % 3, **INPUTS}),
]


@pytest.mark.parametrize(("make", "method", "arrays"), CASES)
def test_calls_are_pure_batchable_and_take_read_only_arrays(
    make: Callable[[], HostedModel], method: str, arrays: dict[str, Any]
) -> None:
    hosted.check_pure(make, method, arrays, {})
    hosted.check_rows_independent(make, method, arrays, {})
    hosted.check_read_only_inputs(make, method, arrays, {})


def test_the_fake_keeps_its_state() -> None:
    hosted.check_state_round_trip(affine, "fit", "apply", {"x_BF": np.ones((2, 2))}, {})
    with pytest.raises(NonFiniteValue):
        affine().call("checked", {"x_BF": np.array([np.inf])}, {})


def test_a_clause_that_is_broken_is_caught() -> None:
    class Forgetful(hosted.Affine):
        def call(self, method: str, arrays: Any, options: Any) -> Arrays:
            super().call("fit", arrays, options)
            return super().call(method, arrays, options)

    with pytest.raises(AssertionError):
        hosted.check_pure(lambda: Forgetful(factor=1.0), "apply", {"x_BF": np.ones((2, 2))}, {})


def test_members_are_dealt_evenly_in_order_and_never_to_an_idle_host() -> None:
    assert shard_members(7, 3) == [(0, 1, 2), (3, 4), (5, 6)]
    assert shard_members(2, 5) == [(0,), (1,)]
    assert shard_members(4, 1) == [(0, 1, 2, 3)]
