"""The MLflow runs of one execution: found by one paged search, made where absent, never twice.

A lost answer may leave a run that nobody knows of (MLflow's client repeats a request that it had no answer to). Such a
twin has the same key as its sibling, and is deleted: after a batch of new runs, and when the runs are searched again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap.record.folder import ExperimentFolder
from proxygap.record.sources import RunSource
from proxygap.record.sweep_folder import SweepFolder
from proxygap.record.tracker import EXPERIMENT_LENGTH, connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE, PARAM_BATCH = 1000, 100
NEW_STATE = "running"
"""What a new run is told to be, in MLflow's words and ours."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A tracker and an MLflow experiment in it.

    Args:
        uri: from `tracking_uri`.
        name: of the MLflow experiment.
        artifact_root: where artifacts of a new MLflow experiment go; None leaves it to the server.
    """

    uri: str
    name: str
    artifact_root: Path | None = None

    @staticmethod
    def of(folder: ExperimentFolder | SweepFolder) -> Destination:
        """What the ``record`` settings of an experiment or a sweep ask for. Raises InvalidExperiment."""
        resolved = folder.resolved if isinstance(folder, SweepFolder) else folder.experiment
        record, root = resolved.get("record", {}), folder.path.parent
        uri = tracking_uri(record.get("tracking_uri"), root)
        name = record.get("tracking_experiment") or str(resolved.get("name") or folder.path.name)
        return Destination(uri, name[:EXPERIMENT_LENGTH], root / "mlartifacts" if uri.startswith("sqlite:") else None)

    def open(self) -> tuple[MlflowClient, str]:
        """A client, and the id of the MLflow experiment, made if need be. Raises TrackerUnavailable."""
        client = connect(self.uri)
        found = client.get_experiment_by_name(self.name)
        if found is not None:
            return client, str(found.experiment_id)
        from mlflow.exceptions import MlflowException

        location = self.artifact_root.absolute().as_uri() if self.artifact_root else None
        try:
            return client, str(client.create_experiment(self.name, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(self.name)  # another process was first
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return client, str(found.experiment_id)


@dataclass(slots=True)
class KnownRun:
    """What is kept of a run, which is little, for there are thousands. ``new``: made by this process just now."""

    key: str
    run_id: str
    parent: str
    params: int
    started_ms: int
    measured: bool
    new: bool = False

    @staticmethod
    def of(run: Run) -> KnownRun:
        """What is kept of one that was found."""
        tags, info = run.data.tags, run.info
        key, parent = tags.get("proxygap.run_key", ""), tags.get("mlflow.parentRunId", "")
        return KnownRun(key, info.run_id, parent, len(run.data.params), info.start_time, bool(run.data.metrics))


class KnownRuns:
    """What the tracker has of one execution.

    Args:
        client: of the tracker.
        experiment_id: of the MLflow experiment.
        execution: value of the tag ``proxygap.execution`` of all the runs.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, execution: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self._query = f"tags.`proxygap.execution` = '{execution}'"
        self._made: dict[str, str] = {}
        self._earliest_ms = 0
        self._known = {twins[0].key: self._oldest(twins) for twins in _by_key(self._search(self._query))}

    def ensure(self, source: RunSource, parent: str) -> KnownRun:
        """The run of a source, made if need be, below the run ``parent`` (empty: below none), with all its params."""
        known = self._known.get(source.key)
        if known is None:
            known = self._known[source.key] = self._make(source, parent)
        elif known.parent != parent:
            self.client.set_tag(known.run_id, "mlflow.parentRunId", parent)
            known.parent = parent
        self._log_params(known, source.params())
        return known

    def settle(self) -> None:
        """Delete twins of the runs that were made since the last time; they began together, so the search is short."""
        if not self._made:
            return
        query = f"{self._query} and attributes.start_time >= {self._earliest_ms}"
        for run in list(self._search(query)):
            if self._made.get(run.key, run.run_id) != run.run_id:
                self.client.delete_run(run.run_id)
        self._made.clear()

    def _make(self, source: RunSource, parent: str) -> KnownRun:
        tags, started_ms = {**source.tags(), "proxygap.state": NEW_STATE}, source.started_ms()
        if parent:
            tags["mlflow.parentRunId"] = parent
        name = tags["mlflow.runName"]
        run = self.client.create_run(self.experiment_id, start_time=started_ms, tags=tags, run_name=name)
        self._earliest_ms = min(self._earliest_ms, started_ms) if self._made else started_ms
        self._made[source.key] = run.info.run_id
        return KnownRun(source.key, run.info.run_id, parent, 0, started_ms, measured=False, new=True)

    def _log_params(self, known: KnownRun, wanted: dict[str, str]) -> None:
        """Params cannot change in MLflow: those that a run has already are left alone."""
        from mlflow.entities import Param

        if known.params >= len(wanted):
            return
        present = self.client.get_run(known.run_id).data.params if known.params else {}
        missing = [Param(name, value) for name, value in wanted.items() if name not in present]
        for start in range(0, len(missing), PARAM_BATCH):
            self.client.log_batch(known.run_id, params=missing[start : start + PARAM_BATCH])
        known.params = len(present) + len(missing)

    def _oldest(self, twins: list[KnownRun]) -> KnownRun:
        """The one that measurements went to, else the oldest; empty ones beside it are deleted."""
        first, *others = sorted(twins, key=lambda run: (not run.measured, run.started_ms, run.run_id))
        for run in others:
            if not run.measured:
                self.client.delete_run(run.run_id)
        return first

    def _search(self, query: str) -> Iterator[KnownRun]:
        token: str | None = None
        while True:
            page: Any = self.client.search_runs([self.experiment_id], query, max_results=PAGE, page_token=token)
            yield from map(KnownRun.of, page)
            token = page.token
            if not token:
                return


def _by_key(runs: Iterable[KnownRun]) -> list[list[KnownRun]]:
    found: dict[str, list[KnownRun]] = {}
    for run in runs:
        found.setdefault(run.key, []).append(run)
    return list(found.values())
