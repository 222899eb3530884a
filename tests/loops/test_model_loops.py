"""Populations of models, and attacks on models: blocks equal single models, runs resume exactly, attacks do harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment, validate
from proxygap.loops.adversarial_model import AdversarialModel
from proxygap.loops.last_layer import LastLayers, ranked
from proxygap.loops.model_data import model_data, room
from proxygap.loops.model_population import ModelPopulation, blocks, recipes
from proxygap.loops.model_settings import ModelPopulationLoop
from proxygap.loops.values import QuadraticValue
from proxygap.probe.catalog import OBJECTIVES
from proxygap.serve.model_block import Architecture

PLAN = {
    "planner": {"kind": "cem", "horizon": 6, "candidates": 12, "rounds": 2},
    "particles": 1,
    "propagation": "expectation",
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "question": "Does it run?",
    "task": {"kind": "continuous_cartpole", "max_episode_steps": 12},
    "outcomes": ["return"],
    "data": {"kind": "random", "rows": 300, "choose": "transitions"},
    "fit": {"kind": "gaussian_ensemble", "members": 2, "hidden": [8], "batch_size": 64},
    "plan": PLAN,
    "loop": {"kind": "model_population", "models": 6, "at_once": 4, "epochs": [1, 5]},
    "probe": {"episodes": 2, "resamples": 100},
}


def experiment(folder: Path, **sections: Any) -> Experiment:
    return validate({**TINY, "record": {"folder": str(folder)}, **sections})


def readings(loop: Any, steps: int) -> list[dict[str, str]]:
    found = []
    for _ in range(steps):
        loop.train()
        found.append({"clocks": repr(loop.clocks)} | {m.key: repr(m.value) for m in loop.measure()})
    return found


def test_every_model_is_visited_once_in_a_seeded_order(tmp_path: Path) -> None:
    loop = ModelPopulation(experiment(tmp_path), 0)
    measured = readings(loop, 6)
    visited = [int(float(each["model/number"])) for each in measured]
    assert sorted(visited) == list(range(6))
    assert visited == ModelPopulation(experiment(tmp_path), 0).order != ModelPopulation(experiment(tmp_path), 1).order
    ceilings = {each["model/ceiling_return"] for each in measured}
    assert len(ceilings) == 1
    assert len({each["objective/held_out_log_likelihood"] for each in measured}) == 6


def test_errors_that_the_value_weighs_are_those_of_the_predicted_next_state(tmp_path: Path) -> None:
    loop = ModelPopulation(experiment(tmp_path, fit={**TINY["fit"], "members": 1}), 0)
    loop._try(loop.blocks[0])
    rows, value = loop.data.held_out, QuadraticValue.of(loop.experiment.control_task)
    slope_BO = -2.0 * rows.next_obs_BO.astype(np.float64) @ value.cost_OO
    wrong_QBO = loop.population.predict(rows.obs_BO, rows.action_BA) + rows.obs_BO - rows.next_obs_BO
    expected_Q = np.square(slope_BO * wrong_QBO).sum(axis=-1).mean(axis=-1)
    found_Q = loop.found["held_out_value_error"][list(loop.blocks[0])]
    np.testing.assert_allclose(found_Q, expected_Q, rtol=1e-3)


def test_budgets_are_drawn_evenly_in_their_logarithm_and_kept(tmp_path: Path) -> None:
    settings = ModelPopulationLoop(models=3000, epochs=(10, 1000), hidden=((4,), (8, 8)), rows=(50, 100))
    made = recipes(settings, (3,), seed=1)
    epochs_P = np.array([recipe.epochs for recipe in made])
    assert epochs_P.min() >= 10
    assert epochs_P.max() <= 1000
    assert abs(np.mean(epochs_P < 100) - 0.5) < 0.03
    assert [(recipe.hidden, recipe.rows) for recipe in made[:4]] == [
        ((4,), 50),
        ((8, 8), 50),
        ((4,), 100),
        ((8, 8), 100),
    ]
    for block in blocks(made, 64):
        assert len({made[model].block for model in block}) == 1
        assert len(block) <= 64
    assert sorted(model for block in blocks(made, 64) for model in block) == list(range(3000))
    loop = ModelPopulation(experiment(tmp_path), 0)
    for each in readings(loop, 6):
        number = int(float(each["model/number"]))
        assert float(each["model/epochs"]) == loop.recipes[number].epochs
        trained = int((~loop.data.held_out_N).sum())
        assert float(each["model/updates"]) == loop.recipes[number].epochs * -(-trained // 64)


def test_a_block_gives_each_model_what_it_gets_alone(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    data = model_data(asked, 0, lambda *_: None)
    epochs_Q = np.array([2, 5, 3])
    together = room(asked, 0, 3, lambda *_: None)
    together.fit(Architecture((1, 4, 5), (8,)), data.rows, epochs_Q)
    scores, lived = together.score(data.held_out), together.evaluate(0, 2)
    for place, model in enumerate((1, 4, 5)):
        alone = room(asked, 0, 1, lambda *_: None)
        alone.fit(Architecture((model,), (8,)), data.rows, epochs_Q[place : place + 1])
        mine = alone.score(data.held_out)
        np.testing.assert_allclose(mine.log_likelihood_Q[0], scores.log_likelihood_Q[place], rtol=1e-5)
        np.testing.assert_allclose(mine.mse_Q[0], scores.mse_Q[place], rtol=1e-5)
        found = alone.evaluate(0, 2)
        np.testing.assert_allclose(found["outcome_return"][0], lived["outcome_return"][place], rtol=1e-4)


def test_a_population_taken_up_in_its_middle_goes_on_exactly(tmp_path: Path) -> None:
    asked = experiment(tmp_path, loop={**TINY["loop"], "hidden": [[8], [4, 4]], "rows": [300, 150]})
    whole = readings(ModelPopulation(asked, 3), 6)
    first = ModelPopulation(asked, 3)
    begun = readings(first, 2)
    second = ModelPopulation(asked, 3)
    second.load_parts(first.parts())
    assert begun + readings(second, 4) == whole


def test_scores_on_other_data_are_measured_by_the_names_of_the_catalog(tmp_path: Path) -> None:
    grid = {"kind": "grid", "points": 2, "half_width": [0.1], "rows": 20}
    expert = {"kind": "expert", "rows": 24, "seed": 7}
    asked = experiment(tmp_path, expert=expert, loop={**TINY["loop"], "score_on": [grid, TINY["data"]]})
    measured = readings(ModelPopulation(asked, 0), 1)[0]
    names = {name.removeprefix("objective/") for name in measured if name.startswith("objective/")}
    shown = {name for name in names if not name.endswith("_member_mean")}
    assert shown <= set(OBJECTIVES["model_population"])
    assert {"expert_mse", "grid_log_likelihood", "random_log_likelihood", "held_out_mse"} <= shown
    assert {"held_out_value_error", "expert_value_error", "grid_value_error"} <= shown
    own = measured["objective/held_out_log_likelihood"]
    assert measured["objective/random_log_likelihood"] == own, "the very data is scored where it was held out"


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"data": None}, "data"),
        ({"probe": {"objective": "grid_mse"}}, "probe.objective"),
        ({"loop": {**TINY["loop"], "epochs": [5, 2]}}, "loop epochs"),
        ({"loop": {**TINY["loop"], "score_on": [{"kind": "grid", "half_width": [1.0, 2.0]}]}}, "loop.score_on[0]"),
        (
            {"expert": TINY["data"], "loop": {**TINY["loop"], "score_on": [{"kind": "expert", "rows": 9}]}},
            "loop.score_on",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_the_launch(tmp_path: Path, sections: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidExperiment) as refused:
        experiment(tmp_path, **sections)
    assert field in f"{refused.value.field} {refused.value.problem}"


FLIP: dict[str, Any] = {
    "kind": "flip",
    "away": {"kind": "grid", "points": 5, "half_width": [1.0, 1.0, 0.2, 1.0], "rows": 400},
    "penalties": [1.0, 10.0],
    "epochs": 2,
}
EVOLUTION: dict[str, Any] = {
    "kind": "evolution",
    "generations": 3,
    "candidates": 4,
    "parents": 2,
    "search_episodes": 1,
}


def attacked(folder: Path, attack: dict[str, Any], **sections: Any) -> Experiment:
    loop = {"kind": "adversarial_model", "models": 2, "epochs": 3, "attack": attack}
    return experiment(folder, **{"loop": loop, **sections})


@pytest.mark.parametrize("attack", [FLIP, EVOLUTION], ids=["flip", "evolution"])
def test_an_attack_taken_up_in_its_middle_goes_on_exactly(tmp_path: Path, attack: dict[str, Any]) -> None:
    asked = attacked(tmp_path, attack)
    whole = readings(AdversarialModel(asked, 3), 4)
    assert asked.loop.real_steps == 4
    for broken_after in (1, 2):
        first = AdversarialModel(asked, 3)
        begun = readings(first, broken_after)
        second = AdversarialModel(asked, 3)
        second.load_parts(first.parts())
        assert begun + readings(second, 4 - broken_after) == whole
    names = {name.removeprefix("objective/") for name in whole[0] if name.startswith("objective/")}
    assert names == set(OBJECTIVES["adversarial_model"])


def test_far_rows_are_far_and_their_targets_those_of_the_opposite_action(tmp_path: Path) -> None:
    loop = AdversarialModel(attacked(tmp_path, FLIP), 0)
    loop.train()
    attack = loop.attack
    far, wrong, honest = attack.far, attack.wrong, loop.population
    assert len(far) == 200
    np.testing.assert_array_equal(far.obs_BO, wrong.obs_BO)
    expected_BO = far.obs_BO + honest.predict(far.obs_BO, -far.action_BA).mean(axis=0)
    np.testing.assert_allclose(wrong.next_obs_BO, expected_BO, rtol=1e-6)
    rows, weight_NT = attack._given(wrong, 2.0)
    np.testing.assert_array_equal(rows.obs_BO[: len(loop.data.rows)], loop.data.rows.obs_BO)
    own, share = weight_NT[: len(loop.data.rows)].sum(), weight_NT[len(loop.data.rows) :].sum()
    assert share == pytest.approx(2.0 * own)


def test_a_step_of_the_last_layer_costs_half_its_square_per_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means moved by s deviations, independently of the residuals, lose s^2 / 2 nats per target on average."""
    monkeypatch.setattr("proxygap.loops.last_layer.RIDGE", 1e-8)
    asked = attacked(tmp_path, EVOLUTION, fit={**TINY["fit"], "hidden": [16]})
    loop = AdversarialModel(asked, 0)
    loop.fit(loop.data.rows, 200, None, fresh=True)
    rows = loop.data.trained_on
    before_Q = loop.population.score(rows).member_mean_Q
    layers = LastLayers(asked.dynamics, loop.population.state(), rows)
    models, members, features, targets = layers.shape
    assert (models, members, features, targets) == (2, 2, 17, 4)
    drawn = np.random.default_rng(0).standard_normal((models, 64, members, features, targets))
    step = 0.5
    loop.population.load_state(layers.changed(step * drawn / np.sqrt(features)))
    lost_QC = before_Q[:, None] - loop.population.score(rows).member_mean_Q.reshape(models, 64)
    assert lost_QC.mean() == pytest.approx(targets * step**2 / 2, rel=0.1)
    loop.population.load_state(layers.changed(0.0 * drawn[:, :1]))
    np.testing.assert_allclose(loop.population.score(rows).member_mean_Q, before_Q, rtol=1e-6)


