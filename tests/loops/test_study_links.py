"""Links over the variants of a study, on values whose rank correlations are known. Nothing is run here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from proxygap.loops.links import ACCURACY, FEWEST_VARIANTS, ONE_TO_MANY, PAIRWISE, PROXY, study_links
from proxygap.probe.statistics import Interval
from proxygap.report.records import COLUMNS, ReportInput, SeedRecord

GOLD = "outcome/gold_reward"
UP = (1.0, 2.0, 3.0, 4.0, 5.0)
DOWN = (5.0, 4.0, 3.0, 2.0, 1.0)
NAMES = ["reward accuracy with proxy", "proxy with gold", "reward accuracy with gold"]
BENCHMARKS = ["pairwise benchmark with gold", "one-to-many benchmark with gold", "one-to-many minus pairwise"]


def variants(values: dict[str, Sequence[Sequence[float]]], failed: Sequence[tuple[int, int]] = ()) -> list[ReportInput]:
    """Studies from key to a row of variants per seed; an early measurement that says the contrary is always there.

    ``failed`` lists (seed, variant).
    """
    first = next(iter(values.values()))
    inputs = []
    for variant in range(len(first[0])):
        rows: list[dict[str, Any]] = []
        for key, per_seed in values.items():
            for seed, row in enumerate(per_seed):
                side, name = key.split("/", 1)
                for step, value in ((1, -row[variant]), (2, row[variant])):
                    cells: dict[str, Any] = dict.fromkeys(COLUMNS, 0)
                    cells.update(seed=seed, key=key, side=side, name=name, value=float(value), unit="")
                    rows.append({**cells, "direction": "higher", "real_step": step, "iteration": step, "time": step})
        records = tuple(
            SeedRecord(seed, "failed" if (seed, variant) in failed else "finished") for seed in range(len(first))
        )
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        inputs.append(ReportInput(f"s.{variant}", "?", "", ("gold_reward",), None, records, table))
    return inputs


def links_of(values: dict[str, Sequence[Sequence[float]]], **options: Any) -> dict[str, Interval]:
    return dict(study_links(variants(values, **options)))


def test_each_link_joins_its_own_two_sides() -> None:
    links = links_of({ACCURACY: [UP] * 3, PROXY: [(2.0, 5.0, 7.0, 8.0, 90.0)] * 3, GOLD: [DOWN] * 3})
    assert list(links) == NAMES
    found = {name: (it.estimate, it.low, it.high, it.samples) for name, it in links.items()}
    assert found == {NAMES[0]: (1, 1, 1, 3), NAMES[1]: (-1, -1, -1, 3), NAMES[2]: (-1, -1, -1, 3)}


def test_the_one_to_many_benchmark_is_set_against_the_pairwise_one() -> None:
    gold = [UP, DOWN]
    links = links_of({ACCURACY: gold, PROXY: gold, GOLD: gold, PAIRWISE: [DOWN, UP], ONE_TO_MANY: gold})
    assert list(links) == NAMES + BENCHMARKS
    assert [links[name].estimate for name in BENCHMARKS] == [-1, 1, 2]


def test_seeds_are_averaged_with_students_interval() -> None:
    rng = np.random.default_rng(0)
    accuracy, proxy, gold = rng.standard_normal((3, 4, 6))
    link = links_of({ACCURACY: accuracy, PROXY: proxy, GOLD: gold})["proxy with gold"]
    rho = [stats.spearmanr(p, g).statistic for p, g in zip(proxy, gold, strict=True)]
    assert link.estimate == pytest.approx(np.mean(rho))
    reach = stats.t.ppf(0.975, 3) * np.std(rho, ddof=1) / 2
    assert (link.low, link.high) == pytest.approx((link.estimate - reach, link.estimate + reach))


def test_seeds_are_not_pooled() -> None:
    """Within each seed gold falls as the proxy rises; pooled over seeds that are far apart it would seem to rise."""
    proxy = [UP, tuple(1000 + x for x in UP)]
    gold = [DOWN, tuple(1000 + x for x in DOWN)]
    assert links_of({ACCURACY: proxy, PROXY: proxy, GOLD: gold})["proxy with gold"].estimate == -1


def test_a_seed_without_variation_is_left_out_and_counted() -> None:
    gold = [UP, (3.0,) * 5, UP]
    link = links_of({ACCURACY: [UP] * 3, PROXY: [UP] * 3, GOLD: gold})["proxy with gold"]
    assert (link.estimate, link.samples, link.dropped) == (1, 2, 1)


def test_a_run_that_failed_is_not_compared_with_finished_ones() -> None:
    outlier = (1.0, 2.0, 3.0, 4.0, -9.0)
    values = {ACCURACY: [UP] * 2, PROXY: [UP] * 2, GOLD: [outlier] * 2}
    assert links_of(values)["proxy with gold"].estimate == pytest.approx(stats.spearmanr(UP, outlier).statistic)
    assert links_of(values, failed=[(0, 4), (1, 4)])["proxy with gold"].estimate == 1
    few = links_of(values, failed=[(0, 4), (0, 3)])["proxy with gold"]
    assert (few.samples, few.dropped) == (1, 1), f"one seed has fewer than {FEWEST_VARIANTS} variants left"


def test_too_few_variants_have_no_links() -> None:
    short = [row[: FEWEST_VARIANTS - 1] for row in (UP, UP)]
    assert study_links(variants({ACCURACY: short, PROXY: short, GOLD: short})) == []


@pytest.mark.parametrize("missing", [ACCURACY, PROXY, GOLD])
def test_without_one_of_the_three_there_are_no_links(missing: str) -> None:
    values = {key: [UP] * 2 for key in (ACCURACY, PROXY, GOLD, PAIRWISE, ONE_TO_MANY)}
    assert len(links_of(values)) == 6
    assert links_of({**values, missing: [(math.nan,) * 5] * 2}) == {}
    assert links_of({key: rows for key, rows in values.items() if key != missing}) == {}


def test_seeds_that_only_some_variants_have_do_not_count() -> None:
    inputs = variants({key: [UP, DOWN] for key in (ACCURACY, PROXY)} | {GOLD: [UP, UP]})
    inputs[3] = variants({key: [UP] for key in (ACCURACY, PROXY, GOLD)})[3]
    link = dict(study_links(inputs))["proxy with gold"]
    assert (link.estimate, link.samples, link.reason) == (1, 1, "one seed")
