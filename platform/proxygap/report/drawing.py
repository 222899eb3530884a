"""What figures share: one color for each side, one style, and two forms of each, without any global plotting state.

A figure is drawn once and kept twice: as PNG to be filed, and as SVG whose colors are CSS variables, so that a page
shows it in light, in dark and in print.
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
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from proxygap.report.verdict import plural

Float = NDArray[np.float64]
COLORS = {"ink": "#22262e", "faint": "#8b919c", "line": "#dfe2e7", "objective": "#3a5bc7", "outcome": "#c4560b"}
"""CSS variable to its color in light; `_svg` puts the variable in the color's place."""
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
    "axes.axisbelow": True,
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


def blank(height: float, rows: int = 1, shares: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure as wide as the page, and its panels from above."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=shares)
    return figure, [axes for (axes,) in grid]


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


def real_steps(axes: Axes) -> None:
    """Name the axis of real steps, and write them as whole numbers."""
    axes.set_xlabel("real steps")
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))


def thousands(value: float, _: object = None) -> str:
    """A number of steps on an axis."""
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
