"""Reports on answers: turning point, law, sample pages and comparisons of variants, on curves whose truth is known."""

from __future__ import annotations

import html as html_text
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from proxygap.base.errors import InvalidExperiment
from proxygap.base.seeds import generator
from proxygap.experiment import validate
from proxygap.loops.report import _distance
from proxygap.probe import statistics
from proxygap.probe.knee import knee
from proxygap.probe.overoptimization import Curve, fit_law
from proxygap.report.analysis import analyze
from proxygap.report.compare import compare, comparison_page, short_names, write_comparison
from proxygap.report.distance import SHOWN, TEXT_SHOWN, distance_rows, samples_section
from proxygap.report.figures import compare_distances, draw_all
from proxygap.report.html import write_report
from proxygap.report.records import COLUMNS, Distance, ReportInput, SeedRecord
from proxygap.report.verdict import interval_text, judge

Float = NDArray[np.float64]
D_T = np.linspace(0.0, 3.0, 13)
HUMP_T = D_T * (1.2 - 0.4 * D_T)
"""Highest at d = 1.5 (2.25 nats) with 0.9, and 0 again at d = 3: a best-of-n law with alpha 1.2 and beta 0.4."""
RISE_T = 0.5 * D_T


def curves_of(gold_T: Float, seeds: int, noise: float = 0.02) -> list[Curve]:
    rng = generator(0, "test/curves")
    return [Curve(D_T**2, gold_T + noise * rng.standard_normal(len(gold_T)), 2 * D_T) for _ in range(seeds)]


def distance_of(curves: Sequence[Curve]) -> Distance:
    """As ``loops.report`` makes it: aligned by evaluation, a best-of-n law where one can be fitted."""
    shortest = min(len(curve.gold_T) for curve in curves)
    aligned = [Curve(c.kl_T[:shortest], c.gold_T[:shortest], c.proxy_T[:shortest]) for c in curves]
    try:
        law = fit_law(curves, "best_of_n", generator(0, "test/law"), resamples=200)
    except ValueError:
        law = None
    return Distance(dict(enumerate(curves)), knee(aligned, generator(0, "test/knee"), resamples=200), law, aligned)


def rows_of(seed: int, curve: Curve) -> list[dict[str, Any]]:
    sides = {"outcome/gold_reward": curve.gold_T, "objective/proxy_reward": curve.proxy_T, "model/sqrt_kl": curve.d_T}
    rows = []
    for key, values_T in sides.items():
        side, name = key.split("/", 1)
        for index, value in enumerate(values_T):
            row: dict[str, Any] = dict.fromkeys(COLUMNS, 0)
            row.update(seed=seed, key=key, side=side, name=name, value=float(value), unit="std", direction="higher")
            row.update(real_step=index + 1, iteration=index + 1, time=float(index))
            rows.append(row)
    return rows


def source_of(
    curves: Sequence[Curve],
    name: str = "demo",
    failed: Mapping[int, str] | None = None,
    samples: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
) -> ReportInput:
    """Seed n has curve n; ``failed`` maps seeds to reasons, those beyond the curves measured nothing."""
    failed = failed or {}
    numbers = sorted({*range(len(curves)), *failed})
    records = tuple(SeedRecord(n, "failed" if n in failed else "finished", failed.get(n, "")) for n in numbers)
    rows = [row for seed, curve in enumerate(curves) for row in rows_of(seed, curve)]
    return ReportInput(
        name,
        "Does gold turn down?",
        "name: demo",
        ("gold_reward",),
        "proxy_reward",
        records,
        pd.DataFrame(rows, columns=list(COLUMNS)),
        resamples=100,
        distance=distance_of(curves) if curves else None,
        samples=samples or {},
    )


def text_of(page: Path) -> str:
    """What a reader sees: without style and figures, entities resolved, one space between words."""
    source = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html_text.unescape(re.sub(r"<[^>]+>", " ", source)))


def test_the_verdict_tells_where_gold_turned_down_and_what_it_cost() -> None:
    source = source_of(curves_of(HUMP_T, 6))
    assert source.distance is not None
    found = source.distance.knee
    verdict = judge(analyze(source, statistics))
    assert found.found
    assert found.kl.low <= 2.25 <= found.kl.high
    assert found.drop.estimate == pytest.approx(0.9, abs=0.06)
    assert verdict.kind == "opposite"
    assert verdict.sentence == (
        f"Past {interval_text(found.kl)} nats from the reference, optimizing the proxy further cost gold reward: from "
        f"its peak to the end it fell by {interval_text(found.drop)}, while the proxy rose by "
        f"{interval_text(found.proxy_rise)} (6 seeds)."
    )


