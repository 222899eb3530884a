"""Draws kept results, a row per subject with each of its repeats: `python benchmarks/draw.py [NAME...]`."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from measure import RESULTS, Claim, Samples, report

OURS, PEER, BOUND = "#1b6ca8", "#b5532a", "#8a8a8a"


def kept(name: str, *, unit: str, samples: Samples, claims: Sequence[Claim], details: Mapping[str, Any]) -> bool:
    """Print the details, keep the results and draw them; whether every claim was met."""
    for detail, value in details.items():
        if detail != "least_and_median_seconds":
            print(f"{detail}: {value}")
    met = report(name, unit=unit, samples=samples, claims=claims, details=details)
    draw(name)
    return met


def draw(name: str) -> None:
    """``results/<name>.svg`` from ``results/<name>.json``. Blue is ours, grey a bound, the rest are peers."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    samples, claims = record["samples"], record["claims"]
    figure = Figure(figsize=(9.0, 1.0 + 0.28 * len(samples) + 0.16 * len(claims)), layout="constrained")
    axes = figure.subplots()
    for place, (subject, repeats) in enumerate(samples.items()):
        color = BOUND if subject.startswith("bound") else OURS if subject.startswith("ours") else PEER
        axes.plot(repeats, [place] * len(repeats), "o", color=color, alpha=0.5, markersize=4)
        axes.plot(statistics.median(repeats), place, "|", color=color, markersize=14)
    axes.set_yticks(range(len(samples)), list(samples))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.set_xlabel(f"{record['unit']}: each repeat, and the median")
    lines = [
        f"{row['claim']} = {row['value']:.3g} ({row['target']}{'' if row['met'] else ': NOT MET'})" for row in claims
    ]
    axes.set_title("\n".join(lines), fontsize=7, loc="left")
    with mpl.rc_context({"svg.hashsalt": "proxygap"}):  # the same numbers give the same file
        figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(path.stem for path in RESULTS.glob("*.json")):
        draw(each)
