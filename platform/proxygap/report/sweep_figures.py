"""Figures of a sweep that show trials against each other: outcome against objective, gap and cost.

Outcome stands upright in all of them. Where trials are many, points are kept as a picture inside the figure.

Shape legend: N trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from proxygap.report.drawing import BASE_STYLE, COLORS, Drawing, finish, focus
from proxygap.report.records import Float
from proxygap.report.sweep_records import SweepInput, Trial
from proxygap.report.sweep_verdict import clock_name, side_axis
from proxygap.report.verdict import correlation_text, label, plural

MANY = 250
"""Trials beyond which points are drawn as a picture, and whiskers only where they are chosen or on a front."""
STYLE: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **BASE_STYLE}
_FRONT: dict[str, Any] = {"color": COLORS["outcome"], "linewidth": 1.6, "drawstyle": "steps-post", "zorder": 3}
_CHOSEN: dict[str, dict[str, Any]] = {
    "best by outcome": {"marker": "*", "s": 210, "color": COLORS["outcome"]},
    "best by objective": {"marker": "D", "s": 62, "color": COLORS["objective"]},
}


def sides(records: SweepInput) -> Drawing | str:
    """Outcome against the objective, against the gap between the two orders, and against what it cost."""
    trials = [trial for trial in records.trials if np.isfinite(trial.outcome.estimate)]
    if not trials:
        return f"Outcome against gap and cost: no trial measured {label(records.outcome.name)}."
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 7.4), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(1.2, 1))
        above = figure.add_subplot(grid[0, :])
        left = figure.add_subplot(grid[1, 0], sharey=above)
        right = figure.add_subplot(grid[1, 1], sharey=above)
        _panel(above, records, trials, [trial.objective.estimate for trial in trials], whiskers=True)
        above.set_xlabel(side_axis(records.objective), color=COLORS["objective"])
        ranks = records.kendall
        above.set_title(f"Kendall's tau {correlation_text(ranks)},  n = {plural(ranks.samples, 'finished trial')}")
        cut = focus(above.set_xlim, _finite(trial.objective.estimate for trial in trials))
        gap_N = rank_gap(records, trials)
        _panel(left, records, trials, gap_N, cheap=gap_N)
        left.set_xlabel("gap: share of trials between its two ranks")
        cost, cost_N = costs(records, trials)
        _panel(right, records, trials, cost_N, cheap=cost_N)
        right.set_xlabel(cost)
        right.xaxis.set_major_locator(MaxNLocator(nbins=5))
        right.tick_params(labelleft=False)
        for axes in (above, left):
            axes.set_ylabel(side_axis(records.outcome), color=COLORS["outcome"])
        cut += focus(above.set_ylim, _finite(trial.outcome.estimate for trial in trials))
        figure.legend(handles=_legend(records, trials), loc="outside lower center", ncols=5, fontsize=9)
        absent = len(records.trials) - len(trials)
        caption = (
            "One point per trial. Above: what is optimized; whiskers are intervals over seeds"
            + (" of the chosen ones and those on a front" if len(trials) > MANY else "")
            + ". Left: how far apart the objective and the outcome rank a finished trial, 0 for the same rank. Right: "
            "what it cost, over all of its seeds. Lines: Pareto fronts of finished trials, no other is better in both."
            + (f" {plural(absent, 'trial')} without an outcome." if absent else "")
            + (" A few trials lie far outside the axes; the table has all." if cut else "")
        )
        return finish(figure, "outcome_against_gap_and_cost", "Outcome against objective, gap and cost", caption)


def rank_gap(records: SweepInput, trials: Sequence[Trial]) -> Float:
    """Distance between the two ranks of each finished trial, as a share of the largest there can be; (N,), else NaN."""
    gap_N = np.full(len(trials), np.nan)
    both = [i for i, t in enumerate(trials) if t.compared and np.isfinite(t.objective.estimate)]
    if len(both) < 2:
        return gap_N
    x_N = np.array([records.objective.turned(trials[i].objective.estimate) for i in both])
    y_N = np.array([records.outcome.turned(trials[i].outcome.estimate) for i in both])
    gap_N[both] = np.abs(_ranks(x_N) - _ranks(y_N)) / (len(both) - 1)
    return gap_N


def costs(records: SweepInput, trials: Sequence[Trial]) -> tuple[str, Float]:
    """What trials cost: a clock that the sweep chooses by, else the one that differs most, else seconds; (N,)."""
    goals = [best.goal.partition("/")[2] for best in records.best if best.goal.startswith("clock/")]
    spread = {}
    for clock in ("label", "real_step", "imagined_step", "policy_update", "model_update"):
        spent_N = np.array([trial.clocks.get(clock, 0) for trial in trials], dtype=np.float64)
        spread[clock] = float(np.ptp(spent_N) / spent_N.max()) if spent_N.any() else 0.0
    clock = goals[0] if goals else max(spread, key=lambda name: spread[name])
    if not goals and spread[clock] < 0.01:
        return "seconds from proposal to end", np.array([trial.seconds for trial in trials], dtype=np.float64)
    return f"{clock_name(clock)}s", np.array([trial.clocks.get(clock, np.nan) for trial in trials], dtype=np.float64)


def front_rows(cheap_N: Float, good_N: Float) -> NDArray[np.int64]:
    """Rows that no other beats: less of the first, more of the second; in the order of the first."""
    rows: list[int] = []
    order = np.lexsort((-good_N, cheap_N))
    for row in order[np.isfinite(cheap_N[order]) & np.isfinite(good_N[order])]:
        if not rows or good_N[row] > good_N[rows[-1]]:
            rows.append(int(row))
    return np.array(rows, dtype=np.int64)


def _panel(
    axes: Axes,
    records: SweepInput,
    trials: Sequence[Trial],
    x: Sequence[float] | Float,
    *,
    whiskers: bool = False,
    cheap: Float | None = None,
) -> None:
    """Trials by state, the chosen ones, and the front of finished trials where less of x is better."""
    x_N, y_N = np.asarray(x, dtype=np.float64), np.array([trial.outcome.estimate for trial in trials])
    good_N = np.array([records.outcome.turned(t.outcome.estimate) if t.compared else np.nan for t in trials])
    if cheap is not None:
        on_front = front_rows(cheap, good_N)
    else:
        on_front = front_rows(-np.array([records.objective.turned(t.objective.estimate) for t in trials]), good_N)
    many: dict[str, Any] = {"rasterized": len(trials) > MANY}
    styles: dict[str, dict[str, Any]] = _state_styles()
    for state, style in styles.items():
        rows = [index for index, trial in enumerate(trials) if trial.state == state]
        axes.scatter(x_N[rows], y_N[rows], **style, **many)
    if cheap is not None and len(on_front):
        axes.plot(x_N[on_front], y_N[on_front], **_FRONT)
    chosen = {name: [i for i, t in enumerate(trials) if t.number == number] for name, number in _chosen(records)}
    if whiskers:
        kept = set(range(len(trials))) if len(trials) <= MANY else {*on_front, *itertools.chain(*chosen.values())}
        _whiskers(axes, [trials[row] for row in sorted(kept)])
    for name, rows in chosen.items():
        axes.scatter(x_N[rows], y_N[rows], zorder=5, edgecolors="white", linewidths=0.8, **_CHOSEN[name])


def _whiskers(axes: Axes, trials: Sequence[Trial]) -> None:
    for trial in trials:
        x, y = trial.objective, trial.outcome
        line: dict[str, Any] = {"color": COLORS["faint"], "linewidth": 0.7, "alpha": 0.6, "zorder": 1}
        if y.known:
            axes.plot([x.estimate, x.estimate], [y.low, y.high], **line)
        if x.known:
            axes.plot([x.low, x.high], [y.estimate, y.estimate], **line)


def _chosen(records: SweepInput) -> list[tuple[str, int]]:
    found = [("best by outcome", records.compared[0].number)] if records.compared else []
    return [*found, *([("best by objective", records.price.by_objective)] if records.price else [])]


def _state_styles() -> dict[str, dict[str, Any]]:
    point: dict[str, Any] = {"s": 26, "zorder": 2}
    return {
        "finished": {**point, "color": COLORS["ink"], "alpha": 0.65, "linewidths": 0},
        "stopped": {**point, "facecolors": "none", "edgecolors": COLORS["faint"]},
        "failed": {**point, "marker": "x", "color": "#b3261e"},
        "running": {**point, "marker": "+", "color": COLORS["faint"]},
    }


def _legend(records: SweepInput, trials: Sequence[Trial]) -> list[Line2D]:
    """Marks of what is shown."""
    marks: dict[str, dict[str, Any]] = {
        "finished": {"marker": "o", "color": COLORS["ink"]},
        "stopped": {"marker": "o", "markerfacecolor": "none", "markeredgecolor": COLORS["faint"]},
        "failed": {"marker": "x", "markeredgecolor": "#b3261e"},
        "running": {"marker": "+", "markeredgecolor": COLORS["faint"]},
    }
    seen = {trial.state for trial in trials}
    handles = [Line2D([], [], linestyle="", label=name, **mark) for name, mark in marks.items() if name in seen]
    for name, _ in _chosen(records):
        style = _CHOSEN[name]
        mark = {"marker": style["marker"], "color": style["color"], "markersize": 12 if style["marker"] == "*" else 7}
        handles.append(Line2D([], [], linestyle="", label=name, **mark))
    return [*handles, Line2D([], [], color=_FRONT["color"], label="Pareto front")]


def _ranks(value_N: Float) -> Float:
    """Ranks from 0, ties sharing their mean."""
    _, place_N, count_N = np.unique(value_N, return_inverse=True, return_counts=True)
    mean_N: Float = (np.cumsum(count_N) - (count_N + 1) / 2)[place_N]
    return mean_N


def _finite(values: Any) -> Float:
    value_N = np.array(list(values), dtype=np.float64)
    return value_N[np.isfinite(value_N)]
