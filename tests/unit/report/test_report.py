from __future__ import annotations

import html as html_text
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from proxygap.base.errors import InvalidExperiment, StorageError
from proxygap.base.seeds import generator
from proxygap.probe import statistics
from proxygap.report.analysis import analyze, last_value
from proxygap.report.compare import compare, comparison_page, write_comparison
from proxygap.report.html import write_report
from proxygap.report.records import COLUMNS, EventRecord, ReportInput, SeedRecord
from proxygap.report.verdict import judge, number_text

DIRECTIONS = {"objective/held_out_mse": "lower", "gap/onset_found": "lower"}


def readings(seed, real_step, **values):
    """Rows of one reading; ``objective__held_out_mse=0.1`` is the key ``objective/held_out_mse``."""
    rows = []
    for text, value in values.items():
        key = text.replace("__", "/", 1)
        side, name = key.split("/", 1)
        row = dict.fromkeys(COLUMNS, 0)
        row.update(seed=seed, key=key, side=side, name=name, value=float(value), unit="", real_step=real_step)
        row.update(direction=DIRECTIONS.get(key, "higher"), time=float(real_step))
        rows.append(row)
    return rows


def make(rows, seeds=(0,), failed=(), objective="held_out_log_likelihood", name="demo", **options):
    records = [SeedRecord(s, "failed" if s in failed else "finished", "boom <b>" if s in failed else "") for s in seeds]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return ReportInput(name, "Does it?", "name: demo", ("return",), objective, tuple(records), table,
                       resamples=300, **options)  # fmt: skip


def trend(sign, seeds=(0, 1), evaluations=20, noise=0.3, level=0.0):
    rng = generator(0, "test")
    rows = []
    for seed in seeds:
        x = rng.normal(size=evaluations)
        y = sign * x + noise * rng.normal(size=evaluations) + level + 100 * seed
        for index in range(evaluations):
            rows += readings(seed, 250 * (index + 1), objective__held_out_log_likelihood=x[index],
                             objective__held_out_mse=-x[index], outcome__return=y[index])  # fmt: skip
    return rows


def verdict_of(report_input):
    return judge(analyze(report_input, statistics))


def body(path):
    text = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)
    lines = [html_text.unescape(re.sub(r"<[^>]+>", " ", line)).strip() for line in text.splitlines()]
    return [line for line in lines[lines.index(next(filter(None, lines))) + 1 :] if line]


def test_a_seed_of_models_side_by_side_comes_to_their_mean():
    given = make(trend(1, evaluations=12), seeds=(0, 1), exchangeable=True)
    returns = given.measurements[given.measurements["key"] == "outcome/return"]
    mean = returns.groupby("seed")["value"].mean()
    found = analyze(given, statistics)
    for seed in (0, 1):
        assert last_value(given, "outcome/return", seed) == pytest.approx(mean[seed])
        assert found.finals[0].per_seed[seed][0] == pytest.approx(mean[seed])
    assert last_value(make(trend(1, evaluations=12), seeds=(0, 1)), "outcome/return", 0) != pytest.approx(mean[0])


@pytest.mark.parametrize(
    ("sign", "noise", "kind", "words"),
    [
        (1, 0.3, "yes", "A better dynamics model went with a better return here: Spearman 0.9"),
        (-1, 0.3, "opposite", "A better dynamics model went with a worse return here: Spearman \u22120.9"),
        (0, 1.0, "undecided", "This does not show whether a better dynamics model means a better return: Spearman"),
    ],
)
def test_verdict_says_what_the_interval_says(sign, noise, kind, words):
    verdict = verdict_of(make(trend(sign, noise=noise), seeds=(0, 1)))
    assert verdict.kind == kind
    assert verdict.sentence.startswith(words)
    assert "(2 seeds, 40 evaluations)" in verdict.sentence


def test_a_lower_objective_is_turned_around():
    analysis = analyze(make(trend(1), seeds=(0, 1), objective="held_out_mse"), statistics)
    assert judge(analysis).kind == "yes"
    assert analysis.link.lower_is_better
    assert analysis.link.pooled["kendall"].estimate > 0.5
    assert analysis.links[1].pooled["spearman"].estimate == analysis.link.pooled["spearman"].estimate


def test_few_evaluations_in_perfect_order_decide_nothing():
    rows = [row for step in range(1, 6) for row in
            readings(0, step, objective__held_out_log_likelihood=step, outcome__return=step)]  # fmt: skip
    verdict = verdict_of(make(rows))
    assert verdict.kind == "undecided"
    assert "at least 8 evaluations" in " ".join(verdict.remarks)
    assert "One seed says nothing about other seeds." in verdict.remarks