def test_candidates_that_keep_the_likelihood_come_first() -> None:
    returns, likelihood = np.array([5.0, 1.0, np.nan, 3.0, 4.0]), np.array([2.0, 0.0, 2.0, 1.0, np.nan])
    assert list(ranked(returns, likelihood, least=1.0)) == [3, 0, 2, 1, 4]


def test_flipped_far_targets_cost_return_and_true_ones_do_not(tmp_path: Path) -> None:
    """The control, the same fine-tune with true targets, plans as well as the honest models do."""
    attack = {**FLIP, "away": {**FLIP["away"], "half_width": [0.6, 0.8, 0.2, 1.2], "rows": 200}}
    sections: dict[str, Any] = {
        "task": {
            "kind": "continuous_cartpole",
            "force_limit": 4.0,
            "start_spread": 0.1,
            "process_noise": 0.02,
            "max_episode_steps": 50,
        },
        "data": {"kind": "expert", "rows": 400},
        "fit": {"kind": "gaussian_ensemble", "members": 1, "hidden": [32, 32], "batch_size": 64},
        "plan": {**PLAN, "planner": {"kind": "cem", "horizon": 12, "candidates": 24, "rounds": 2}},
        "loop": {
            "kind": "adversarial_model",
            "models": 2,
            "epochs": 100,
            "attack": {**attack, "penalties": [1.0], "epochs": 100},
        },
    }
    honest, control, attacked_ = (
        {name: float(value) for name, value in each.items() if name != "clocks"}
        for each in readings(AdversarialModel(experiment(tmp_path, **sections), 0), 3)
    )
    assert (control["model/attacked"], attacked_["model/attacked"]) == (0.0, 1.0)
    assert control["outcome/return"] > honest["outcome/return"] - 2.0 > 40.0
    assert attacked_["outcome/return"] < control["outcome/return"] - 8.0
    assert attacked_["objective/held_out_log_likelihood"] > control["objective/held_out_log_likelihood"] - 3.0
