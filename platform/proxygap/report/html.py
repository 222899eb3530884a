"""The pages: one self-contained HTML file, its figures as PNG beside it, and all measurements as parquet.

`write_report` makes a page of one experiment from its records alone: the same records give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from proxygap.base.errors import StorageError
from proxygap.report.analysis import Analysis, analyze, frame, last_value, onset_step
from proxygap.report.distance import distance_section, samples_section
from proxygap.report.drawing import Drawing
from proxygap.report.figures import draw_all
from proxygap.report.page import Column, Page, Row, Section, Table
from proxygap.report.records import METHODS, ReportInput, Statistics
from proxygap.report.verdict import correlation_text, interval_text, judge, label, number_text, plural


def write_report(report_input: ReportInput, out_folder: Path, statistics: Statistics) -> Path:
    """Write ``report.html``, one PNG per figure and ``measurements.parquet``; the page's path.

    Args:
        report_input: the experiment's records.
        out_folder: created if absent; files of an earlier report are replaced.
        statistics: the estimators, i.e. the module ``proxygap.probe.statistics``.

    Raises:
        StorageError: the folder cannot be written.
    """
    analysis = analyze(report_input, statistics)
    drawings, missing = draw_all(analysis, statistics)
    page = report_page(analysis, drawings, missing)
    write_page(page, drawings, out_folder, "report.html")
    table = pa.Table.from_pandas(frame(report_input), preserve_index=False)
    try:
        pq.write_table(table, out_folder / "measurements.parquet")
    except OSError as error:
        raise _unwritable(out_folder, error) from error
    return out_folder / "report.html"


def write_page(page: Page, drawings: Sequence[Drawing], out_folder: Path, name: str) -> None:
    """Write a page and its PNGs. Raises StorageError where the folder cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["cell"] = _cell
    text = environment.get_template("page.html").render(page=page)
    try:
        out_folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings:
            (out_folder / f"{drawing.name}.png").write_bytes(drawing.png)
        (out_folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(out_folder, error) from error


def report_page(analysis: Analysis, drawings: Sequence[Drawing], missing: Sequence[str]) -> Page:
    """The page of one experiment."""
    verdict, source = judge(analysis), analysis.input
    figures = [Section(drawing.title, drawings=(drawing,)) for drawing in drawings]
    sections = [*figures[:2], _outcomes(analysis), *distance_section(source), _links(analysis), *figures[2:]]
    sections += [_runs(analysis), *samples_section(source)]
    if missing:
        sections.append(Section("Not shown", " ".join(missing)))
    if source.events:
        sections.append(_events(source))
    sections += _origin(source)
    seeds = ", ".join(str(seed) for seed in analysis.seeds) or "none"
    subtitle = (source.question, f"Seeds {seeds}; intervals cover {source.confidence:.0%}.")
    footer = (
        f"{plural(len(source.measurements), 'measurement')} in measurements.parquet, figures as PNG beside this file."
    )
    return Page(source.name, verdict.kind, verdict.sentence, verdict.remarks, subtitle, tuple(sections), footer)


def _outcomes(analysis: Analysis) -> Section:
    rows = []
    for final in analysis.finals:
        unit = f" {final.unit}" if final.unit else ""
        notes = [final.overall.reason, f"{final.overall.dropped} without a value" if final.overall.dropped else ""]
        text = interval_text(final.overall) + (unit if final.overall.samples else "")
        rows.append(Row((label(final.outcome), text, str(final.overall.samples), "; ".join(filter(None, notes)))))
    columns = (Column("outcome", "outcome"), Column("at the end"), Column("seeds"), Column("remark"))
    note = "Interquartile mean over finished seeds, with its bootstrap interval over seeds."
    return Section("What came out", tables=(Table(columns, tuple(rows), note),))


def _links(analysis: Analysis) -> Section:
    rows = []
    for link in analysis.links:
        pooled = [correlation_text(link.pooled[method]) for method in METHODS]
        count = f"{link.evaluations} / {len(link.pairs)}"
        rows.append(Row((label(link.objective), *pooled, correlation_text(link.across_seeds), count)))
    names = tuple(Column(method.capitalize()) for method in METHODS)
    columns = (Column("objective", "objective"), *names, Column("across seeds"), Column("evaluations / seeds"))
    models = analysis.input.exchangeable
    resampled = (
        "model by model" if models else "in blocks of neighbors; two curves that both rise correlate for that alone"
    )
    note = (
        "Signed so that positive says: a better objective went with a better outcome. The first three are means over "
        f"seeds of the correlation within each, resampled {resampled}. Across seeds: Spearman of the "
        f"{'means' if models else 'last values'}, one point per seed."
    )
    title = f"Each objective against {label(analysis.outcome)}"
    if not rows:
        return Section(title, "No objective was measured.")
    return Section(title, tables=(Table(columns, tuple(rows), note),))


def _runs(analysis: Analysis) -> Section:
    rows = []
    for record in analysis.input.seeds:
        last, best = analysis.finals[0].per_seed[record.seed]
        per_seed = analysis.link.per_seed.get(record.seed) if analysis.link else None
        state = record.state + (f": {record.reason}" if record.reason else "")
        cells = (
            str(record.seed),
            number_text(last),
            number_text(best),
            correlation_text(per_seed) if per_seed else "\u2013",
            _onset(analysis, record.seed),
            state,
        )
        rows.append(Row(cells, failed=record.state == "failed"))
    outcome, last_or_mean = label(analysis.outcome), "mean" if analysis.input.exchangeable else "last"
    columns = (
        Column("seed"), Column(f"{last_or_mean} {outcome}", "outcome"), Column(f"best {outcome}", "outcome"),
        Column("Spearman within the seed"), Column("onset"), Column("state"),
    )  # fmt: skip
    note = (
        "Onset: the real step after which the objective still improved while the outcome fell by more than its noise. "
        "The best of many noisy evaluations flatters."
    )
    return Section("Runs", tables=(Table(columns, tuple(rows), note),))


def _onset(analysis: Analysis, seed: int) -> str:
    found = last_value(analysis.input, "gap/onset_found", seed)
    if found == 1:
        return f"step {onset_step(analysis.input, seed):,.0f}"
    return "none found" if found == 0 else "not looked for"


def _events(source: ReportInput) -> Section:
    rows = [
        Row(
            (
                "all" if event.seed is None else str(event.seed),
                f"{event.real_step:,}",
                event.kind,
                _detail(event.detail),
            )
        )
        for event in source.events
    ]
    columns = (Column("seed"), Column("real step"), Column("event"), Column("detail"))
    shown, hidden = rows[:200], max(0, len(rows) - 200)
    note = f"{hidden} later events are in the journals." if hidden else ""
    return Section("Events", tables=(Table(columns, tuple(shown), note),))


def _origin(source: ReportInput) -> list[Section]:
    rows = tuple(Row((key, value)) for key, value in _flat(source.provenance))
    table = (Table((Column("what"), Column("value")), rows),) if rows else ()
    experiment = Section(
        "Provenance",
        "" if rows else "None was recorded.",
        tables=table,
        pre=source.resolved_yaml,
        summary="Resolved experiment",
    )
    return [experiment]


def _flat(tree: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def _cell(text: str) -> str:
    """A cell's text that may break before an interval, but not inside it."""
    pieces = r"\[[^][]{1,40}\]|\([^()]{1,40}\)|^step .{1,40}$"
    return re.sub(pieces, lambda match: match[0].replace(" ", "\u00a0"), text)


def _detail(detail: Mapping[str, object]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in detail.items())


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"the report cannot be written: {error.strerror or error}",
        field=str(folder),
        remedy="Free space, or choose a folder that may be written",
    )