def test_without_a_turn_the_verdict_says_how_far_it_looked() -> None:
    verdict = judge(analyze(source_of(curves_of(RISE_T, 6, noise=0.0)), statistics))
    assert verdict.kind == "yes"
    assert verdict.sentence == (
        "No turning point of gold reward is shown up to 9.00 nats from the reference "
        "(gold is highest at the end; 6 seeds)."
    )


def test_a_fall_within_noise_is_undecided() -> None:
    rng = generator(3, "test")
    flat = [Curve(D_T**2, rng.standard_normal(len(D_T)), D_T) for _ in range(6)]
    verdict = judge(analyze(source_of(flat), statistics))
    assert verdict.kind == "undecided"
    assert re.search(
        r"\(the fall after the highest point is within noise \(p = 0\.\d{3}\); 6 seeds\)\.$", verdict.sentence
    )


def test_one_seed_decides_nothing_but_still_draws_both_sides() -> None:
    source = source_of(curves_of(HUMP_T, 1))
    analysis = analyze(source, statistics)
    verdict, drawing = judge(analysis), draw_all(analysis, statistics)[0][0]
    assert verdict.kind == "undecided"
    assert verdict.sentence.endswith("(seeds: 1; at least 5 are needed to tell a fall from noise at 95%).")
    assert drawing.name == "along_the_distance"
    for word in ("proxy", "gold", "fitted law"):
        assert f">{word}</text>" in drawing.svg, "the legend names every line"
    assert "one line per seed" in drawing.caption
    assert "Gray" not in drawing.caption


def test_a_seed_with_a_number_that_is_not_finite_is_left_out_and_counted(tmp_path: Path) -> None:
    curves = curves_of(HUMP_T, 7)
    curves[2].gold_T[4:] = math.nan
    source = source_of(curves)
    assert source.distance is not None
    verdict = judge(analyze(source, statistics))
    assert source.distance.knee.found
    assert verdict.sentence.endswith("(6 seeds).")
    assert "1 seed with a non-finite number left out of the turning point." in verdict.remarks
    assert "Does gold turn down?" in text_of(write_report(source, tmp_path, statistics))


def test_nothing_finite_makes_a_page_that_says_so(tmp_path: Path) -> None:
    curves = [Curve(np.full(4, math.nan), np.full(4, math.nan), np.full(4, math.nan)) for _ in range(2)]
    source = source_of(curves)
    assert judge(analyze(source, statistics)).kind == "undecided"
    text = text_of(write_report(source, tmp_path, statistics))
    assert "no evaluation gave a finite distance" in text
    assert not (tmp_path / "along_the_distance.png").exists()


def test_seeds_of_unequal_length_are_drawn_whole_and_averaged_where_all_are(tmp_path: Path) -> None:
    curves = curves_of(HUMP_T, 6)
    curves[5] = Curve(*(getattr(curves[5], name)[:9] for name in ("kl_T", "gold_T", "proxy_T")))
    source = source_of(curves)
    assert source.distance is not None
    assert [len(curve.d_T) for curve in source.distance.curves.values()] == [13] * 5 + [9]
    assert "up to 9.00 nats" in judge(analyze(source, statistics)).sentence or source.distance.knee.found
    assert "thick ones their mean" in text_of(write_report(source, tmp_path, statistics))


def test_the_law_is_told_with_its_form_and_its_peak() -> None:
    rows = dict(distance_rows(distance_of(curves_of(HUMP_T, 6, noise=0.0))))
    assert rows["law of gold"] == "d (\u03b1 \u2212 \u03b2 d)"
    assert rows["\u03b1"] == "1.20 [1.20, 1.20]"
    assert rows["\u03b2"] == "0.40 [0.40, 0.40]"
    assert rows["the law turns down at d"] == "1.50 [1.50, 1.50]"
    assert rows["R\u00b2 of one curve for all seeds"] == "1.00"


