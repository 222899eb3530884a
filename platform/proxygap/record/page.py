"""What an MLflow experiment says of itself: its views, and a description that links them and the reports.

Several experiments, and several processes, may share one MLflow experiment. Each writes only tags of its own, and the
description is made of all of them, so that whoever writes it writes the same. A person's own description stays.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxygap.record.folder import ExperimentFolder
from proxygap.record.sweep_folder import SweepFolder
from proxygap.record.tracker import TAG_LENGTH, first_line, shortened
from proxygap.record.view import OWN_VIEWS, VIEW_TAG, View, view_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTE, REPORTS = "mlflow.note.content", "proxygap.report."
KEPT = "*ProxyGap keeps this text up to date. Remove this line to keep your own.*"
_MOST_REPORTS = 50
_REFUSED = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "ENDPOINT_NOT_FOUND")
_log = logging.getLogger("proxygap.shipper")


@dataclass(frozen=True, slots=True)
class ReportLink:
    """A report among the artifacts of a run: ``name`` is what it is about."""

    execution: str
    name: str
    run_id: str
    path: str


def report_link(folder: ExperimentFolder | SweepFolder, run_id: str) -> ReportLink | None:
    """The link to a folder's report; None where there is none. Raises StorageError for a damaged folder."""
    page = folder.report / "report.html"
    if not page.is_file():
        return None
    resolved = folder.resolved if isinstance(folder, SweepFolder) else folder.experiment
    name = re.sub(r"[^\w.\- ]", "-", str(resolved.get("name") or folder.path.name))[:100]
    return ReportLink(str(folder.identity["execution"]), name, run_id, page.relative_to(folder.path).as_posix())


class ExperimentPage:
    """Keeps the tags of one MLflow experiment; asks nothing where it has told the same before.

    Args:
        client: of the tracker.
        experiment_id: of the MLflow experiment.
    """

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self._client, self._id = client, experiment_id
        self._told: tuple[View | None, ReportLink | None] = (None, None)

    def tell(self, view: View | None, report: ReportLink | None) -> None:
        """Write what is new. A tracker that refuses such tags is left without: no measurement depends on them.

        Raises:
            what `tracker_errors` lists, where a second attempt may do better.
        """
        from mlflow.exceptions import MlflowException

        view, report = view or self._told[0], report or self._told[1]
        if (view, report) == self._told:
            return
        try:
            self._write(view, report)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            _log.warning("the tracker takes no view of the experiment: %s", first_line(error))
        self._told = view, report

    def _write(self, view: View | None, report: ReportLink | None) -> None:
        tags = dict(self._client.get_experiment(self._id).tags)
        wanted: dict[str, str] = {}
        if view is not None:
            key = f"{VIEW_TAG}{view.id}"
            wanted[key] = view.tag(tags.get(key, ""), time.time_ns() // 1_000_000)
        if report is not None:
            link = {"name": report.name, "run_id": report.run_id, "path": report.path}
            wanted[f"{REPORTS}{report.execution}"] = json.dumps(link)
        if KEPT in tags.get(NOTE, KEPT):
            wanted[NOTE] = description(self._id, {**tags, **wanted})
        for name, value in wanted.items():
            if tags.get(name) != value:
                self._client.set_experiment_tag(self._id, name, value)


def description(experiment_id: str, tags: Mapping[str, str]) -> str:
    """Markdown: a link to every view and every report that the tags name, in one line: pages show the first alone."""
    views = sorted((json.loads(value)["name"], key) for key, value in tags.items() if key.startswith(OWN_VIEWS))
    lines = [f"**[{name}]({view_address('', experiment_id, key.removeprefix(VIEW_TAG))})**" for name, key in views]
    links = sorted((json.loads(value) for key, value in tags.items() if key.startswith(REPORTS)), key=str)
    reports = [
        f"[{each['name']}](#/experiments/{experiment_id}/runs/{each['run_id']}/artifacts/{each['path']})"
        for each in links[:_MOST_REPORTS]
    ]
    told = [*lines, *([f"Reports: {', '.join(reports)}"] if reports else [])]
    return "\n\n".join([shortened(" | ".join(told), TAG_LENGTH - 2 * len(KEPT)), KEPT])
