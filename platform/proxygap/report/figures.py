"""Figures of both sides: against each other, over time, and along the distance from the reference.

Shape legend: S seeds, T evaluations of one seed, G points of a common grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from proxygap.report.analysis import Analysis, Link, band, onset_step, series
from proxygap.report.drawing import BASE_STYLE, COLORS, Drawing, blank, finish, focus, real_steps, thousands
from proxygap.report.model_figures import disagreement, k_step_fan, promise, ranking
from proxygap.report.records import CurveLike, Statistics
from proxygap.report.verdict import interval_text, label

Float = NDArray[np.float64]
_MARKERS = "osD^vPX*"
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_DISTANCE = "distance from the reference, sqrt(KL / nat)"
_DEVIATIONS = "standard deviations of the reference"
_STEPS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.12, 0.9, 256)), name="real steps")


def draw_all(analysis: Analysis, statistics: Statistics) -> tuple[list[Drawing], list[str]]:
    """Every figure that the records can give, and a sentence for each that they cannot."""
    style: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **BASE_STYLE}
    with mpl.rc_context(style):
        answers = [
            *along_distance(analysis),
            scatter(analysis),
            curves(analysis, statistics),
            k_step_fan(analysis),
            disagreement(analysis),
            promise(analysis),
            *ranking(analysis),
        ]
    drawings = [answer for answer in answers if isinstance(answer, Drawing)]
    return drawings, [answer for answer in answers if isinstance(answer, str)]


def scatter(analysis: Analysis) -> Drawing | str:
    """Objective against outcome, one point per evaluation."""
    link = analysis.link
    if link is None:
        return "Objective against outcome: the two were never measured at the same steps."
    figure, (axes,) = blank(4.3)
    every = np.concatenate([one.real_step_T for one in link.pairs])
    norm = mpl.colors.Normalize(every.min(), max(every.max(), every.min() + 1))
    for one, marker in zip(link.pairs, _markers(link), strict=False):
        style: dict[str, Any] = {
            "cmap": _STEPS,
            "norm": norm,
            "marker": marker,
            "s": 42,
            "linewidths": 0.6,
            "edgecolors": COLORS["ink"],
        }
        axes.scatter(one.objective_T, one.outcome_T, c=one.real_step_T, label=f"seed {one.seed}", alpha=0.9, **style)
    mappable = mpl.cm.ScalarMappable(norm, _STEPS)
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=30, format=FuncFormatter(thousands))
    bar.outline.set_visible(False)
    bar.set_label("model" if analysis.input.exchangeable else "real steps")
    axes.set_xlabel(_axis(link), color=COLORS["objective"])
    axes.set_ylabel(_outcome_axis(analysis), color=COLORS["outcome"])
    if 1 < len(link.pairs) <= 5:
        style = {"handletextpad": 0.1, "columnspacing": 1.0}
        figure.legend(loc="outside lower center", ncols=len(link.pairs), fontsize=9, **style)
    outside = focus(axes.set_xlim, np.concatenate([one.objective_T for one in link.pairs]))
    axes.set_title(f"Spearman {interval_text(link.pooled['spearman'])},  n = {link.evaluations}")
    point = (
        "One point per model; color is its turn, which means nothing, the marker is the seed. "
        if analysis.input.exchangeable
        else "One point per evaluation, both sides measured at the same step of the same run; color is time, the "
        "marker is the seed. "
    )
    caption = (
        f"{point}The correlation is the mean over seeds of the correlation within each"
        + (", signed so that better objective with better outcome is positive." if link.lower_is_better else ".")
        + outside
    )
    return finish(figure, "objective_against_outcome", "Objective against outcome", caption)


def curves(analysis: Analysis, statistics: Statistics) -> Drawing | str:
    """Both sides over real steps, one above the other."""
    keys = {"outcome": f"outcome/{analysis.outcome}"}
    if analysis.link is not None:
        keys = {"objective": f"objective/{analysis.link.objective}", **keys}
    if all(len(series(analysis.input, keys["outcome"], seed)[0]) == 0 for seed in analysis.seeds):
        return "Both sides over time: the outcome was never measured."
    figure, panels = blank(2.4 * len(keys) + 0.5, len(keys))
    outside = ""
    for axes, (side, key) in zip(panels, keys.items(), strict=True):
        _curve(axes, analysis, key, COLORS[side], statistics)
        text = _axis(analysis.link) if side == "objective" and analysis.link else _outcome_axis(analysis)
        axes.set_ylabel(text, color=COLORS[side])
        seen = [series(analysis.input, key, seed)[1] for seed in analysis.seeds]
        outside += focus(axes.set_ylim, np.concatenate(seen)) if side == "objective" else ""
        for step in _onsets(analysis):
            axes.axvline(step, color=COLORS["ink"], linewidth=1, linestyle=":")
    real_steps(panels[-1])
    shown = "thick: interquartile mean over seeds with its interval; " if len(analysis.seeds) >= 3 else ""
    caption = f"Thin: one line per seed; {shown}dotted: onset, where one was found.{outside}"
    return finish(figure, "both_sides_over_time", "Both sides over real steps", caption)


def along_distance(analysis: Analysis) -> list[Drawing | str]:
    """Proxy and gold over sqrt(KL): the curve of over-optimization."""
    distance = analysis.input.distance
    if distance is None:
        return []
    every = [d for curve in distance.curves.values() for d in curve.d_T if np.isfinite(d)]
    if not every:
        return ["Proxy and gold along the distance: no evaluation gave a finite distance."]
    figure, (axes,) = blank(4.3)
    mean, sides = _mean_curve(distance.aligned), {"proxy": ("objective", "--"), "gold": ("outcome", "-")}
    for side, (color, line) in sides.items():
        thin: dict[str, Any] = {"linewidth": 1, "alpha": 0.35 if mean else 0.9, "marker": "." if len(every) < 3 else ""}
        for index, curve in enumerate(distance.curves.values()):
            name = None if mean or index else side
            axes.plot(curve.d_T, getattr(curve, f"{side}_T"), color=COLORS[color], linestyle=line, label=name, **thin)
        if mean:
            values = getattr(mean, f"{side}_T")
            axes.plot(mean.d_T, values, color=COLORS[color], linestyle=line, linewidth=2.4, label=side)
    if distance.law is not None:
        grid = np.linspace(0, max(every), 200)
        axes.plot(grid, distance.law.gold(grid), color=COLORS["ink"], linewidth=1.2, linestyle=":", label="fitted law")
    if distance.knee.found:
        axes.axvspan(distance.knee.d.low, distance.knee.d.high, color=COLORS["faint"], alpha=0.2, linewidth=0)
        axes.axvline(distance.knee.d.estimate, color=COLORS["ink"], linewidth=1)
    axes.set_ylabel(_DEVIATIONS if analysis.finals[0].unit == "std" else label(analysis.outcome))
    _distances(axes, max(every))
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    caption = (
        "Dashed: the proxy that is optimized; solid: the gold reward that is wanted"
        + ("; thin lines are seeds, thick ones their mean at equal stages." if mean else "; one line per seed.")
        + (" Gray: the turning point with its interval." if distance.knee.found else "")
        + (" Dotted: the law fitted to all seeds." if distance.law is not None else "")
    )
    return [finish(figure, "along_the_distance", "Proxy and gold along the distance from the reference", caption)]


def compare_distances(curves: Sequence[tuple[str, Sequence[CurveLike]]]) -> Drawing | str:
    """Gold of several experiments over sqrt(KL), means over seeds, and below it the proxies that were optimized.

    A sentence instead where no seed of any experiment is finite throughout.
    """
    means = [(name, mean) for name, aligned in curves if (mean := _mean_curve(aligned, fewest=1)) is not None]
    if not means:
        return "No experiment has a seed whose curve is finite throughout."
    columns = max(1, min(4, len(means), int(88 / (max(len(name) for name, _ in means) + 7))))
    style: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **BASE_STYLE}
    with mpl.rc_context(style):
        figure, (above, below) = blank(5.6 + 0.2 * -(-len(means) // columns), 2, (3, 2))
        for index, (name, mean) in enumerate(means):
            line: dict[str, Any] = {
                "color": mpl.colormaps["tab10"](index % 10),
                "linestyle": _LINES[index // 10 % len(_LINES)],
            }
            above.plot(mean.d_T, mean.gold_T, linewidth=2.2, label=name, **line)
            below.plot(mean.d_T, mean.proxy_T, linewidth=1.6, **line)
            low_T, high_T = mean.gold_T - mean.gold_error_T, mean.gold_T + mean.gold_error_T
            above.fill_between(mean.d_T, low_T, high_T, color=line["color"], alpha=0.15, linewidth=0)
        above.set_ylabel("gold", color=COLORS["outcome"])
        below.set_ylabel("proxy", color=COLORS["objective"])
        _distances(above, max(float(mean.d_T.max()) for _, mean in means), name_it=False)
        below.set_xlabel(_DISTANCE)
        below.axhline(0, color=COLORS["faint"], linewidth=0.8)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
        caption = (
            "Means over seeds at equal stages. Above: gold, in standard deviations of the reference, with its standard "
            "error over three seeds or more. Below: the proxy that was optimized, as its own judge gives it."
        )
        return finish(figure, "gold_along_the_distance", "Gold along the distance from the reference", caption)


@dataclass(frozen=True, slots=True)
class _Mean:
    """Mean of aligned curves, and the standard error of gold (0 for fewer than three seeds)."""

    d_T: Float
    gold_T: Float
    proxy_T: Float
    gold_error_T: Float


def _mean_curve(aligned: Sequence[CurveLike], fewest: int = 3) -> _Mean | None:
    """Over the seeds that are finite throughout, as in ``proxygap.probe.knee``; None for fewer than ``fewest``."""
    stacked = [np.stack([curve.d_T, curve.gold_T, curve.proxy_T]) for curve in aligned if len(curve.d_T)]
    whole = [columns for columns in stacked if np.isfinite(columns).all()]
    if len(whole) < fewest:
        return None
    columns_S3T = np.stack(whole)
    gold_ST = columns_S3T[:, 1]
    error_T = gold_ST.std(axis=0, ddof=1) / np.sqrt(len(whole)) if len(whole) >= 3 else np.zeros(gold_ST.shape[1])
    d_T, gold_T, proxy_T = columns_S3T.mean(axis=0)
    return _Mean(d_T, gold_T, proxy_T, error_T)


def _distances(axes: Axes, farthest: float, *, name_it: bool = True) -> None:
    """The axis of distances, from 0, with the same places in KL on the upper edge."""
    axes.axhline(0, color=COLORS["faint"], linewidth=0.8)
    axes.set_xlim(0, 1.03 * farthest or 1.0)
    above = axes.secondary_xaxis("top", functions=(np.square, lambda kl: np.sqrt(np.maximum(kl, 0))))
    above.set_xlabel("KL, nats")
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= axes.get_xlim()[1]]
    above.set_xticks(np.square(ticks), [f"{tick**2:.3g}" for tick in ticks])
    if name_it:
        axes.set_xlabel(_DISTANCE)


def _curve(axes: Axes, analysis: Analysis, key: str, color: str, statistics: Statistics) -> None:
    lines = [series(analysis.input, key, seed) for seed in analysis.seeds]
    many = sum(len(steps_T) > 1 for steps_T, _ in lines) >= 3
    for steps_T, values_T in lines:
        marker = "o" if len(steps_T) == 1 else None
        axes.plot(steps_T, values_T, color=color, linewidth=1, alpha=0.4 if many else 0.9, marker=marker, markersize=4)
    if not many:
        return
    grid_G, intervals = band(lines, analysis.input, statistics, key)
    center, low, high = (np.array([getattr(it, end) for it in intervals]) for end in ("estimate", "low", "high"))
    axes.fill_between(grid_G, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(grid_G, center, color=color, linewidth=2.4)


def _onsets(analysis: Analysis) -> list[float]:
    steps = [onset_step(analysis.input, seed) for seed in analysis.seeds]
    return [step for step in steps if np.isfinite(step)]


def _markers(link: Link) -> Sequence[str]:
    return [_MARKERS[index % len(_MARKERS)] for index in range(len(link.pairs))]


def _axis(link: Link) -> str:
    notes = [link.unit, "lower is better" if link.lower_is_better else ""]
    return label(link.objective) + "".join(f", {note}" for note in notes if note)


def _outcome_axis(analysis: Analysis) -> str:
    unit = analysis.finals[0].unit
    return label(analysis.outcome) + (f", {unit}" if unit and unit != "reward" else "")