@pytest.mark.parametrize(
    ("gold_T", "told"),
    [
        pytest.param(D_T * (1.2 + 0.1 * D_T), "never", id="no turn"),
        pytest.param(D_T * (1.2 - 0.1 * D_T), "6.00 [6.00, 6.00] (beyond the farthest point, 3.00)", id="extrapolated"),
    ],
)
def test_a_peak_that_no_data_reach_is_told_as_such(gold_T: Float, told: str) -> None:
    assert dict(distance_rows(distance_of(curves_of(gold_T, 5, noise=0.0))))["the law turns down at d"] == told


def test_a_peak_that_some_resamples_lack_says_how_many() -> None:
    curves = [Curve(D_T**2, D_T * (1.2 - beta * D_T), D_T) for beta in (-0.3, -0.3, 0.5, 0.5, 0.5)]
    told = dict(distance_rows(distance_of(curves)))["the law turns down at d"]
    assert re.fullmatch(r"3\.3\d \(beyond the farthest point, 3\.00; \d+% of the resamples never turn down\)", told)


def test_one_point_has_no_law_and_no_knee() -> None:
    distance = distance_of([Curve(D_T[:1] ** 2, HUMP_T[:1], D_T[:1])] * 5)
    rows = distance_rows(distance)
    assert distance.law is None
    assert rows[0] == ("turning point", "no finite curve of at least three points")
    assert rows[1:] == [("gold lost from its peak to the end", "\u2013")]


def sample(
    prompt: str = "p", answer: str = "a", surplus: float = 0.0, members: Sequence[float] = (1.0, 3.0)
) -> dict[str, Any]:
    row = {"prompt": prompt, "answer": answer, "proxy_reward": 2.0, "gold_reward": -1.0, "rank_surplus": surplus}
    return {**row, "member_scores": list(members), "style_length": 5.0, "style_type_token_ratio": 0.5}


def test_answers_are_shown_in_their_order_and_as_text(tmp_path: Path) -> None:
    rows = [
        sample("<b>why</b>", "<script>alert('x')</script> & more", 0.9),
        sample("second one", "z" * (TEXT_SHOWN + 50), 0.1),
    ]
    page = write_report(source_of(curves_of(RISE_T, 2), samples={0: [], 1: rows}), tmp_path, statistics)
    source, text = page.read_text(), text_of(page)
    assert "<script" not in source
    assert "<b>why" not in source
    assert "<script>alert('x')</script> & more" in text
    assert text.index("<b>why</b>") < text.index("second one")
    assert "z" * (TEXT_SHOWN - 1) + "\u2026" in text
    assert "z" * TEXT_SHOWN not in text
    assert "Answers of seed 1, worst disagreements first" in text, "the first seed kept none"
    assert "All 2 answers kept" in text


def test_the_columns_of_answers_follow_what_was_kept() -> None:
    (section,) = samples_section(source_of(curves_of(RISE_T, 1), samples={0: [sample()] * (SHOWN + 3)}))
    (table,) = section.tables
    titles = [column.title for column in table.columns]
    assert titles == ["prompt", "answer", "proxy", "gold", "rank gap", "members", "style"]
    assert len(table.rows) == SHOWN
    assert table.rows[0].cells == (
        "p",
        "a",
        "2.00",
        "\u22121.00",
        "0.00",
        "1.00 3.00",
        "length 5, type token ratio 0.50",
    )
    (alone,) = samples_section(source_of(curves_of(RISE_T, 1), samples={0: [sample(members=[2.0])]}))
    assert "members" not in [column.title for column in alone.tables[0].columns], "one member is the proxy itself"


def test_without_distance_and_answers_there_are_no_sections(tmp_path: Path) -> None:
    source = source_of([], failed={0: "boom"})
    assert samples_section(source) == []
    text = text_of(write_report(source, tmp_path, statistics))
    assert "Does gold turn down?</h2>" not in (tmp_path / "report.html").read_text()
    assert "disagreements" not in text


def table_under(page: Path, title: str) -> list[list[str]]:
    """Cells of the table under a heading, its head first."""
    after = page.read_text().partition(f"<h2>{title}</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", after, flags=re.DOTALL)
    plain = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[html_text.unescape(cell).replace("\u00a0", " ") for cell in row] for row in plain]


