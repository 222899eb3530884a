"""A ready view in MLflow's pages: objective against outcome, one click away from the experiment.

MLflow's pages keep a saved view of an experiment's runs (columns, filter, charts) as a tag of the experiment, list it
under *Views*, and open it by its id. The form is that of MLflow 3.17, read from what its pages write; MLflow documents
none of it. Pages that do not know it show their plain list of runs.

The view of an experiment shows its seeds, that of a sweep its trials, each as last values and, where a run has them,
along its real steps.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxygap.record.folder import ExperimentFolder
from proxygap.record.rows import read_tail
from proxygap.record.sources import setting_values
from proxygap.record.sweep_folder import SweepFolder, read_ledger
from proxygap.record.tracker import allowed_name

VIEW_TAG = "mlflow.sharedViewState."
OWN_VIEWS = f"{VIEW_TAG}proxygap-"
OVER_SEEDS = "/iqm"
"""Ends the keys of a trial's own run, which are over its seeds."""
_BEGINNING = 1 << 18
"""Bytes of a journal that are looked at for what is measured."""
_MOST_SETTINGS = 8
_CORRELATIONS = ("gap/pearson", "gap/spearman", "gap/kendall", "gap/onset")
"""Of the two sides so far; the rest of the gaps is a loop's own."""
_SECTION = "Objective against outcome"
_OTHERS = {"outcome": True, "objective": True, "gap": True, "model": False, "setting": False, "clock": False}

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """What is drawn of the runs of an experiment, or of the trials of a sweep.

    Args:
        kind: ``seed`` or ``trial``, as in the runs' tag ``proxygap.kind``.
        objective: MLflow's key of the objective, on the x axis.
        outcome: of the outcome, on the y axis.
        gaps: of measures of how far the two part.
        settings: params that a sweep searches.
    """

    kind: str
    objective: str
    outcome: str
    gaps: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    @staticmethod
    def of(folder: ExperimentFolder | SweepFolder, *, over: bool = True) -> View | None:
        """The view of a folder; None before both of its sides were measured.

        Args:
            folder: its provenance says which objective counts, or ``probe.objective`` does. Where neither does, it is
                the first one of the fullest reading, which is the loop's own.
            over: whether no fuller reading is to come; while one may, nothing is guessed.

        Raises:
            StorageError: a journal cannot be read.
        """
        if isinstance(folder, ExperimentFolder):
            resolved, journals = folder.experiment, (run.journal for run in folder.seeds())
        else:
            resolved, journals = folder.resolved, (place.journal for _, place in folder.trials())
        named = folder.provenance.get("objective") or (resolved.get("probe") or {}).get("objective")
        if not (named or over):
            return None
        end = OVER_SEEDS if isinstance(folder, SweepFolder) else ""
        sides = _sides(resolved, named, next(filter(None, (_fullest(each, end) for each in journals)), ()), end)
        if sides is None:
            return None
        if isinstance(folder, ExperimentFolder):
            return View("seed", *sides)
        searched = next(iter(read_ledger(folder.ledger).values()), None)
        names = [] if searched is None else [f"setting.{name}" for name, _ in setting_values(searched.setting)]
        return View("trial", *sides, settings=tuple(map(allowed_name, names[:_MOST_SETTINGS])))

    @property
    def id(self) -> str:
        """The same for all experiments that set the same two keys against each other."""
        return f"proxygap-{_digest(self.kind, self.objective, self.outcome)}"

    @property
    def name(self) -> str:
        """As it stands in MLflow's list of views."""
        objective, outcome = (_short(key) for key in (self.objective, self.outcome))
        return f"{outcome} against {objective}, by {self.kind}"

    def tag(self, written: str, now_ms: int) -> str:
        """The tag's value: ``written``, what the tag holds now, where that is this view already."""
        packed = base64.b64encode(zlib.compress(json.dumps(self.state(), separators=(",", ":")).encode(), 9)).decode()
        told = {"name": self.name, "createdAt": now_ms, "updatedAt": now_ms, "state": f"deflate;{packed}"}
        try:
            before = json.loads(written)
            if all(before[key] == told[key] for key in ("name", "state")):
                return written
            told["createdAt"] = int(before["createdAt"])
        except (ValueError, KeyError, TypeError):
            pass  # absent, or not a view
        return json.dumps(told)

    def state(self) -> State:
        """What MLflow's page of runs keeps: its filter, columns, sections and charts."""
        section = {"uuid": f"{self.id}-section", "name": _SECTION, "isGenerated": False, **_OPEN, **_SIZE}
        others = [
            {"uuid": f"{self.id}-{name}", "name": name, "isGenerated": True, **_OPEN, "display": shown}
            for name, shown in _OTHERS.items()
        ]
        return {
            "searchFilter": f"tags.`proxygap.kind` = '{self.kind}'",
            "orderByKey": "tags.`mlflow.runName`",  # by time, runs below others stay folded
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "modelVersionFilter": "All Runs",
            "datasetsFilter": [],
            "selectedColumns": [f"metrics.`{key}`" for key in (self.outcome, self.objective)],
            "runsHiddenMode": "SHOW_ALL",
            "runListHidden": True,
            "hideEmptyCharts": True,
            "isAccordionReordered": True,
            "compareRunSections": [section, *others],
            "compareRunCharts": [
                {"uuid": f"{self.id}-{number}", "metricSectionId": section["uuid"], **_FIXED, **chart}
                for number, chart in enumerate(self._charts())
            ],
        }

    def _charts(self) -> Iterator[State]:
        yield {
            "type": "SCATTER",
            "xaxis": {"key": self.objective, "type": "METRIC"},
            "yaxis": {"key": self.outcome, "type": "METRIC"},
            "runsCountToCompare": 100,
        }
        sides = (self.outcome, self.objective, *self.gaps)
        if self.kind == "trial":  # a trial's run has last values alone
            if self.settings:
                selected = {"selectedParams": list(self.settings), "selectedMetrics": [self.objective, self.outcome]}
                yield {"type": "PARALLEL", **selected, "showAllRuns": True}
            yield from ({"type": "BAR", "metricKey": key} for key in sides)
            return
        along = {"xAxisKey": "metric", "selectedXAxisMetricKey": self.objective, "displayPoints": True}
        yield _line(self.outcome, **along, useGlobalXaxisKey=False)
        yield from map(_line, sides)


_OPEN = {"display": True, "isReordered": False, "deleted": False}
_SIZE = {"columns": 2, "cardHeight": 420}
_FIXED = {"deleted": False, "isGenerated": False}


def view_address(base: str, experiment_id: str, view_id: str) -> str:
    """Where a view is opened, below the address of an MLflow server (empty: a link between its own pages)."""
    chosen = f"viewStateShareKey={view_id}&compareRunsMode=CHART&workflowType=machine_learning"
    return f"{base}#/experiments/{experiment_id}/runs?{chosen}"


def _line(key: str, **options: Any) -> State:
    axes = {"xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear"}
    shape = {"lineSmoothness": 0, "yAxisKey": "metric", "yAxisExpressions": [], "range": {}, "ignoreOutliers": False}
    common = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    chosen = {"type": "LINE", "metricKey": key, "selectedMetricKeys": [key]}
    return {**chosen, **axes, **shape, **common, **options}


def _sides(
    resolved: Mapping[str, Any], named: str | None, keys: Sequence[str], end: str
) -> tuple[str, str, tuple[str, ...]] | None:
    """MLflow's keys of objective, outcome and gaps; None where one of the sides is not among ``keys``."""
    objective = f"objective/{named}{end}" if named else next(iter(_of_side(keys, "objective")), "")
    outcome = f"outcome/{next(iter(resolved.get('outcomes', ())), '')}{end}"
    if not {objective, outcome} <= set(keys):
        return None
    gaps = _of_side(keys, "gap")
    own = [key for key in gaps if not key.startswith(_CORRELATIONS)]
    drawn = [*own[:1], *(key for key in gaps if key.removesuffix(end) == "gap/spearman")]
    return allowed_name(objective), allowed_name(outcome), tuple(map(allowed_name, drawn))


def _of_side(keys: Sequence[str], side: str) -> list[str]:
    return [key for key in keys if key.startswith(f"{side}/")]


def _fullest(journal: Path, end: str) -> tuple[str, ...]:
    """Keys with this end of the reading that has most of them, among the first of a journal, in its order."""
    rows = read_tail(journal, -1, 0, limit=_BEGINNING).rows if journal.exists() else ()
    readings = (tuple(key for key in row.get("values", ()) if key.endswith(end)) for row in rows)
    return max(readings, key=len, default=())


def _short(key: str) -> str:
    return key.partition("/")[2].removesuffix(OVER_SEEDS)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
