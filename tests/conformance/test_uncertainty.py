"""Every estimate of a dynamics model's error, against the clauses of `proxygap.testing.uncertainty`."""

from __future__ import annotations

import pytest
import torch

from proxygap.base.seeds import generator
from proxygap.fit.uncertainty.deup import Deup
from proxygap.fit.uncertainty.settings import DeupSettings, DisagreementSettings
from proxygap.registry import parts
from proxygap.testing.dynamics import LinearDynamics, linear_transitions
from proxygap.testing.uncertainty import check_uncertainty

SMALL = {"updates": 20, "hidden": (8,), "sample": 40, "batch_size": 16}
ALL = DeupSettings(**SMALL, features=("density", "variance", "seen", "inputs"), aleatoric="neighbors", logged=40)
KINDS = [
    DisagreementSettings(),
    DeupSettings(**SMALL),
    ALL,
    DeupSettings(**SMALL, features=("density",), aleatoric="predicted", loss="squared"),
]


def model() -> LinearDynamics:
    return LinearDynamics(torch.ones(5, 4), torch.arange(8.0).reshape(2, 4) / 10, std=0.1)


@pytest.mark.parametrize("settings", KINDS, ids=["disagreement", "deup", "deup-all", "deup-squared"])
def test_uncertainty(settings):
    data = linear_transitions(generator(0, "data"), 120)
    check_uncertainty(lambda: settings.build(seed=3), model(), data)


def test_every_kind_has_its_row():
    assert {settings.kind for settings in KINDS} == {part.kind for part in parts("uncertainty")}


def test_the_suite_notices_an_estimate_that_forgets_what_it_logged():
    class Forgetful(Deup):
        def state(self):
            state = super().state()
            return type(state)({k: v for k, v in state.arrays.items() if not k.startswith("logged")}, state.structure)

    data = linear_transitions(generator(0, "data"), 120)
    with pytest.raises(AssertionError):
        check_uncertainty(lambda: Forgetful(ALL, seed=3), model(), data)
