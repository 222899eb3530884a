"""Sections of a report on answers: the turning point and the fitted law in numbers, and a page of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from proxygap.report.page import Column, Row, Section, Table
from proxygap.report.records import Distance, LawLike, ReportInput
from proxygap.report.verdict import interval_text, number_text, plural

SHOWN = 40
"""Sample answers on the page; the parquet file beside the run has all."""
TEXT_SHOWN = 240
"""Characters of a prompt or an answer on the page."""
_STYLE = "style_"
_LAW_NOTE = (
    "The law is least squares through the reference, d = sqrt(KL); its intervals resample whole seeds. Best-of-n and "
    "reinforcement learning differ in form (Gao et al. 2023)."
)
_FORMS = {"best_of_n": "d (\u03b1 \u2212 \u03b2 d)", "rl": "d (\u03b1 \u2212 \u03b2 log d)"}


def distance_section(source: ReportInput) -> list[Section]:
    """Where gold turns down, and the law of over-optimization."""
    if source.distance is None:
        return []
    rows = tuple(Row(cells) for cells in distance_rows(source.distance))
    note = (
        "A turning point is reported only where gold before the end lies above gold at the end by more than noise "
        "between seeds. The loss places each seed's peak by the other seeds, so that picking the highest point does "
        "not make one. " + ("" if source.distance.law is None else _LAW_NOTE)
    )
    return [Section("Does gold turn down?", tables=(Table((Column("what"), Column("value")), rows, note.strip()),))]


def distance_rows(distance: Distance) -> list[tuple[str, str]]:
    """The numbers, by what they are."""
    knee = distance.knee
    rows = [("turning point", f"{interval_text(knee.kl)} nats" if knee.found else knee.reason)]
    if knee.found:
        rows.append(("gold there", interval_text(knee.gold)))
        rows.append(("proxy gained from there to the end", interval_text(knee.proxy_rise)))
    rows.append(("gold lost from its peak to the end", interval_text(knee.drop)))
    return rows if distance.law is None else rows + _law_rows(distance.law)


def _law_rows(law: LawLike) -> list[tuple[str, str]]:
    return [
        ("law of gold", _FORMS.get(law.law, law.law)),
        ("\u03b1", interval_text(law.alpha)),
        ("\u03b2", interval_text(law.beta)),
        ("the law turns down at d", _peak_text(law)),
        ("R\u00b2 of one curve for all seeds", number_text(law.r_squared)),
        ("R\u00b2 of a curve for each seed, median", number_text(law.r_squared_own)),
    ]


def _peak_text(law: LawLike) -> str:
    """Where the law turns down; a peak beyond the data is only the formula's."""
    peak = law.peak_d
    if math.isinf(peak.estimate):
        return "never"
    beyond = f"beyond the farthest point, {number_text(law.largest_d)}" if peak.estimate > law.largest_d else ""
    notes = [note for note in (beyond, "" if peak.known else peak.reason) if note]
    return interval_text(peak) + (f" ({'; '.join(notes)})" if notes else "")


def samples_section(source: ReportInput) -> list[Section]:
    """Answers with what both sides say of them, the worst disagreements first; of the first seed that kept some."""
    kept = [(seed, rows) for seed, rows in source.samples.items() if rows]
    return [_samples(*kept[0])] if kept else []


def _samples(seed: int, rows: Sequence[Mapping[str, Any]]) -> Section:
    styles = [name for name in rows[0] if name.startswith(_STYLE)]
    several = len(rows[0]["member_scores"]) > 1
    columns = (
        Column("prompt"),
        Column("answer"),
        Column("proxy", "objective"),
        Column("gold", "outcome"),
        Column("rank gap"),
        *([Column("members")] if several else []),
        *([Column("style")] if styles else []),
    )
    shown = tuple(Row(_cells(row, styles, several=several)) for row in rows[:SHOWN])
    note = (
        "Answers of the last policy. The rank gap is the rank by proxy minus the rank by gold, ranks from 0 to 1: 1 is "
        f"best by proxy and worst by gold. All {plural(len(rows), 'answer')} kept are in samples.parquet of the seed."
    )
    return Section(f"Answers of seed {seed}, worst disagreements first", tables=(Table(columns, shown, note),))


def _cells(row: Mapping[str, Any], styles: Sequence[str], *, several: bool) -> tuple[str, ...]:
    members = [" ".join(number_text(score) for score in row["member_scores"])] if several else []
    style = [f"{name.removeprefix(_STYLE).replace('_', ' ')} {_counted(row[name])}" for name in styles]
    return (
        _short(row["prompt"]),
        _short(row["answer"]),
        *(number_text(row[name]) for name in ("proxy_reward", "gold_reward", "rank_surplus")),
        *members,
        *([", ".join(style)] if style else []),
    )


def _counted(value: float) -> str:
    return number_text(value).removesuffix(".00")


def _short(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "\u2026"
