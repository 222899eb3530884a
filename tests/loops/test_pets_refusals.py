"""What of planning in a learned model is refused before launch, with which words."""

from __future__ import annotations

from typing import Any

import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import validate

PETS: dict[str, Any] = {
    "name": "small",
    "question": "What is refused?",
    "task": {"kind": "continuous_cartpole"},
    "outcomes": ["return"],
    "loop": {"kind": "pets", "real_steps": 1000},
}
GRID = {"kind": "grid", "points": 2, "half_width": [0.1]}


def test_what_goes_together_is_accepted() -> None:
    experiment = validate(PETS)
    experiment.check()
    assert experiment.optimize is None
    assert experiment.learners == (0, 0.0)
    assert experiment.objective == "held_out_log_likelihood"
    assert validate({**PETS, "probe": {"objective": "plan_return"}}).objective == "plan_return"
    learned = validate({**PETS, "task": {"kind": "gymnasium", "id": "InvertedPendulum-v5"}})
    learned.check()
    validate({**PETS, "fit": {"loss": {"kind": "value_gradient"}}}).check()
    validate({**PETS, "fit": {"loss": {"kind": "expert_distance"}}, "expert": GRID}).check()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimize": {"kind": "sac"}}, r"optimize\.kind: 'sac' is not for loop 'pets'. .*remove the section"),
        (
            {"plan": {"planner": {"kind": "cem", "horizon": 300}}},
            r"plan\.planner\.horizon = 300: .*200 steps.*Lower it",
        ),
        ({"plan": {"replan_every": 16}}, r"replan_every = 16 exceeds planner\.horizon = 15"),
        ({"plan": {"planner": {"kind": "cme"}}}, r"Did you mean 'cem'"),
        ({"task": {"kind": "mo_gymnasium", "id": "mo-hopper-v5"}}, r"loop\.kind = 'pets': .*pays 3 rewards"),
        (
            {"task": {"kind": "mo_gymnasium", "id": "deep-sea-treasure-concave-v0"}},
            r"loop\.kind = 'pets': .*choice among 4 actions, and pets acts",
        ),
        (
            {"fit": {"loss": {"kind": "expert_distance"}}},
            r"fit\.loss\.kind = 'expert_distance': .*Add the section expert",
        ),
        (
            {
                "fit": {"loss": {"kind": "value_gradient"}},
                "task": {"kind": "gymnasium", "id": "InvertedPendulum-v5"},
            },
            r"has no law of motion and reward that are known",
        ),
        ({"probe": {"objective": "value_estimate"}}, r"loop 'pets' does not measure 'value_estimate'"),
        ({"probe": {"objective": "expert_mse"}}, r"probe\.objective = 'expert_mse': .*section expert"),
    ],
)
def test_what_does_not_is_refused_with_a_remedy(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidExperiment, match=told):
        validate({**PETS, **changes}).check()
