"""Figures of single trials of a sweep: weights and schedules over real steps, fronts of several rewards.

Shape legend: N vectors, T moments of one run.
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

from proxygap.report.drawing import COLORS, Drawing, finish, real_steps
from proxygap.report.records import Float
from proxygap.report.sweep_figures import MANY, STYLE
from proxygap.report.sweep_records import Front, SweepInput, Track
from proxygap.report.verdict import label

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
"""Colors that people with any color vision tell apart (Okabe and Ito 2008)."""
_FAR = 15
"""Ratio of real steps beyond which their axis is logarithmic."""
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))


def weights(records: SweepInput) -> Drawing | str:
    """Weights of a handful of trials over real steps."""
    if not records.weights:
        return "Weight trajectories: no shown trial has weights."
    return _tracks(
        records.weights,
        "weight_trajectories",
        "Weights over real steps",
        "weight",
        "Thin: one line per seed; thick: their mean. A weight holds until the next step.",
    )


def schedule(records: SweepInput) -> Drawing | str:
    """The schedule that population-based training found, a panel for each searched number."""
    if records.schedule is None or not records.schedule.lines:
        return "Schedules: no setting changed while a trial ran."
    whole = records.schedule
    panels = [Track(name, {name: lines}, whole.until) for name, lines in whole.lines.items()]
    caption = f"{whole.title}; each value holds until the next comparison that changed it."
    return _tracks(panels, "schedule", "The schedule that the population found", "", caption)


def fronts(front: Front) -> Drawing:
    """Vectors of component outcomes: union of all finished trials, single ones, and the known front."""
    pairs = list(itertools.combinations(range(len(front.components)), 2))[:3]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.6 if len(pairs) == 1 else 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (i, j) in enumerate(pairs):
            axes = figure.add_subplot(1, len(pairs), place + 1)
            flat = len(front.components) == 2
            if front.known is not None:
                order = np.argsort(front.known[:, i])
                line: dict[str, Any] = {"color": COLORS["faint"], "marker": ".", "linestyle": ":" if flat else ""}
                axes.plot(front.known[order, i], front.known[order, j], label="known front", **line)
            many: dict[str, Any] = {"rasterized": len(front.union) > MANY}
            axes.scatter(front.union[:, i], front.union[:, j], s=64, facecolors="none", label="all finished trials",
                         edgecolors=COLORS["ink"], **many)  # fmt: skip
            for index, (name, point_NR) in enumerate(front.alone.items()):
                style: dict[str, Any] = {"color": OKABE_ITO[index % len(OKABE_ITO)], "marker": "osD^vPX"[index % 7]}
                axes.scatter(point_NR[:, i], point_NR[:, j], s=20, label=name, alpha=0.85, **style)
            axes.set_xlabel(label(front.components[i]))
            axes.set_ylabel(label(front.components[j]))
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if flat else 3))
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9)
        caption = (
            f"Mean component outcomes of evaluated policies, {_whose(front)}; only vectors that no other of the same "
            "group beats in every component. The known front is that of the task."
        )
        return finish(figure, "fronts", "What the trials cover together", caption)


def coverage(front: Front) -> Drawing | str:
    """How much of the front is covered over real steps, those of all trials of a group added up."""
    paths = [each for each in front.coverage if len(each.path[0]) and np.isfinite(each.path[1]).all()]
    if not paths:
        return "Covered volume over real steps: the task has no reference point."
    known = front.known is not None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, each in enumerate(paths):
            style: dict[str, Any] = {"color": OKABE_ITO[index % len(OKABE_ITO)], "linestyle": _LINES[index % 4]}
            axes.plot(*each.path, drawstyle="steps-post", marker=".", linewidth=1.8, label=each.name, **style)
        axes.set_ylabel("share of the known volume" if known else "hypervolume", color=COLORS["outcome"])
        real_steps(axes)
        ends = [float(each.path[0][-1]) for each in paths]
        if max(ends) > _FAR * min(ends):
            axes.set_xscale("log")
        figure.legend(loc="outside lower center", ncols=2, fontsize=9)
        caption = (
            "Interquartile mean over seeds of what all vectors measured so far cover together. Real steps of one seed, "
            "added up over the trials of a group as they go forward side by side: at equal steps, one run that moves "
            "its weights stands beside a whole grid of fixed ones."
        )
        return finish(figure, "covered_volume", "Covered volume at equal real steps", caption)


def _whose(front: Front) -> str:
    return "first seed only, since each seed has a task of its own" if front.one_seed else "all seeds"


def _tracks(tracks: Sequence[Track], name: str, title: str, axis: str, caption: str) -> Drawing:
    """A panel for each track: its seeds thin, their mean thick."""
    names = list(dict.fromkeys(each for track in tracks for each in track.lines))
    apart = all(len(track.lines) == 1 for track in tracks) and len(tracks) == len(names)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.9 * len(tracks) + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(tracks), 1, sharex=True, squeeze=False)[:, 0]
        for axes, track in zip(panels, tracks, strict=True):
            for key, lines in track.lines.items():
                color = OKABE_ITO[0 if apart else names.index(key) % len(OKABE_ITO)]
                _track(axes, lines, track.until, color)
            axes.set_title(track.title, fontsize=10)
            axes.set_ylabel(axis)
        real_steps(panels[-1])
        if not apart:
            handles = [Line2D([], [], color=OKABE_ITO[i % len(OKABE_ITO)], label=key) for i, key in enumerate(names)]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)), fontsize=9)
        return finish(figure, name, title, caption)


def _track(axes: Axes, lines: Sequence[tuple[Float, Float]], until: float, color: str) -> None:
    grid_T = np.unique(np.concatenate([step_T for step_T, _ in lines] + [np.array([until])]))
    held = [_held(grid_T, step_T, value_T) for step_T, value_T in lines]
    thin: dict[str, Any] = {"color": color, "drawstyle": "steps-post"}
    if len(held) > 1:
        for value_T in held:
            axes.plot(grid_T, value_T, linewidth=0.8, alpha=0.4, **thin)
    axes.plot(grid_T, np.mean(held, axis=0), linewidth=2.2, **thin)


def _held(grid_T: Float, step_T: Float, value_T: Float) -> Float:
    """Each value until the next, on a common grid; NaN before the first."""
    at_T = np.searchsorted(step_T, grid_T, side="right") - 1
    return np.where(at_T >= 0, value_T[np.maximum(at_T, 0)], np.nan)
