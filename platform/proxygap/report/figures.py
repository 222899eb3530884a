"""Figures, drawn without any global plotting state. One color stands for one side everywhere.

A figure is drawn once and kept twice: as PNG to be filed, and as SVG whose colors are CSS variables, so that a page
shows it in light, in dark and in print.

Shape legend: T evaluations of one seed, G points of a common grid, K steps of an open-loop prediction.
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
from proxygap.report.records import Statistics
from proxygap.report.verdict import interval_text, label, plural

Float = NDArray[np.float64]
COLORS = {"ink": "#22262e", "faint": "#8b919c", "line": "#dfe2e7", "objective": "#3a5bc7", "outcome": "#c4560b"}
"""CSS variable to its color in light; `_svg` puts the variable in the color's place."""
_MARKERS = "osD^vPX*"
_STEPS = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.12, 0.9, 256)), name="real steps")
_STYLE: dict[str, Any] = {
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
    style: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **_STYLE}
    with mpl.rc_context(style):
        answers = [
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
    bar.set_label("real steps")
    axes.set_xlabel(_axis(link), color=COLORS["objective"])
    axes.set_ylabel(_outcome_axis(analysis), color=COLORS["outcome"])
    if 1 < len(link.pairs) <= 5:
        style = {"handletextpad": 0.1, "columnspacing": 1.0}
        figure.legend(loc="outside lower center", ncols=len(link.pairs), fontsize=9, **style)
    outside = _focus(axes.set_xlim, np.concatenate([one.objective_T for one in link.pairs]))
    axes.set_title(f"Spearman {interval_text(link.pooled['spearman'])},  n = {link.evaluations}")
    caption = (
        "One point per evaluation, both sides measured at the same step of the same run; color is time, the marker is "
        "the seed. The correlation is the mean over seeds of the correlation within each"
        + (", signed so that better objective with better outcome is positive." if link.lower_is_better else ".")
        + outside
    )
    return _finish(figure, "objective_against_outcome", "Objective against outcome", caption)


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
        outside += _focus(axes.set_ylim, np.concatenate(seen)) if side == "objective" else ""
        for step in _onsets(analysis):
            axes.axvline(step, color=COLORS["ink"], linewidth=1, linestyle=":")
    _real_steps(panels[-1])
    shown = "thick: interquartile mean over seeds with its interval; " if len(analysis.seeds) >= 3 else ""
    caption = f"Thin: one line per seed; {shown}dotted: onset, where one was found.{outside}"
    return _finish(figure, "both_sides_over_time", "Both sides over real steps", caption)


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
    return _finish(figure, "k_step_error", "How far the model can see", caption)


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
    _real_steps(axes)
    caption = "Spread of the members' mean predictions, relative to how much the predictions vary; one line per seed."
    return _finish(figure, "member_disagreement", "How far the members disagree", caption)


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
    _real_steps(axes)
    caption = (
        "The return that the model promises and the one that the real environment pays, from the same start states and "
        + ("over the same number of steps (probe.imagined_horizon)." if real.endswith("opening_return") else "in full.")
    )
    return _finish(figure, "imagined_against_real_return", "What the model promises", caption)


def _figure(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False)
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


def _focus(set_limits: Callable[..., object], values: Float) -> str:
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


def _real_steps(axes: Axes) -> None:
    axes.set_xlabel("real steps")
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))


def _thousands(value: float, _: object = None) -> str:
    return f"{value:,.0f}"


def _finish(figure: Figure, name: str, title: str, caption: str) -> Drawing:
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
