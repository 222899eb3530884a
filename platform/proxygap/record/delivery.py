"""From the journals of an experiment to MLflow: explicit runs, exact replays, nothing twice.

A metric in MLflow is unique by (run, key, time, step, value), and a journal never uses a time twice; so delivering a
row again changes nothing, and a delivery that was cut off is simply repeated from the last acknowledged position.
The fluent API with its ambient run is never used.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap.base.errors import TrackerUnavailable
from proxygap.record.folder import ExperimentFolder, RunState, Status, read_json, write_json
from proxygap.record.rows import Raw, number, read_tail
from proxygap.record.tracker import (
    BATCH,
    EXPERIMENT_LENGTH,
    TAG_LENGTH,
    allowed_name,
    connect,
    first_line,
    identity_tags,
    params,
    redacted,
    tracker_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "parent"
_STATES = {
    RunState.RUNNING: "RUNNING",
    RunState.FINISHED: "FINISHED",
    RunState.FAILED: "FAILED",
    RunState.INTERRUPTED: "KILLED",
}


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """Readings that the tracker acknowledged, readings that still wait, and why (empty: nothing went wrong)."""

    delivered: int
    pending: int
    error: str = ""


@dataclass(slots=True)
class Position:
    """How far one journal has been delivered to one run."""

    run_id: str = ""
    generation: int = 0
    offset: int = 0
    delivered: int = 0
    state: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)


class Delivery:
    """Brings one tracker up to date with one experiment. Only one may run at a time per folder (see the shipper).

    Args:
        uri: the tracker, from `tracking_uri`.
        experiment_name: the MLflow experiment.
        artifact_root: where artifacts of a new MLflow experiment go; None leaves it to the server.
    """

    def __init__(self, uri: str, experiment_name: str, artifact_root: Path | None = None) -> None:
        self._uri, self._name, self._artifact_root = uri, experiment_name, artifact_root
        self._client: MlflowClient | None = None
        self._known: dict[str, Position] | None = None
        self._experiment_id = ""
        self._count = 0

    @staticmethod
    def of(folder: ExperimentFolder) -> Delivery:
        """The delivery that an experiment's own ``record`` settings ask for. Raises InvalidExperiment."""
        experiment = folder.experiment
        record = experiment.get("record", {})
        root = folder.path.parent
        uri = tracking_uri(record.get("tracking_uri"), root)
        name = record.get("tracking_experiment") or str(experiment.get("name") or folder.path.name)
        return Delivery(uri, name[:EXPERIMENT_LENGTH], root / "mlartifacts" if uri.startswith("sqlite:") else None)

    @property
    def _positions(self) -> dict[str, Position]:
        assert self._known is not None, "bound before use"
        return self._known

    @property
    def uri(self) -> str:
        """The tracker."""
        return self._uri

    def deliver(self, folder: ExperimentFolder) -> DeliveryReport:
        """Deliver every reading that is not delivered yet, then the runs' states; trouble is reported, not raised.

        Raises:
            StorageError: a journal is corrupt or the folder cannot be written.
        """
        return self._guarded(folder, self._deliver)

    def deliver_artifacts(self, folder: ExperimentFolder) -> DeliveryReport:
        """Log experiment, provenance and report on the parent run, those that changed since the last time."""
        return self._guarded(folder, self._deliver_artifacts)

    def _guarded(self, folder: ExperimentFolder, work: Callable[[ExperimentFolder], None]) -> DeliveryReport:
        errors: tuple[type[Exception], ...] = (TrackerUnavailable, *tracker_errors())
        self._count, problem = 0, ""
        for retry in (True, False):
            try:
                self._bind(folder)
                work(folder)
                break
            except errors as error:
                self._known = None
                problem = error.problem if isinstance(error, TrackerUnavailable) else first_line(error)
                if not retry or getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    break
                problem = ""  # the tracker has lost our runs: bind again, once
        tracking = read_json(folder.path / "tracking.json")
        last = {"uri": redacted(self._uri), "error": problem, "time_ms": time.time_ns() // 1_000_000}
        write_json(folder.path / "tracking.json", {**tracking, "last": last})
        return DeliveryReport(self._count, pending(folder), problem)

    def _bind(self, folder: ExperimentFolder) -> None:
        """Know the MLflow run of every journal: from ``tracking.json``, else by tag, else created."""
        self._client = self._client or connect(self._uri)
        client = self._client
        first = self._known is None
        if first:
            self._known = _positions(folder, self._uri, self._name)
            self._experiment_id = self._experiment(client)
        for name, seed in [(PARENT, None), *((str(run.seed), run.seed) for run in folder.seeds())]:
            position = self._positions.setdefault(name, Position())
            if first or not position.run_id:
                run_id = self._run(client, folder, seed)
                if run_id != position.run_id:
                    self._positions[name] = Position(run_id=run_id)
        self._save(folder)

    def _experiment(self, client: MlflowClient) -> str:
        found = client.get_experiment_by_name(self._name)
        if found is not None:
            return str(found.experiment_id)
        location = self._artifact_root.absolute().as_uri() if self._artifact_root else None
        return str(client.create_experiment(self._name, artifact_location=location))

    def _run(self, client: MlflowClient, folder: ExperimentFolder, seed: int | None) -> str:
        """The run with this identity; the oldest, should a lost answer ever have created two."""
        tags = identity_tags(folder, seed)
        if seed is not None:
            tags["mlflow.parentRunId"] = self._positions[PARENT].run_id
        query = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in ("proxygap.run_key", "proxygap.execution"))
        order = ["attributes.start_time ASC"]
        found = client.search_runs([self._experiment_id], query, order_by=order)
        if not found:
            name = tags["mlflow.runName"]
            client.create_run(self._experiment_id, start_time=_start_ms(folder, seed), tags=tags, run_name=name)
            found = client.search_runs([self._experiment_id], query, order_by=order)
            for twin in found[1:]:
                client.delete_run(twin.info.run_id)
        run = found[0]
        if seed is not None and run.data.tags.get("mlflow.parentRunId") != tags["mlflow.parentRunId"]:
            client.set_tag(run.info.run_id, "mlflow.parentRunId", tags["mlflow.parentRunId"])
        self._log_params(client, run.info.run_id, folder.experiment, set(run.data.params))
        return str(run.info.run_id)

    def _log_params(self, client: MlflowClient, run_id: str, experiment: Mapping[str, Any], present: set[str]) -> None:
        """Params cannot change in MLflow: those that a run has already are left alone."""
        from mlflow.entities import Param

        missing = [Param(name, value) for name, value in params(experiment).items() if name not in present]
        for start in range(0, len(missing), 100):
            client.log_batch(run_id, params=missing[start : start + 100])

    def _deliver(self, folder: ExperimentFolder) -> None:
        journals = {PARENT: folder.journal} | {str(run.seed): run.journal for run in folder.seeds()}
        for name, path in journals.items():
            if path.exists():
                self._deliver_journal(folder, name, path)
        statuses = {str(run.seed): run.status() for run in folder.seeds()}
        for name, status in {**statuses, PARENT: _parent_status(folder)}.items():
            if status is not None:
                self._set_state(folder, name, status)

    def _deliver_journal(self, folder: ExperimentFolder, name: str, path: Path) -> None:
        assert self._client is not None
        position = self._positions[name]
        while True:
            tail = read_tail(path, position.generation, position.offset, limit=1 << 16)
            for batch in batches(tail.rows):
                self._client.log_batch(position.run_id, metrics=batch)
            readings = sum("values" in row for row in tail.rows)
            restarted = tail.generation != position.generation
            if (tail.generation, tail.end) != (position.generation, position.offset):
                position.delivered = readings + (0 if restarted else position.delivered)
                position.generation, position.offset = tail.generation, tail.end
                self._save(folder)
            self._count += readings
            if not tail.rows:
                return

    def _set_state(self, folder: ExperimentFolder, name: str, status: Status) -> None:
        assert self._client is not None
        position, state = self._positions[name], f"{status.state}: {status.reason}".rstrip(": ")
        if position.state == state:
            return
        if status.state is RunState.RUNNING:
            self._client.update_run(position.run_id, status="RUNNING")
        else:
            self._client.set_terminated(position.run_id, _STATES[status.state], end_time=status.time_ms)
        self._client.set_tag(position.run_id, "proxygap.state", state[:TAG_LENGTH])
        position.state = state
        self._save(folder)

    def _deliver_artifacts(self, folder: ExperimentFolder) -> None:
        assert self._client is not None
        position = self._positions[PARENT]
        named = [folder.path / name for name in ("experiment.yaml", "experiment.json", "provenance.json")]
        for path in itertools.chain(named, sorted(folder.report.rglob("*"))):
            if not path.is_file():
                continue
            place, digest = path.relative_to(folder.path), hashlib.sha256(path.read_bytes()).hexdigest()
            if position.artifacts.get(str(place)) != digest:
                inside = "" if place.parent == Path() else place.parent.as_posix()
                self._client.log_artifact(position.run_id, str(path), inside or None)
                position.artifacts[str(place)] = digest
                self._save(folder)
                self._count += 1

    def _save(self, folder: ExperimentFolder) -> None:
        runs = {name: asdict(position) for name, position in self._positions.items()}
        where = {"uri": redacted(self._uri), "experiment": self._name, "experiment_id": self._experiment_id}
        write_json(folder.path / "tracking.json", {**where, "runs": runs, **_last(folder)})


def batches(rows: Sequence[Raw]) -> Iterator[list[Any]]:
    """MLflow metrics of all reading rows, at most 1000 together; the step is the real step."""
    from mlflow.entities import Metric

    pending_metrics: list[Any] = []
    for row in rows:
        if "values" not in row:
            continue
        clocks = {f"clock/{name}": reading for name, reading in row["clocks"].items()}
        for key, value in {**row["values"], **clocks}.items():
            name = allowed_name(key)
            pending_metrics.append(Metric(name, number(value), row["time_ms"], row["clocks"]["real_step"]))
    for start in range(0, len(pending_metrics), BATCH):
        yield pending_metrics[start : start + BATCH]


def pending(folder: ExperimentFolder) -> int:
    """Readings in the journals that no tracker has acknowledged."""
    runs = read_json(folder.path / "tracking.json").get("runs", {})
    journals = {PARENT: folder.journal} | {str(run.seed): run.journal for run in folder.seeds()}
    count = 0
    for name, path in journals.items():
        position = Position(**runs.get(name, {}))
        while path.exists():
            tail = read_tail(path, position.generation, position.offset)
            count += sum("values" in row for row in tail.rows)
            position.generation, position.offset = tail.generation, tail.end
            if not tail.rows:
                break
    return count


def _start_ms(folder: ExperimentFolder, seed: int | None) -> int | None:
    """Time of the first row: of the seed, or of the earliest seed for the parent."""
    journals = [run.journal for run in folder.seeds() if seed in (None, run.seed)]
    tails = [read_tail(path, -1, 0, limit=1 << 16) for path in journals if path.exists()]
    return min((int(row["time_ms"]) for tail in tails for row in tail.rows if "time_ms" in row), default=None)


def _parent_status(folder: ExperimentFolder) -> Status | None:
    """Running while a seed runs or has not started; else the worst of the seeds' states."""
    found = [status for run in folder.seeds() if (status := run.status()) is not None]
    if not found:
        return None
    if len(found) < len(folder.experiment.get("seeds", [])):
        found.append(Status(RunState.RUNNING))
    severity = [RunState.RUNNING, RunState.INTERRUPTED, RunState.FAILED, RunState.FINISHED]
    state = min((status.state for status in found), key=severity.index)
    reasons = sorted({status.reason for status in found if status.state is state and status.reason})
    return Status(state, "; ".join(reasons), max(status.time_ms for status in found))


def _last(folder: ExperimentFolder) -> dict[str, Any]:
    tracking = read_json(folder.path / "tracking.json")
    return {"last": tracking["last"]} if "last" in tracking else {}


def _positions(folder: ExperimentFolder, uri: str, name: str) -> dict[str, Position]:
    """Positions reached with this tracker; none where the folder was delivered elsewhere before."""
    tracking = read_json(folder.path / "tracking.json")
    if (tracking.get("uri"), tracking.get("experiment")) != (redacted(uri), name):
        return {}
    return {run: Position(**position) for run, position in tracking.get("runs", {}).items()}
