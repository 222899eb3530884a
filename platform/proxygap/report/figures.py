"""Figures, drawn without any global plotting state. One color stands for one side everywhere.

A figure is drawn once and kept twice: as PNG to be filed, and as SVG whose colors are CSS variables, so that a page
shows it in light, in dark and in print.

The file is longer than others because its figures share one style and one way of being finished.

Shape legend: S seeds, T evaluations of one seed, G points of a common grid, K steps of an open-loop prediction.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from proxygap.report.analysis import Analysis, Link, band, onset_step, paired, series
from proxygap.report.records import CurveLike, Statistics
from proxygap.report.verdict import interval_text, label, plural

Float = NDArray[np.float64]
COLORS = {"ink": "#22262e", "faint": "#8b919c", "line": "#dfe2e7", "objective": "#3a5bc7", "outcome": "#c4560b"}
"""CSS variable to its color in light; `_svg` puts the variable in the color's place."""
_MARKERS = "osD^vPX*"
_LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_DISTANCE = "distance from the reference, sqrt(KL / nat)"
_DEVIATIONS = "standard deviations of the reference"
_STEPS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.12, 0.9, 256)), name="real steps")
BASE_STYLE: dict[str, Any] = {
    "font.size": 10.5,
    "axes.edgecolor": COLORS["faint"],
    "axes.labelcolor": COLORS["ink"],
    "axes.titlecolor": COLORS["ink"],
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLORS["faint"],
    "ytick.color": COLORS["faint"],
    "xtick.labelcolor": COLORS["ink"],
    "ytick.labelcolor": COLORS["ink"],
    "text.color": COLORS["ink"],
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "proxygap",
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure: what it is called, what it shows, how to read it, and its two forms."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


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
        ]
    drawings = [answer for answer in answers if isinstance(answer, Drawing)]
    return drawings, [answer for answer in answers if isinstance(answer, str)]


def scatter(analysis: Analysis) -> Drawing | str:
    """Objective against outcome, one point per evaluation."""
    link = analysis.link
    if link is None:
        return "Objective against outcome: the two were never measured at the same steps."
    figure, (axes,) = _figure(4.3)
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
    bar = figure.colorbar(mappable, ax=axes, pad=0.02, aspect=30, format=FuncFormatter(_thousands))
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
    figure, panels = _figure(2.4 * len(keys) + 0.5, len(keys))
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


def k_step_fan(analysis: Analysis) -> Drawing | str:
    """Open-loop error over the length of the prediction, at the first and the last evaluation."""
    table = analysis.input.measurements
    steps = sorted(
        {str(name)[len("k_step_error/") :] for name in table["name"] if str(name).startswith("k_step_error/")}
    )
    if not steps:
        return "k-step error: no dynamics model was tested on open-loop predictions."
    figure, (axes,) = _figure(3.2)
    length_K = np.array([int(step) for step in steps])
    fan = {
        q: np.array([_over_seeds(analysis, f"model/k_step_error{q}/{s}", -1) for s in steps])
        for q in ("_p10", "", "_p90")
    }
    first_K = np.array([_over_seeds(analysis, f"model/k_step_error/{step}", 0) for step in steps])
    axes.fill_between(length_K, fan["_p10"], fan["_p90"], color=COLORS["objective"], alpha=0.18, linewidth=0)
    axes.plot(
        length_K, fan[""], color=COLORS["objective"], linewidth=2.2, label="last evaluation", marker="o", markersize=4
    )
    axes.plot(length_K, first_K, color=COLORS["faint"], linewidth=1.4, linestyle="--", label="first evaluation")
    axes.set_xlabel("steps predicted without looking")
    axes.set_ylabel("error, std of the observations", color=COLORS["objective"])
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", fontsize=9)
    caption = "Median over start states, band from the 10th to the 90th percentile; the median over seeds of each."
    return finish(figure, "k_step_error", "How far the model can see", caption)


def disagreement(analysis: Analysis) -> Drawing | str:
    """Disagreement of the members over real steps."""
    key = next((key for key in ("objective/disagreement", "model/disagreement") if _has(analysis, key)), None)
    if key is None:
        return "Member disagreement: there is no ensemble, or it was never measured."
    figure, (axes,) = _figure(2.7)
    for seed in analysis.seeds:
        axes.plot(*series(analysis.input, key, seed), color=COLORS["objective"], linewidth=1.5, alpha=0.8)
    axes.set_ylabel("disagreement", color=COLORS["objective"])
    axes.set_ylim(bottom=0)
    real_steps(axes)
    caption = "Spread of the members' mean predictions, relative to how much the predictions vary; one line per seed."
    return finish(figure, "member_disagreement", "How far the members disagree", caption)


