"""Given proxies: exact calibration under the reference, correlations in closed form, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from proxygap.base.errors import CheckpointRefused, InvalidDataset, InvalidExperiment
from proxygap.base.language import Answers, Enumeration
from proxygap.base.protocols import State
from proxygap.base.seeds import generator
from proxygap.collect.tasks.arms import Arms
from proxygap.fit.reward.given import FunctionReward, TableReward, z_scored
from proxygap.fit.reward.settings import CorrelatedProxies, Gold
from proxygap.testing.reward import LinearTruth

TASK = Arms(arms=8000, truth_seed=0)


class Sequences:
    """A task without a table: gold is the sum of token weights."""

    name = "sequences"

    def __init__(self):
        self.truth = LinearTruth.of(generator(0, "truth"))

    def enumeration(self):
        return None

    def gold(self, answers: Answers):
        return self.truth.token_gold({"token": answers.token_BT})


def table(**settings):
    return CorrelatedProxies(**settings).given(TASK, 3).table


@pytest.mark.parametrize("error", ["student_t", "gaussian"])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_every_proxy_is_calibrated_exactly_under_the_reference(error, shared):
    flat_MK = table(error=error, shared=shared)[:, 0]
    assert flat_MK.mean(axis=1) == pytest.approx(np.zeros(5), abs=1e-12)
    assert flat_MK.std(axis=1) == pytest.approx(np.ones(5), abs=1e-12)


def test_z_scores_weigh_answers_by_the_reference():
    weight_PK = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    table_MPK = z_scored(generator(0, "x").normal(size=(2, 2, 3)), np.log(weight_PK))
    assert (weight_PK * table_MPK).sum(axis=(1, 2)) / 2 == pytest.approx([0.0, 0.0], abs=1e-12)
    assert (weight_PK * table_MPK**2).sum(axis=(1, 2)) / 2 == pytest.approx([1.0, 1.0], abs=1e-12)


@pytest.mark.parametrize(("shared", "between"), [(0.0, 0.5), (0.5, 0.75)])
def test_gaussian_correlations_are_those_of_the_closed_form(shared, between):
    """corr(r_i, g) = 1 / sqrt(2) and corr(r_i, r_j) = (1 + shared) / 2 for errors of gold's own deviation."""
    flat_MK = table(error="gaussian", shared=shared)[:, 0]
    correlation = np.corrcoef(np.vstack([TASK.enumeration().gold_PK, flat_MK]))
    assert correlation[0, 1:] == pytest.approx([np.sqrt(0.5)] * 5, abs=0.02)
    assert correlation[1:, 1:][~np.eye(5, dtype=bool)] == pytest.approx([between] * 20, abs=0.03)


def test_deviation_scales_the_error():
    flat_MK = table(error="gaussian", deviation=0.5)[:, 0]
    assert np.corrcoef(flat_MK[0], TASK.enumeration().gold_PK[0])[0, 1] == pytest.approx(1 / np.sqrt(1.25), abs=0.02)


def test_a_fully_shared_error_makes_all_members_one():
    shared = table(shared=1.0)
    assert np.array_equal(shared, np.broadcast_to(shared[:1], shared.shape))


def test_student_errors_have_heavy_tails():
    gold = TASK.enumeration().gold_PK[0]
    errors = {kind: table(error=kind)[0, 0] - gold / np.sqrt(2) for kind in ("student_t", "gaussian")}
    largest = {kind: np.abs(error).max() / error.std() for kind, error in errors.items()}
    assert largest["student_t"] > 8.0 > 5.0 > largest["gaussian"]


def test_errors_depend_on_the_seed_alone():
    assert np.array_equal(table(), table())
    other = CorrelatedProxies().given(TASK, 4).table
    assert not np.array_equal(table(), other)
    assert np.array_equal(table(members=2), table(members=5)[:2])


def items(arms):
    arms = np.asarray(arms)
    return {"prompt": 0 * arms, "token": arms[:, None]}


def test_scores_are_looked_up_and_calibration_cannot_better_them():
    model = CorrelatedProxies().given(TASK, 3)
    scores = model.score(items([5, 0, 7999]))
    assert torch.equal(scores, torch.tensor(table()[:, 0, [5, 0, 7999]], dtype=torch.float32))
    model.calibrate(items([1, 2]))
    assert torch.equal(model.score(items([5, 0, 7999])), scores)
    assert model.version == 1
    with pytest.raises(ValueError, match="read-only"):
        model.table[0, 0, 0] = 1.0


@pytest.mark.parametrize("arm", [-1, 8000])
def test_an_unknown_answer_is_refused(arm):
    with pytest.raises(InvalidDataset, match="row 1"):
        CorrelatedProxies().given(TASK, 3).score(items([0, arm]))


def test_gold_of_a_table_is_gold():
    model = Gold().given(TASK, 3)
    assert isinstance(model, TableReward)
    assert np.array_equal(model.table[0], TASK.enumeration().gold_PK)


def test_gold_of_a_sequence_is_the_tasks_function_and_is_calibrated_on_items():
    task = Sequences()
    model = Gold().given(task, 3)
    assert isinstance(model, FunctionReward)
    rows = task.truth.items(generator(1, "items"), 50)
    gold = task.truth.token_gold(rows)
    assert model.score(rows).numpy()[0] == pytest.approx(gold, rel=1e-6)
    model.calibrate(rows)
    assert model.version == 2
    assert model.score(rows).numpy()[0] == pytest.approx((gold - gold.mean()) / gold.std(), rel=1e-5, abs=1e-6)
    resumed = Gold().given(task, 3)
    resumed.load_state(model.state())
    assert torch.equal(resumed.score(rows), model.score(rows))


def test_given_models_refuse_a_fit_and_tasks_without_a_table():
    truth = LinearTruth.of(generator(0, "truth"))
    data = truth.preferences(generator(1, "data"), 4, truth.token_gold)
    for model in (CorrelatedProxies().given(TASK, 0), Gold().given(TASK, 0), Gold().given(Sequences(), 0)):
        with pytest.raises(InvalidExperiment, match="not fitted"):
            model.fit(data)
    with pytest.raises(InvalidExperiment, match="cannot be enumerated"):
        CorrelatedProxies().given(Sequences(), 0)


def test_a_state_of_other_sizes_is_refused():
    model = CorrelatedProxies(members=2).given(TASK, 0)
    with pytest.raises(CheckpointRefused, match=r"reward\.table"):
        model.load_state(CorrelatedProxies(members=3).given(TASK, 0).state())
    with pytest.raises(CheckpointRefused, match=r"reward\.kind"):
        model.load_state(State({}, {"kind": "gold"}))


def test_an_enumeration_in_another_unit_keeps_its_own_tables():
    class Two:
        name = "two"

        def enumeration(self):
            return Enumeration(np.log([[0.25, 0.75]]), np.array([[np.sqrt(3.0), -1 / np.sqrt(3.0)]]))

    flat = CorrelatedProxies(members=1, deviation=1e-9).given(Two(), 0).table[0, 0]
    assert flat == pytest.approx([np.sqrt(3.0), -1 / np.sqrt(3.0)], rel=1e-6)
