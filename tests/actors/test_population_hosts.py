"""A population on hosts gives the numbers of the one in this process, also with more hosts than a block has models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from proxygap.collect.data.uniform import uniform_episodes
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.fit.dynamics.settings import GaussianEnsembleSettings
from proxygap.imagine.planners.settings import CemPlanner, Planning
from proxygap.serve.model_block import Architecture
from proxygap.serve.population import Population
from proxygap.serve.settings import Hosting

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("nothing_leaks")]

TASK = ContinuousCartPole(max_episode_steps=8, process_noise=0.01)
FIT = GaussianEnsembleSettings(members=2, hidden=(8,), batch_size=32, stopping="budget")
PLAN = Planning(planner=CemPlanner(horizon=4, candidates=8, rounds=2), particles=2)
DATA = uniform_episodes(TASK, 120, 0)
Make = Callable[[int], Population]


@pytest.fixture
def make(events: Any) -> Iterator[Make]:
    made: list[Population] = []

    def build(hosts: int) -> Population:
        hosting = Hosting(hosts=hosts, cpus=1.0)
        made.append(Population(TASK, FIT, PLAN, hosting, at_once=3, seed=1, run_name="run", on_event=events))
        return made[-1]

    yield build
    for each in made:
        each.close()


def numbers(population: Population) -> dict[str, Any]:
    scores, lived = population.score(DATA[:50]), population.evaluate(4, 2)
    predicted = population.predict(DATA.obs_BO[:5], DATA.action_BA[:5])
    return {"likelihood": scores.log_likelihood_Q, "mse": scores.mse_Q, "predicted": predicted, **lived}


def assert_twins(one: Population, other: Population) -> None:
    mine, theirs = numbers(one), numbers(other)
    for name, array in mine.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    ours, yours = one.state(), other.state()
    assert ours.structure == yours.structure
    for name, array in ours.arrays.items():
        np.testing.assert_allclose(array, yours.arrays[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_blocks_on_hosts_equal_blocks_in_this_process(make: Make) -> None:
    here, there = make(0), make(2)
    for models, epochs in (((0, 2, 3), (1, 4, 2)), ((5,), (3,))):
        fits = [each.fit(Architecture(models, (8,)), DATA, np.array(epochs)) for each in (here, there)]
        np.testing.assert_array_equal(fits[0].updates_Q, fits[1].updates_Q)
        assert_twins(here, there)
    here.fit(Architecture((0, 2, 3), (8,)), DATA, np.array([1, 1, 1]))
    there.load_state(here.state())
    assert_twins(here, there)
    weight_NT = np.linspace(0.0, 1.0, 4 * len(DATA), dtype=np.float32).reshape(-1, 4)
    for each in (here, there):
        each.fit(Architecture((0, 2, 3), (8,)), DATA, np.array([2, 2, 2]), weight_NT, fresh=False)
    assert_twins(here, there)
