"""Estimates of the model's error, noise on rewards and losses of critics in an experiment file."""

from __future__ import annotations

from typing import Any

import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment, validate

BASE: dict[str, Any] = {
    "name": "x",
    "question": "Does it?",
    "task": {"kind": "continuous_cartpole"},
    "outcomes": ["return"],
    "loop": {"kind": "mbpo", "real_steps": 1000},
}


def experiment(**sections: Any) -> Experiment:
    return validate({**BASE, **sections})


def test_sections_are_read():
    found = experiment(
        uncertainty=[{"kind": "disagreement"}, {"kind": "deup", "features": ["density", "inputs"]}],
        optimize={"critic_loss": {"kind": "generalized_gaussian", "members": 2}},
        collect={"reward_noise": {"kind": "student_t", "where": "first_positive"}},
    )
    assert [part.kind for part in found.uncertainty] == ["disagreement", "deup"]
    assert found.optimize is not None
    assert found.optimize.module(7)["members"] == 2
    assert experiment().optimize.module(7) | {"members": 1, "shaped": False} == experiment().optimize.module(7)


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"uncertainty": [{"kind": "deup"}, {"kind": "deup"}]}, "uncertainty"),
        ({"uncertainty": [{"kind": "deup"}], "loop": {"kind": "sac", "real_steps": 1000}}, "uncertainty"),
        (
            {
                "uncertainty": [{"kind": "deup"}],
                "loop": {"kind": "model_population", "models": 3},
                "data": {"kind": "random", "rows": 100},
            },
            "uncertainty",
        ),
        ({"uncertainty": [{"kind": "deup", "features": ["seen", "seen"]}]}, "uncertainty.0"),
        ({"uncertainty": [{"kind": "guess"}]}, "uncertainty"),
        (
            {"collect": {"reward_noise": {"kind": "gaussian"}}, "loop": {"kind": "ppo", "real_steps": 4096}},
            "collect.reward_noise.kind",
        ),
        (
            {
                "collect": {"reward_noise": {"kind": "gaussian"}},
                "task": {"kind": "mo_gymnasium", "id": "mo-mountaincarcontinuous-v0"},
            },
            "collect.reward_noise.kind",
        ),
        ({"collect": {"reward_noise": {"kind": "student_t", "degrees": 0.5}}}, "collect.reward_noise.degrees"),
        ({"optimize": {"critic_loss": {"kind": "generalized_gaussian", "members": 0}}}, "members"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(sections, field):
    with pytest.raises(InvalidExperiment) as refused:
        experiment(**sections)
    assert field in refused.value.field
    assert refused.value.remedy