def test_an_onset_is_told_beside_the_correlation():
    rows = trend(1) + readings(1, 5000, gap__onset_found=1, gap__onset_real_step=3000)
    remarks = verdict_of(make(rows + readings(0, 5000, gap__onset_found=0), seeds=(0, 1))).remarks
    assert (
        "In 1 of 2 seeds the return turned down while the objective still improved (seed 1 from step 3,000)." in remarks
    )


def test_non_finite_pairs_are_left_out_and_counted():
    rows = trend(1)
    broken = [{**row, "value": np.nan} if row["real_step"] == 500 and row["side"] == "outcome" else row for row in rows]
    verdict = verdict_of(make(broken, seeds=(0, 1)))
    assert "38 evaluations" in verdict.sentence
    assert "2 pairs with a non-finite number left out." in verdict.remarks


def test_rows_that_replay_count_once():
    once = analyze(make(trend(1), seeds=(0, 1)), statistics)
    twice = analyze(make(trend(1) + trend(1), seeds=(0, 1)), statistics)
    assert twice.link.evaluations == 40
    assert twice.link.pooled["spearman"] == once.link.pooled["spearman"]


def test_report_is_whole_self_contained_and_reproducible(tmp_path):
    rows = trend(1, seeds=(0, 1, 2))
    for seed in (0, 1, 2):
        for step, scale in ((250, 2), (5000, 1)):
            rows += readings(seed, step, objective__disagreement=0.1 * scale, objective__imagined_return=50, **{
                f"model__k_step_error{q}/{k:02d}": k * scale * f
                for k in (1, 2, 3) for q, f in (("", 2), ("_p10", 1), ("_p90", 3))})  # fmt: skip
    source = make(rows, seeds=(0, 1, 2, 3), failed=(3,), provenance={"commit": "abc", "versions": {"torch": "2.13"}},
                  events=(EventRecord(0, "host_restarted", 250, {"host": 1}),))  # fmt: skip
    path = write_report(source, tmp_path / "a", statistics)
    lines = body(path)
    assert lines[0] == judge(analyze(source, statistics)).sentence
    text = path.read_text()
    for left in ("http://", "https://", "<script", "<link", "@import"):
        assert left not in text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace(
            'xmlns="http://www.w3.org/2000/svg"', ""
        )
    page = "\n".join(lines)
    assert "failed: boom <b>" in page
    assert "boom <b>" not in text
    assert "versions.torch" in page
    assert "host_restarted" in page
    names = {"objective_against_outcome", "both_sides_over_time", "k_step_error", "member_disagreement",
             "imagined_against_real_return"}  # fmt: skip
    assert {png.stem for png in (tmp_path / "a").glob("*.png")} == names
    assert text.count("<svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "var(--objective)" in text
    table = pq.read_table(tmp_path / "a" / "measurements.parquet").to_pandas()
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == len(rows)
    again = write_report(source, tmp_path / "b", statistics)
    for file in path.parent.iterdir():
        assert file.read_bytes() == (again.parent / file.name).read_bytes()


@pytest.mark.parametrize(("least", "kind"), [(90.0, "opposite"), (-20.0, "undecided")])
def test_attacked_models_are_judged_by_what_they_lost(least, kind):
    rows = []
    for seed in (0, 1, 2):
        for step in (1, 2):
            lost = (step - 1) * (least + 20 * seed)
            rows += readings(seed, step, outcome__return=198 - lost, objective__held_out_log_likelihood=25 - step,
                             gap__return_lost=lost, gap__likelihood_lost=0.4 * (step - 1))  # fmt: skip
    rows += readings(3, 1, gap__return_lost=0.0, gap__likelihood_lost=0.0)  # failed at a milder rung: it does not count
    verdict = verdict_of(make(rows, seeds=(0, 1, 2, 3), failed=(3,)))
    assert verdict.kind == kind
    half = 20 * 4.3027 / 3**0.5  # Student's t, two degrees of freedom
    shown = f"{least + 20:.1f}" if least > 0 else "0.00"
    assert f"{shown} [{least + 20 - half:.2f}, ".replace("-", "\u2212") in verdict.sentence
    assert "0.40 [0.40, 0.40] nats of held-out log-likelihood (3 seeds)" in verdict.sentence


def test_estimates_of_the_error_are_drawn_a_color_each_with_the_place_of_chance(tmp_path):
    rows = trend(1, seeds=(0, 1))
    for seed in (0, 1):
        for step in (250, 5000):
            ranks = {f"model__uncertainty_spearman/{kind}": rho for kind, rho in (("deup", 0.8), ("disagreement", 0.2))}
            rows += readings(seed, step, **ranks)
    path = write_report(make(rows, seeds=(0, 1)), tmp_path, statistics)
    assert (tmp_path / "uncertainty_against_error.png").exists()
    drawn = path.read_text().split('id="uncertainty_against_error-', 1)[1]
    assert {kind for kind in ("deup", "disagreement", "both") if f">{kind}</text>" in drawn} == {"deup", "disagreement"}


@pytest.mark.parametrize(
    ("source", "first", "also"),
    [
        (make([], seeds=(0, 1), failed=(0, 1)), "No verdict: nothing was measured.", "2 of 2 seeds did not finish"),
        (
            make(readings(0, 250, outcome__return=1.0)),
            "No verdict: the objective held-out log-likelihood was never measured.",
            "there is no ensemble",
        ),
        (
            make(readings(0, 250, outcome__return=1.0, objective__value_estimate=2.0), objective=None),
            "No verdict: there is no correlation of value estimate of the critics and return (pairs: 1",
            "no dynamics model was tested",
        ),
        (
            make(readings(0, 250, objective__held_out_log_likelihood=1.0)),
            "No verdict: the outcome return was never measured.",
            "the outcome was never measured",
        ),
        (
            make(readings(0, 250, objective__held_out_log_likelihood=1.0) + readings(0, 500, outcome__return=1.0)),
            "No verdict: no objective was measured at the same steps as return.",
            "never measured at the same steps",
        ),
    ],
)
def test_missing_pieces_still_make_a_page_that_says_so(tmp_path, source, first, also):
    lines = body(write_report(source, tmp_path, statistics))
    assert lines[0].startswith(first)
    assert also in "\n".join(lines)


def test_a_table_without_columns_is_refused():
    with pytest.raises(StorageError, match="real_step"):
        ReportInput("demo", "?", "", ("return",), None, (), pd.DataFrame({"seed": []}))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(make(trend(1), seeds=(0, 1)), tmp_path / "file" / "report", statistics)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4242, "0.42"), (-12.345, "\u221212.35"), (987.65, "987.6"), (12345.6, "12,346"), (0.004, "0.004"),
     (float("nan"), "\u2013"), (0, "0.00")],
)  # fmt: skip
def test_numbers_are_written_to_be_read(value, text):
    assert number_text(value) == text


def flat(level, seeds, last=1000, name="x"):
    """A return that rises linearly from 0 to ``level``, plus the seed's luck."""
    rows = [row for seed in seeds for step in range(250, last + 1, 250)
            for row in readings(seed, step, outcome__return=level * step / 1000 + 10 * seed,
                                objective__held_out_log_likelihood=level)]  # fmt: skip
    return make(rows, seeds=seeds, name=name)


def test_comparison_is_paired_at_equal_steps(tmp_path):
    base, better = flat(100, (0, 1, 2, 3), 2000, "sac"), flat(130, (1, 2, 3, 4), 1000, "mbpo")
    comparison = compare([base, better], "return", statistics)
    assert comparison.real_step == 1000
    difference = comparison.entries[1].final_minus_baseline
    assert difference.estimate == pytest.approx(30)
    assert difference.samples == 3
    # a line from 250 to 1000 has its mean at 625
    assert comparison.entries[1].area_minus_baseline.estimate == pytest.approx(30 * 0.625)
    page = comparison_page(comparison)
    assert page.verdict == "mbpo gave a better return than sac: difference 30.00 [30.00, 30.00] on 3 equal seeds."
    assert body(write_comparison(comparison, tmp_path))[0] == page.verdict
    assert comparison.population["held_out_log_likelihood"][0].samples == 8


def test_models_side_by_side_are_compared_by_their_means():
    base, better = (replace(flat(level, (0, 1, 2)), exchangeable=True) for level in (100, 130))
    entry = compare([base, better], "return", statistics).entries[1]
    assert entry.final_minus_baseline.estimate == pytest.approx(30 * 0.625)
    assert entry.area_minus_baseline.estimate == pytest.approx(30 * 0.625)


def test_a_comparison_of_too_little_stays_undecided():
    two = comparison_page(compare([flat(100, (0, 1), name="a"), flat(130, (0, 1), name="b")], "return", statistics))
    assert two.verdict.startswith("Undecided")
    none = comparison_page(compare([flat(100, (0,), name="a"), flat(130, (1,), name="b")], "return", statistics))
    assert none.verdict == "b and a share no seed on which both gave a return."


def test_a_comparison_names_what_is_missing():
    with pytest.raises(InvalidExperiment, match="two experiments"):
        compare([flat(1, (0,))], "return", statistics)
    with pytest.raises(InvalidExperiment, match="It measured: return"):
        compare([flat(1, (0,)), flat(1, (0,))], "episode_length", statistics)