def test_two_variants_are_compared_by_their_own_names(tmp_path: Path) -> None:
    base = source_of(curves_of(HUMP_T, 6), "law.single")
    better = source_of(curves_of(RISE_T, 6), "law.mean")
    comparison = compare([base, better], "gold_reward", statistics)
    # gold at the end: 0 and 1.5 at d = 3, the noise of both from equal draws
    assert comparison.entries[1].final_minus_baseline is not None
    assert comparison.entries[1].final_minus_baseline.estimate == pytest.approx(1.5)
    page = write_comparison(comparison, tmp_path, "Which is better?", [base, better])
    text = text_of(page)
    assert text.strip().startswith(
        "Variants of law \u00b7 ProxyGap mean gave a better gold reward than single: difference 1.50 [1.50, 1.50] on 6"
    )
    assert "Which is better?" in text
    head, single, mean = table_under(page, "Does gold turn down?")
    assert base.distance is not None
    assert head[:2] == ["experiment", "turning point, nats"]
    assert single[:2] == ["single", interval_text(base.distance.knee.kl)]
    assert single[4] == interval_text(base.distance.knee.proxy_rise)
    assert mean == ["mean", "gold is highest at the end", "\u2013", "0.00 [0.00, 0.00]", "\u2013"]
    assert (tmp_path / "gold_along_the_distance.png").exists()
    assert "links" not in text
    assert "From the reward model to gold" not in text


def test_of_five_variants_one_that_failed_is_a_row_and_stops_no_other(tmp_path: Path) -> None:
    slopes = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    inputs = [source_of(curves_of(k * D_T, 3), f"study.{name}") for name, k in slopes.items()]
    inputs[1] = source_of(curves_of(0.2 * D_T, 2), "study.b", failed={2: "host lost"})
    inputs.insert(2, source_of([], "study.dead", failed={0: "boom", 1: "boom", 2: "boom"}))
    comparison = compare(inputs, "gold_reward", statistics)
    assert comparison.real_step == 13
    by_name = {entry.name: entry for entry in comparison.entries}
    assert list(by_name) == ["a", "b", "dead", "c", "d"]
    assert (by_name["b"].failed, by_name["b"].final.samples) == (1, 2)
    assert (by_name["dead"].failed, by_name["dead"].final.samples) == (3, 0)
    differences = [by_name[name].final_minus_baseline for name in ("b", "c", "d")]
    # gold at the end is the slope times d = 3; the noise of all comes from equal draws
    assert [it and round(it.estimate, 9) for it in differences] == [0.3, 0.6, 0.9]
    page = write_comparison(comparison, tmp_path, inputs=inputs, links=[("proxy with gold", by_name["d"].final)])
    text = text_of(page)
    assert "dead and a share no seed on which both gave a gold reward." in text
    cells = {row[0]: row for row in table_under(page, "Gold reward, std")[1:]}
    assert cells["b"][-1] == "2 of 3, 1 not finished"
    assert cells["dead"][1:] == ["\u2013", "\u2013", "\u2013", "\u2013", "0 of 3, 3 not finished"]
    assert cells["a"][2] == "baseline"
    assert [row[0] for row in table_under(page, "Does gold turn down?")[1:]] == ["a", "b", "c", "d"]
    assert table_under(page, "From the reward model to gold")[1][0] == "proxy with gold"


def test_a_baseline_that_came_to_nothing_leaves_the_others_without_a_difference() -> None:
    inputs = [source_of([], "s.dead", failed={0: "boom"}), source_of(curves_of(RISE_T, 1), "s.alive")]
    comparison = compare(inputs, "gold_reward", statistics)
    assert (comparison.unit, comparison.real_step) == ("std", 13)
    assert comparison_page(comparison).verdict == "alive and dead share no seed on which both gave a gold reward."


def test_an_experiment_whose_seeds_all_failed_does_not_shorten_the_comparison() -> None:
    early = [Curve(c.kl_T[:2], c.gold_T[:2], c.proxy_T[:2]) for c in curves_of(RISE_T, 3)]
    gone = source_of(early, "s.gone", failed={0: "boom", 1: "boom", 2: "boom"})
    inputs = [source_of(curves_of(RISE_T, 3), "s.a"), gone, source_of(curves_of(2 * RISE_T, 3), "s.b")]
    comparison = compare(inputs, "gold_reward", statistics)
    assert (comparison.real_step, comparison.entries[1].final.samples) == (13, 0)
    difference = comparison.entries[2].final_minus_baseline
    assert difference is not None
    assert difference.estimate == pytest.approx(1.5)
    # an interrupted one may be continued, so it is compared as far as it got
    stopped = replace(gone, seeds=tuple(SeedRecord(n, "interrupted") for n in range(3)))
    assert compare([inputs[0], stopped], "gold_reward", statistics).real_step == 2