def promise(analysis: Analysis) -> Drawing | str:
    """Imagined and real return over real steps."""
    real = "outcome/opening_return" if _has(analysis, "outcome/opening_return") else "outcome/return"
    runs = [(seed, *paired(analysis.input, "objective/imagined_return", real, seed)) for seed in analysis.seeds]
    runs = [run for run in runs if len(run[1])]
    if not runs:
        return "Imagined against real return: the two were never measured at the same steps."
    figure, (axes,) = _figure(3.0)
    for index, (_, step_T, imagined_T, real_T) in enumerate(runs):
        names = ("imagined", "real") if index == 0 else (None, None)
        axes.plot(step_T, imagined_T, color=COLORS["objective"], linewidth=1.5, linestyle="--", label=names[0])
        axes.plot(step_T, real_T, color=COLORS["outcome"], linewidth=1.8, label=names[1])
    axes.set_ylabel("return")
    axes.legend(loc="best", fontsize=9)
    real_steps(axes)
    caption = (
        "The return that the model promises and the one that the real environment pays, from the same start states and "
        + ("over the same number of steps (probe.imagined_horizon)." if real.endswith("opening_return") else "in full.")
    )
    return finish(figure, "imagined_against_real_return", "What the model promises", caption)


def along_distance(analysis: Analysis) -> list[Drawing | str]:
    """Proxy and gold over sqrt(KL): the curve of over-optimization."""
    distance = analysis.input.distance
    if distance is None:
        return []
    every = [d for curve in distance.curves.values() for d in curve.d_T if np.isfinite(d)]
    if not every:
        return ["Proxy and gold along the distance: no evaluation gave a finite distance."]
    figure, (axes,) = _figure(4.3)
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
        figure, (above, below) = _figure(5.6 + 0.2 * -(-len(means) // columns), 2, (3, 2))
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


def _figure(height: float, rows: int = 1, shares: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=shares)
    return figure, [axes for (axes,) in grid]


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


def _over_seeds(analysis: Analysis, key: str, index: int) -> float:
    """Median over seeds of the first (0) or last (-1) value of a key; NaN for none."""
    values = [values_T[index] for seed in analysis.seeds if len(values_T := series(analysis.input, key, seed)[1])]
    return float(np.median(values)) if values else float("nan")


def focus(set_limits: Callable[..., object], values: Float) -> str:
    """Keep a few far values from squeezing all others into a line: cut the axis, and say how many lie beyond it."""
    finite = values[np.isfinite(values)]
    if len(finite) < 8:
        return ""
    low, high = np.quantile(finite, [0.1, 0.9])
    reach = 1.5 * (high - low)
    beyond = int(((finite < low - reach) | (finite > high + reach)).sum())
    if beyond == 0 or high == low or max(high - finite.min(), finite.max() - low) < 4 * (high - low):
        return ""
    near = finite[(finite >= low - reach) & (finite <= high + reach)]
    margin = 0.06 * (near.max() - near.min())
    set_limits(near.min() - margin, near.max() + margin)
    return f" {plural(beyond, 'value')} far outside the axis (the table and the parquet file have all)."


def _onsets(analysis: Analysis) -> list[float]:
    steps = [onset_step(analysis.input, seed) for seed in analysis.seeds]
    return [step for step in steps if np.isfinite(step)]


def _has(analysis: Analysis, key: str) -> bool:
    return bool((analysis.input.measurements["key"] == key).any())


def _markers(link: Link) -> Sequence[str]:
    return [_MARKERS[index % len(_MARKERS)] for index in range(len(link.pairs))]


def _axis(link: Link) -> str:
    notes = [link.unit, "lower is better" if link.lower_is_better else ""]
    return label(link.objective) + "".join(f", {note}" for note in notes if note)


def _outcome_axis(analysis: Analysis) -> str:
    unit = analysis.finals[0].unit
    return label(analysis.outcome) + (f", {unit}" if unit and unit != "reward" else "")


def real_steps(axes: Axes) -> None:
    """Name the axis of real steps, and write them as whole numbers."""
    axes.set_xlabel("real steps")
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """A figure as a drawing, in both of its forms."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Drawing(name, title, caption, _svg(figure, name), png.getvalue())


def _svg(figure: Figure, name: str) -> str:
    """The figure as an ``svg`` element for a page: ids of its own, CSS variables for colors, no background."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for variable, color in COLORS.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg
