"""Datasets made before a run: chance is uniform, a grid obeys the law, choices keep episodes whole, caches hold."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from proxygap.base.errors import InvalidDataset, InvalidExperiment
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.collect.data.cache import kept
from proxygap.collect.data.choice import bounded
from proxygap.collect.data.grid import grid, grid_size
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.data.uniform import uniform_episodes
from proxygap.collect.episodes import read_episodes, write_episodes
from proxygap.collect.tasks.cartpole import ContinuousCartPole
from proxygap.collect.tasks.cartpole_env import advance
from proxygap.collect.tasks.gymnasium_task import GymnasiumTask

TASK = ContinuousCartPole(start_spread=0.2, process_noise=0.1)
WIDTHS = (1.0, 2.0, 0.2, 2.0)


@pytest.fixture(scope="module")
def rows() -> Transitions:
    return uniform_episodes(TASK, 600, 7)


def a_grid(task: Any = TASK, **changes: Any) -> Transitions:
    given = {"points": 7, "half_width_O": WIDTHS, "center_O": (0.0,) * 4, "noise_std_O": (0.0,) * 4, **changes}
    return grid(task, rng=generator(0, "grid"), **given)


def test_random_actions_are_uniform_and_episodes_whole(rows: Transitions) -> None:
    assert kstest(rows.action_BA[:, 0], "uniform", (-1, 2)).pvalue > 0.01
    assert abs(np.corrcoef(rows.action_BA[:-1, 0], rows.action_BA[1:, 0])[0, 1]) < 0.1
    assert len(rows) >= 600
    last = [part[len(part) - 1 :] for part in rows.episodes()]
    assert all((part.terminated_B | part.truncated_B).all() for part in last)
    assert len(rows) - len(last[-1]) - last[-1].step_B[0] < 600, "no episode more than were needed"


def test_random_data_follow_their_seed(rows: Transitions) -> None:
    assert uniform_episodes(TASK, 600, 7).content_hash == rows.content_hash
    assert uniform_episodes(TASK, 600, 8).content_hash != rows.content_hash


def test_random_choices_are_equally_likely() -> None:
    lake = uniform_episodes(GymnasiumTask(id="FrozenLake-v1"), 2000, 0)
    counts = np.bincount(lake.action_BA.argmax(axis=1), minlength=4)
    assert np.abs(counts / counts.sum() - 0.25).max() < 0.04


def test_a_grid_is_the_law_at_every_point() -> None:
    rows = a_grid()
    assert len(rows) == grid_size(TASK, WIDTHS, 7) == 7**5 == 16_807
    state_N5 = np.hstack([rows.obs_BO, rows.action_BA])
    assert len(np.unique(state_N5, axis=0)) == 7**5
    for place, width in enumerate((*WIDTHS, 1.0)):
        assert np.allclose(np.unique(state_N5[:, place]), np.linspace(-width, width, 7), atol=1e-6)
    # the scalar simulator is a second implementation of the law
    expected = [advance(*state[:4], TASK.force_limit * state[4]) for state in state_N5.astype(float).tolist()]
    assert np.allclose(rows.next_obs_BO, np.array(expected), rtol=0, atol=3e-7)
    law = TASK.next_obs(torch.from_numpy(rows.obs_BO).double(), torch.from_numpy(rows.action_BA).double())
    assert np.array_equal(rows.next_obs_BO, law.float().numpy())
    assert (rows.terminated_B ^ rows.truncated_B).all()
    assert 0 < rows.terminated_B.sum() < len(rows)
    assert len(list(rows.episodes())) == len(rows)


def test_a_grid_stays_at_its_center_where_it_is_told_and_takes_noise() -> None:
    flat = a_grid(half_width_O=(0.0, 0.0, 0.1, 0.0), center_O=(0.5, 0.0, 0.0, 0.0), points=3)
    assert len(flat) == 9
    assert (flat.obs_BO[:, [0, 1, 3]] == np.float32([0.5, 0, 0])).all()
    noise = a_grid(noise_std_O=(0.0, 0.3, 0.0, 0.1)).next_obs_BO - a_grid().next_obs_BO
    assert np.allclose(noise.std(axis=0), [0, 0.3, 0, 0.1], rtol=0.02, atol=1e-9)


def test_a_choice_takes_whole_episodes_or_exact_rows(rows: Transitions) -> None:
    assert bounded(rows, None, "episodes", generator(0, "a")) is rows
    assert bounded(rows, len(rows), "episodes", generator(0, "a")) is rows
    some = bounded(rows, 300, "episodes", generator(0, "a"))
    lengths = {int(part.episode_B[0]): len(part) for part in rows.episodes()}
    assert {int(part.episode_B[0]): len(part) for part in some.episodes()}.items() <= lengths.items()
    left = [length for number, length in lengths.items() if number not in some.episode_B]
    assert 300 - min(left) < len(some) <= 300, "another one would have fitted"
    exact = bounded(rows, 300, "transitions", generator(0, "a"))
    assert len(exact) == 300
    assert np.array_equal(exact.episode_B, np.sort(exact.episode_B)), "the order stays"
    for choose in ("episodes", "transitions"):
        first, again, other = (bounded(rows, 300, choose, generator(seed, "a")).content_hash for seed in (0, 0, 1))
        assert first == again != other


def test_a_choice_that_cannot_be_made_says_why(rows: Transitions) -> None:
    with pytest.raises(InvalidExperiment, match=r"rows = 2: no episode is that short.*choose: transitions"):
        bounded(rows, 2, "episodes", generator(0, "a"))


def described(rows: Transitions, key: str = "ab" * 32) -> Lineage:
    policy = {"kind": "law", "plan": {"particles": 1, "share": 0.1}}
    return Lineage.of(rows, kind="expert", task="CartPole", task_hash="cd" * 32, policy=policy, seed=3, key=key)


def test_a_lineage_survives_the_file(rows: Transitions, tmp_path: Path) -> None:
    lineage, file = described(rows), tmp_path / "a.parquet"
    write_episodes(file, rows, lineage.provenance())
    found, provenance = read_episodes(file)
    assert Lineage.read(provenance, found, str(file)) == lineage
    assert (lineage.rows, lineage.episodes) == (len(rows), rows.episode_B[-1] + 1)


def test_a_lineage_of_other_rows_or_of_nothing_is_refused(rows: Transitions) -> None:
    told = described(rows).provenance()
    with pytest.raises(InvalidDataset, match="lineage of other rows"):
        Lineage.read(told, rows[:10], "here")
    with pytest.raises(InvalidDataset, match="nothing of its kind"):
        Lineage.read({"task": "x"}, rows, "here")
    with pytest.raises(InvalidDataset, match="cannot be read"):
        Lineage.read({**told, "seed": "three"}, rows, "here")


class Builder:
    """Counts how often a dataset is made."""

    def __init__(self, rows: Transitions, key: str) -> None:
        self.rows, self.key, self.calls, self.events = rows, key, 0, list[str]()

    def __call__(self) -> tuple[Transitions, Lineage]:
        self.calls += 1
        return self.rows, described(self.rows, self.key)

    def ask(self, file: Path) -> tuple[Transitions, Lineage]:
        return kept(file, self.key, self, lambda kind, detail: self.events.append(f"{kind}: {detail['reason']}"))


def test_what_is_kept_is_not_made_again(rows: Transitions, tmp_path: Path) -> None:
    build, file = Builder(rows, "ab" * 32), tmp_path / "datasets" / "a.parquet"
    made, read = build.ask(file), build.ask(file)
    assert (build.calls, build.events) == (1, [])
    assert made[0].content_hash == read[0].content_hash
    assert made[1] == read[1]


def test_what_is_damaged_or_anothers_is_made_again(rows: Transitions, tmp_path: Path) -> None:
    build, file = Builder(rows, "ab" * 32), tmp_path / "a.parquet"
    build.ask(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(bytes(content))
    assert build.ask(file)[0].content_hash == rows.content_hash
    assert build.calls == 2
    write_episodes(file, rows, described(rows, "ef" * 32).provenance())
    build.ask(file)
    write_episodes(file, rows, {"run_key": "x"})
    build.ask(file)
    build.ask(file)
    assert build.calls == 4
    assert [event.partition(":")[0] for event in build.events] == ["dataset_refused"] * 3
    assert "another dataset" in build.events[1]


def _slow(file: Path, seed: int, marks: Path) -> None:
    rows = uniform_episodes(TASK, 50, 7)

    def build() -> tuple[Transitions, Lineage]:
        with marks.open("a") as mark:
            mark.write("made\n")
        return rows, described(rows)

    found, _ = kept(file, "ab" * 32, build, lambda kind, detail: None)
    with marks.open("a") as mark:
        mark.write(f"{found.content_hash}\n")


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context, marks = get_context("spawn"), tmp_path / "marks"
    both = [context.Process(target=_slow, args=(tmp_path / "a.parquet", seed, marks)) for seed in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(60)
    lines = marks.read_text().splitlines()
    assert lines.count("made") == 1
    assert len(set(lines) - {"made"}) == 1
    assert len(lines) == 3


DISTRACTED = ContinuousCartPole(distractors=5, process_noise=0.1)


def test_distractors_change_nothing_but_the_observation() -> None:
    with_D, without = (uniform_episodes(replace_task(count), 1, 3) for count in (5, 0))
    assert with_D.obs_BO.shape[1] == 9
    assert np.array_equal(with_D.obs_BO[:, :4], without.obs_BO)
    assert np.array_equal(with_D.next_obs_BO[:, :4], without.next_obs_BO)
    assert np.array_equal(with_D.outcome_reward_B, without.outcome_reward_B)
    assert np.array_equal(with_D.terminated_B, without.terminated_B)


def replace_task(distractors: int) -> ContinuousCartPole:
    return ContinuousCartPole(distractors=distractors, start_spread=0.2)


def test_distractors_wander_chaotically_for_ever_and_by_the_law() -> None:
    env = DISTRACTED.make_env()
    seen = []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        for _ in range(2000):
            law = DISTRACTED.next_obs(torch.from_numpy(obs)[None].double(), torch.zeros(1, 1).double())[0]
            obs = env.unwrapped.step(np.zeros(1, np.float32))[0]  # type: ignore[attr-defined]
            assert np.array_equal(obs[4:], law[4:].float().numpy())
            seen.append(obs[4:])
    wandered = np.array(seen)
    assert wandered.min() > 0.2
    assert wandered.max() < 3.0
    assert (wandered[-200:].std(axis=0) > 0.5).all(), "none has come to rest"
    near = torch.tensor([[0, 0, 0, 0, *[1.0] * 5], [0, 0, 0, 0, *[1.0 + 1e-6] * 5]], dtype=torch.float64)
    for _ in range(60):
        near = DISTRACTED.next_obs(near, torch.zeros(2, 1, dtype=torch.float64))
    assert (near[0, 4:] - near[1, 4:]).abs().max() > 0.01, "small differences grow"


def test_rows_without_an_order_are_not_torn(rows: Transitions) -> None:
    """Rows of two environments lie interleaved; a choice of episodes keeps each of them together."""
    two = Transitions.concatenate([rows, replace(rows, episode_B=rows.episode_B + 1000)])
    mixed = two[np.random.default_rng(0).permutation(len(two))]
    some = bounded(mixed, 500, "episodes", generator(0, "a"))
    for number in np.unique(some.episode_B):
        assert (some.episode_B == number).sum() == (mixed.episode_B == number).sum()
