"""Figures of a dynamics model: how far it sees, where its members disagree, what it promises, what it knows of itself.

Shape legend: T evaluations of one seed, K steps of an open-loop prediction.
"""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.ticker import MaxNLocator

from proxygap.report.analysis import Analysis, paired, series
from proxygap.report.drawing import COLORS, Drawing, blank, finish, real_steps

_RANKS = "uncertainty_spearman/"


def k_step_fan(analysis: Analysis) -> Drawing | str:
    """Open-loop error over the length of the prediction, at the first and the last evaluation."""
    table = analysis.input.measurements
    steps = sorted(
        {str(name)[len("k_step_error/") :] for name in table["name"] if str(name).startswith("k_step_error/")}
    )
    if not steps:
        return "k-step error: no dynamics model was tested on open-loop predictions."
    figure, (axes,) = blank(3.2)
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
    key = next((key for key in ("objective/disagreement", "model/disagreement") if has(analysis, key)), None)
    if key is None:
        return "Member disagreement: there is no ensemble, or it was never measured."
    figure, (axes,) = blank(2.7)
    for seed in analysis.seeds:
        axes.plot(*series(analysis.input, key, seed), color=COLORS["objective"], linewidth=1.5, alpha=0.8)
    axes.set_ylabel("disagreement", color=COLORS["objective"])
    axes.set_ylim(bottom=0)
    real_steps(axes)
    caption = "Spread of the members' mean predictions, relative to how much the predictions vary; one line per seed."
    return finish(figure, "member_disagreement", "How far the members disagree", caption)


def promise(analysis: Analysis) -> Drawing | str:
    """Imagined and real return over real steps."""
    real = "outcome/opening_return" if has(analysis, "outcome/opening_return") else "outcome/return"
    runs = [(seed, *paired(analysis.input, "objective/imagined_return", real, seed)) for seed in analysis.seeds]
    runs = [run for run in runs if len(run[1])]
    if not runs:
        return "Imagined against real return: the two were never measured at the same steps."
    figure, (axes,) = blank(3.0)
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


def ranking(analysis: Analysis) -> list[Drawing | str]:
    """How well each estimate of the model's error ranks its true errors, over real steps; nothing without estimates."""
    names = {str(name) for name in analysis.input.measurements["name"]}
    kinds = sorted(name.removeprefix(_RANKS) for name in names if name.startswith(_RANKS))
    if not kinds:
        return []
    figure, (axes,) = blank(2.9)
    for index, kind in enumerate(kinds):
        for number, seed in enumerate(analysis.seeds):
            line = series(analysis.input, f"model/{_RANKS}{kind}", seed)
            axes.plot(*line, color=mpl.colormaps["tab10"](index % 10), alpha=0.8, label=None if number else kind)
    axes.axhline(0, color=COLORS["faint"], linewidth=0.8)
    axes.set_ylim(top=1)
    axes.set_ylabel("Spearman")
    axes.legend(loc="best", fontsize=9)
    real_steps(axes)
    caption = (
        "Rank correlation of the estimated and the true error of the model over the steps of the newest evaluation: 1 "
        "ranks them perfectly, 0 is chance; one line per seed."
    )
    return [finish(figure, "uncertainty_against_error", "Does the model know where it is wrong", caption)]


def _over_seeds(analysis: Analysis, key: str, index: int) -> float:
    """Median over seeds of the first (0) or last (-1) value of a key; NaN for none."""
    values = [values_T[index] for seed in analysis.seeds if len(values_T := series(analysis.input, key, seed)[1])]
    return float(np.median(values)) if values else float("nan")


def has(analysis: Analysis, key: str) -> bool:
    """Whether a key was ever measured."""
    return bool((analysis.input.measurements["key"] == key).any())
