"""Heat maps of the outcome over two or three searched fields: ensemble size, aggregation and penalty above all.

Shape legend: X columns, Y rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from proxygap.report.drawing import COLORS, Drawing, finish
from proxygap.report.records import IntervalLike, Statistics
from proxygap.report.sweep_figures import STYLE
from proxygap.report.sweep_records import Axis, SweepInput, Trial
from proxygap.report.sweep_space import SHADES, norm_of
from proxygap.report.sweep_verdict import side_axis
from proxygap.report.verdict import label, number_text, plural

MOST_PLACES = 12
"""Distinct values beyond which a field is no axis of a heat map."""
BINS = 4
"""Groups of equally many trials that a penalty on a range is cut into."""
MOST_MAPS = 4
MEMBERS = (".members",)
AGGREGATION = ("judge.aggregate", "judge.aggregate.kind")
PENALTIES = (
    "judge.aggregate.penalty", "optimize.kl.coefficient", "optimize.kl.target", "optimize.kl", "loop.largest_kl",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """Trials with the same places on the axes of a heat map."""

    column: str
    row: str
    panel: str
    trials: int
    outcome: IntervalLike


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Mean outcome over trials by two or three fields; ``panel`` is empty for two."""

    column: str
    row: str
    panel: str
    cells: tuple[Cell, ...]
    orders: Mapping[str, tuple[str, ...]]


def heat_maps(records: SweepInput, statistics: Statistics) -> list[HeatMap]:
    """Ensemble size, aggregation and penalty first, where they are searched; then pairs of discrete fields."""
    trials = records.compared
    groups = {axis.name: found for axis in records.axes if (found := _groups(axis, trials)) is not None}
    roles = [name for wanted in (MEMBERS, AGGREGATION, PENALTIES) if (name := _first(groups, wanted))]
    discrete = [name for name in groups if name not in _binned(records.axes)]
    ranks = {name: rank for rank, name in enumerate(records.importance.shares)}
    discrete.sort(key=lambda name: ranks.get(name, len(ranks)))
    chosen = [tuple(roles)] if len(roles) >= 2 else []
    for pair in itertools.combinations(discrete, 2):
        if not any(set(pair) <= set(each) for each in chosen) and len(chosen) < MOST_MAPS:
            chosen.append(pair)
    return [_heat_map(names, trials, groups, statistics) for names in chosen]


def draw_heat_map(found: HeatMap, number: int, records: SweepInput) -> Drawing:
    """The map: colors are means over trials, the small print counts them."""
    columns, rows = found.orders[found.column], found.orders[found.row]
    panels = found.orders[found.panel] if found.panel else ("",)
    wide = min(len(panels), 2 if len(columns) > 3 else 3)
    tall = -(-len(panels) // wide)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(7.6, tall * (0.62 * len(rows) + 1.0) + 0.3), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
        norm = norm_of(np.array([cell.outcome.estimate for cell in found.cells]))
        for axes, panel in itertools.zip_longest(grid.flat, panels):
            if panel is None:
                axes.set_visible(False)
                continue
            _map(axes, [cell for cell in found.cells if cell.panel == panel], columns, rows, norm)
            if found.panel:
                axes.set_title(f"{_last(found.panel)}: {panel}", fontsize=9.5)
        for axes in grid[-1]:
            axes.set_xlabel(found.column)
        for axes in grid[:, 0]:
            axes.set_ylabel(_last(found.row) if len(found.row) > 8 * len(rows) else found.row)
        bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=grid, pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label(side_axis(records.outcome), color=COLORS["outcome"])
        names = " by ".join(filter(None, [found.row, found.column, found.panel]))
        caption = (
            f"Mean {label(records.outcome.name)} over the finished trials in each cell; below it their number n, each "
            f"over {plural(len(records.seeds), 'seed')}. Intervals are in the table. Other fields differ between cells."
        )
        return finish(figure, f"heat_map_{number}", f"Outcome by {names}", caption)


def _map(axes: Axes, cells: Sequence[Cell], columns: Sequence[str], rows: Sequence[str], norm: Normalize) -> None:
    value_YX = np.full((len(rows), len(columns)), np.nan)
    for cell in cells:
        y, x = rows.index(cell.row), columns.index(cell.column)
        value_YX[y, x] = cell.outcome.estimate
        dark = norm(cell.outcome.estimate) < 0.6
        style: dict[str, Any] = {"color": "white" if dark else "black", "ha": "center", "va": "center"}
        axes.text(x, y - 0.1, number_text(cell.outcome.estimate), fontsize=9.5, **style)
        axes.text(x, y + 0.25, f"n = {cell.trials}", fontsize=7, **style)
    axes.imshow(value_YX, cmap=SHADES, norm=norm, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=20 if max(map(len, columns)) > 9 else 0, fontsize=9)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)


def _heat_map(
    names: Sequence[str], trials: Sequence[Trial], groups: Mapping[str, list[str]], statistics: Statistics
) -> HeatMap:
    column, row, panel = (*names, "")[:3]
    cells: dict[tuple[str, str, str], list[Trial]] = {}
    for index, trial in enumerate(trials):
        key = groups[column][index], groups[row][index], groups[panel][index] if panel else ""
        cells.setdefault(key, []).append(trial)
    found = tuple(Cell(*key, len(members), _mean(members, statistics)) for key, members in cells.items())
    orders = {name: tuple(_ordered(groups[name])) for name in filter(None, (column, row, panel))}
    return HeatMap(column, row, panel, found, orders)


def _mean(trials: Sequence[Trial], statistics: Statistics) -> IntervalLike:
    """Over trials, with Student's interval; of a single trial, its own over seeds."""
    if len(trials) == 1:
        return trials[0].outcome
    values = [trial.outcome.estimate for trial in trials]
    return statistics.paired_difference(values, np.zeros(len(values)))


def _groups(axis: Axis, trials: Sequence[Trial]) -> list[str] | None:
    """The group of each trial on an axis; None where it has too many values to be one of a heat map."""
    places = [trial.at.get(axis.name, "") for trial in trials]
    if axis.scale == "category" or len(set(places)) <= MOST_PLACES // 2:
        found = [place if isinstance(place, str) else f"{place:g}" for place in places]
        return found if 1 < len(set(found)) <= MOST_PLACES else None
    if axis.name not in PENALTIES or len(places) < 2 * BINS:
        return None
    value_N = np.array(places, dtype=np.float64)
    edges = np.quantile(value_N, np.linspace(0, 1, BINS + 1))
    bin_N = np.clip(np.searchsorted(edges, value_N, side="right") - 1, 0, BINS - 1)
    return [f"{edges[each]:.2g} to {edges[each + 1]:.2g}" for each in bin_N]


def _binned(axes: Sequence[Axis]) -> set[str]:
    return {axis.name for axis in axes if axis.scale != "category" and axis.name in PENALTIES}


def _ordered(groups: Sequence[str]) -> list[str]:
    """By number where each begins with one, else by name."""

    def number(text: str) -> float:
        try:
            return float(text.split()[0])
        except (ValueError, IndexError):
            return float("nan")

    distinct = sorted(set(groups))
    return distinct if any(np.isnan(number(each)) for each in distinct) else sorted(distinct, key=number)


def _first(groups: Mapping[str, list[str]], wanted: Sequence[str]) -> str:
    """The first field of a role that can be an axis."""
    return next(
        (name for end in wanted for name in groups if name == end or (end[0] == "." and name.endswith(end))), ""
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
