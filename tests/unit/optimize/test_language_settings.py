"""What the settings refuse, with the reason, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxygap.optimize.language.settings import Grpo, Kl, LanguageOptimizer, Reinforce, Rloo, TokenPpo


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"place": "loss", "estimator": "k1"}, "mean zero"),
        ({"place": "reward", "estimator": "k3"}, "not the gradient of any KL"),
        ({"coefficient": 0.0, "target": 1.0}, "cannot be steered"),
        ({"coefficient": -0.1}, "greater than or equal to 0"),
    ],
)
def test_a_penalty_that_would_not_do_what_it_says_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Kl(**options)


@pytest.mark.parametrize("kind", [Grpo, Rloo])
def test_a_group_of_one_is_refused(kind: Any) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        kind(answers_per_prompt=1)


def test_a_gpu_needs_a_remote_learner() -> None:
    with pytest.raises(ValidationError, match="set learners to 1"):
        Grpo(gpus_per_learner=1.0)


@pytest.mark.parametrize("kind", [TokenPpo, Grpo, Rloo, Reinforce])
def test_kind_picks_the_optimizer(kind: Any) -> None:
    made = TypeAdapter(LanguageOptimizer).validate_python({"kind": kind().kind, "learning_rate": 0.5})
    assert type(made) is kind
    assert made.family == "language"


def test_updates_are_counted_beforehand() -> None:
    settings = Rloo(prompts_per_iteration=5, answers_per_prompt=4, epochs=3, minibatch=8)
    assert (settings.answers_per_iteration, settings.updates_per_iteration) == (20, 9)
    assert Rloo().updates_per_iteration == 1


def test_the_reference_is_asked_only_where_it_matters() -> None:
    assert Grpo().needs_reference
    assert not Rloo(kl=Kl(coefficient=0.0)).needs_reference