def test_experiments_that_all_came_to_nothing_cannot_be_compared() -> None:
    with pytest.raises(InvalidExperiment, match="It measured: no outcome"):
        compare([source_of([], f"s.{name}", failed={0: "boom"}) for name in "ab"], "gold_reward", statistics)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["law.single", "law.mean"], ["single", "mean"]),
        (["v2.law.single", "v2.law.mean"], ["single", "mean"]),
        (["sac-0.1", "sac-0.2"], ["sac-0.1", "sac-0.2"]),
        (["law.single", "other.single"], ["law.single", "other.single"]),
        (["sac", "mbpo"], ["sac", "mbpo"]),
    ],
)
def test_only_variants_of_one_study_lose_its_name(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short


def test_many_variants_are_told_apart_in_the_legend() -> None:
    curves = [
        (f"half_shared_uncertainty_{index}", curves_of(k * D_T, 3)) for index, k in enumerate(np.linspace(0, 1, 12))
    ]
    drawing = compare_distances(curves)
    assert not isinstance(drawing, str)
    assert all(f">{name}</text>" in drawing.svg for name, _ in curves)
    styles = re.findall(r'style="fill: none; ([^"]*stroke: #1f77b4; stroke-width: 2.2[^"]*)"', drawing.svg)
    assert {"dasharray" in style for style in styles} == {False, True}, "the eleventh shares its color, not its line"


def test_variants_without_a_finite_seed_are_left_out_of_the_figure() -> None:
    broken = [Curve(D_T**2, np.full(13, math.nan), D_T)]
    drawing = compare_distances([("broken", broken), ("whole", curves_of(RISE_T, 2))])
    assert not isinstance(drawing, str)
    assert ">whole</text>" in drawing.svg
    assert ">broken</text>" not in drawing.svg
    assert compare_distances([("broken", broken)]) == "No experiment has a seed whose curve is finite throughout."


LANGUAGE = {
    "name": "demo",
    "question": "Does gold turn down?",
    "task": {"kind": "arms"},
    "proxy": {"kind": "correlated_proxies"},
    "loop": {"kind": "best_of_n", "real_steps": 1024},
    "outcomes": ["gold_reward"],
    "probe": {"resamples": 200},
}


def test_a_seed_that_failed_early_does_not_shorten_those_that_finished() -> None:
    curves = curves_of(HUMP_T, 6)
    curves.append(Curve(D_T[:2] ** 2, HUMP_T[:2], D_T[:2]))
    source = source_of(curves, failed={6: "boom"})
    distance = _distance(validate(LANGUAGE), source.measurements, source.seeds)
    assert distance is not None
    assert [len(curve.d_T) for curve in distance.curves.values()] == [13] * 6 + [2]
    assert [len(curve.d_T) for curve in distance.aligned] == [13] * 6
    assert distance.knee.found
    assert distance.law is not None
    assert distance.law.law == "best_of_n"
    # as long as none has finished, all are read as far as the shortest got
    running = tuple(SeedRecord(seed, "running") for seed in range(7))
    early = _distance(validate(LANGUAGE), source.measurements, running)
    assert early is not None
    assert [len(curve.d_T) for curve in early.aligned] == [2] * 7


def test_an_outcome_that_does_not_start_at_zero_has_no_law() -> None:
    source = source_of(curves_of(0.5 + HUMP_T, 6))
    table = source.measurements.replace({"outcome/gold_reward": "outcome/win_rate"})
    distance = _distance(validate({**LANGUAGE, "outcomes": ["win_rate"]}), table, source.seeds)
    assert distance is not None
    assert distance.law is None
    assert distance.knee.found


def test_without_a_distance_measured_there_is_none() -> None:
    source = source_of(curves_of(HUMP_T, 2))
    table = source.measurements[source.measurements["key"] != "model/sqrt_kl"]
    assert _distance(validate(LANGUAGE), table, source.seeds) is None
    assert _distance(validate(LANGUAGE), table.iloc[:0], source.seeds) is None
