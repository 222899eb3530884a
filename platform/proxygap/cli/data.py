"""``data build`` and ``data show``: datasets as files, with their lineage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxygap.base.errors import InvalidExperiment
from proxygap.cli.group import (
    answer,
    commands,
    file_argument,
    json_option,
    only_answers,
    overrides_argument,
    variant_option,
)

if TYPE_CHECKING:
    from proxygap.base.records import Transitions


@commands.group()
def data() -> None:
    """Make a dataset from an experiment file, or look at one."""


@data.command()
@file_argument
@overrides_argument
@click.option("--out", required=True, metavar="PATH", help="The parquet file, or its URI.")
@click.option("--seed", type=click.IntRange(0), help="Seed of the run that would ask. Default: the file's first.")
@click.option("--section", type=click.Choice(["data", "expert"]), default="data", show_default=True)
@variant_option
@json_option
def build(
    file: Path,
    overrides: tuple[str, ...],
    out: str,
    seed: int | None,
    section: str,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make the dataset of an experiment file, and write it.

    What a run of the file has made already is taken from where it is kept.
    """
    from proxygap.collect.episodes import write_episodes
    from proxygap.loops.datasets import dataset
    from proxygap.study import load_study

    experiment = load_study(file, overrides, only).single
    chosen = experiment.datasets.get(section)
    if chosen is None:
        known = ", ".join(experiment.datasets) or "add one, e.g. {kind: random, rows: 10000}"
        raise InvalidExperiment("is no section of this file", field=section, remedy=f"Sections: {known}")
    experiment.check()
    with only_answers(as_json):
        rows, lineage = dataset(experiment, chosen, experiment.seeds[0] if seed is None else seed)
    write_episodes(out, rows, lineage.provenance())
    _tell(out, rows, lineage.provenance(), as_json)


@data.command()
@click.argument("path")
@json_option
def show(path: str, as_json: bool) -> None:
    """Show what a file of episodes holds, and where it is from.

    PATH may be a URI. The rows are checked against their hash.
    """
    from proxygap.collect.episodes import read_episodes

    _tell(path, *read_episodes(path), as_json)


def _tell(path: str, rows: Transitions, provenance: dict[str, str], as_json: bool) -> None:
    told = {"path": path, **_contents(rows), "provenance": provenance}
    if as_json:
        answer(told)
        return
    lines = {**{name: value for name, value in told.items() if name != "provenance"}, **provenance}
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")


def _contents(rows: Transitions) -> dict[str, Any]:
    """Rows, whole episodes and what they returned, and the hash."""
    from proxygap.collect.segments import in_order

    sums = [float(part.outcome_reward_B.sum(dtype="f8")) for part in in_order(rows).episodes()]
    returns = (
        {"least_return": min(sums), "mean_return": sum(sums) / len(sums), "best_return": max(sums)} if sums else {}
    )
    sizes = {"observation": rows.obs_BO.shape[1], "action": rows.action_BA.shape[1]}
    return {"rows": len(rows), "episodes": len(sums), **returns, **sizes, "content_hash": rows.content_hash}
