"""Figures of the searched space: parallel coordinates and importance.

Shape legend: N trials, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from proxygap.report.drawing import COLORS, Drawing, finish
from proxygap.report.records import Float
from proxygap.report.sweep_figures import MANY, STYLE
from proxygap.report.sweep_records import Axis, Place, SweepInput, Trial
from proxygap.report.sweep_verdict import side_axis
from proxygap.report.verdict import label, plural

SHADES = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.08, 0.95, 256)), name="outcome")


def parallel(records: SweepInput) -> Drawing | str:
    """One line per finished trial through the searched fields and both sides, colored by outcome."""
    trials = [trial for trial in records.compared if np.isfinite(trial.objective.estimate)] or list(records.compared)
    if len(trials) < 2:
        return "Parallel coordinates: fewer than two finished trials."
    both = any(np.isfinite(trial.objective.estimate) for trial in trials)
    columns = [_column(axis, trials) for axis in records.axes]
    columns += [_numbers(side_axis(records.objective), [t.objective.estimate for t in trials])] if both else []
    columns.append(_numbers(side_axis(records.outcome), [trial.outcome.estimate for trial in trials]))
    height_NA = np.stack([height_N for _, height_N, _ in columns], axis=1)
    outcome_N = np.array([trial.outcome.estimate for trial in trials])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        norm = norm_of(outcome_N)
        order = np.argsort([records.outcome.turned(value) for value in outcome_N])  # the best on top
        lines = [np.column_stack([np.arange(len(columns)), height_NA[row]]) for row in order]
        best = [1.0] * (len(order) - 1) + [2.6]
        axes.add_collection(
            LineCollection(
                lines, colors=SHADES(norm(outcome_N[order])), linewidths=best, alpha=0.75 if len(order) < 100 else 0.35,
                rasterized=len(order) > MANY,
            )
        )  # fmt: skip
        _upright(axes, columns)
        bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=axes, pad=0.02, aspect=35)
        bar.outline.set_visible(False)
        bar.set_label(side_axis(records.outcome), color=COLORS["outcome"])
        caption = f"{plural(len(trials), 'finished trial')}, one line each; thick: the best by outcome."
        return finish(figure, "parallel_coordinates", "Settings and both sides", caption)


def importance(records: SweepInput) -> Drawing | str:
    """Share of the outcome's variance that each field explains by itself, with its interval."""
    found = records.importance
    if not found.shares or not any(np.isfinite(share.estimate) for share in found.shares.values()):
        return f"Importance of the searched fields: {found.reason or 'the outcome hardly varied'}."
    names = list(found.shares)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.42 * len(names) + 1.1), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            share = found.shares[name]
            axes.barh(place, share.estimate, height=0.55, color=COLORS["outcome"], alpha=0.35)
            if share.known:
                axes.plot([share.low, share.high], [place, place], color=COLORS["ink"], linewidth=1.6)
            axes.plot(share.estimate, place, "o", color=COLORS["ink"], markersize=4)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlim(0, 1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"share of the variance of {label(records.outcome.name)}")
        left_out = sum(found.left_out.values())
        caption = (
            "What each field explains by itself (functional ANOVA on a random forest), with bootstrap intervals over "
            f"{plural(found.trials, 'trial')}; what the shares lack to 1 are interactions."
            + (f" {plural(left_out, 'other trial')} not used." if left_out else "")
        )
        return finish(figure, "importance", "Which fields mattered", caption)


def _column(axis: Axis, trials: Sequence[Trial]) -> tuple[str, Float, list[tuple[float, str]]]:
    """Name, height of each trial from 0 to 1, and ticks."""
    places: list[Place] = [trial.at.get(axis.name, float("nan")) for trial in trials]
    if axis.scale == "category":
        labels = list(axis.labels)
        step = 1 / max(1, len(labels) - 1)
        height_N = np.array([labels.index(str(place)) * step if place in labels else np.nan for place in places])
        return axis.name, height_N, [(index * step, _short(each)) for index, each in enumerate(labels)]
    return _numbers(axis.name, [float(place) for place in places], log=axis.scale == "log")


def _numbers(name: str, values: Sequence[float], *, log: bool = False) -> tuple[str, Float, list[tuple[float, str]]]:
    value_N = np.array(values, dtype=np.float64)
    place_N = np.log10(value_N) if log else value_N
    low, high = np.nanmin(place_N), np.nanmax(place_N)
    width = high - low or 1.0
    ticks = [low, (low + high) / 2, high] if high > low else [low]
    shown = [(float((tick - low) / width), f"{10**tick if log else tick:.3g}") for tick in ticks]
    return name, (place_N - low) / width, shown


def _upright(axes: Axes, columns: Sequence[tuple[str, Float, list[tuple[float, str]]]]) -> None:
    """Vertical axes with their ticks beside them and their names below."""
    last = len(columns) - 1
    axes.set_xlim(-0.25, last + 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, (_, _, ticks) in enumerate(columns):
        axes.axvline(place, color=COLORS["faint"], linewidth=0.9)
        for height, text in ticks:
            axes.annotate(text, (place, height), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center",
                          bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    crowded = len(columns) > 4
    names = [name.replace(".", ".\n") if crowded else name for name, _, _ in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=8 if crowded else 9)


def norm_of(value_N: Float) -> Normalize:
    """From the lowest to the highest finite value, whatever they are."""
    finite_N = value_N[np.isfinite(value_N)]
    low, high = (float(finite_N.min()), float(finite_N.max())) if len(finite_N) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1.0)


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "\u2026"
