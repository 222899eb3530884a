"""The runs of one folder, brought up to date in MLflow: journals as metrics, states, changes of a setting, files.

A metric in MLflow is unique by (run, key, time, step, value), and a journal never uses a time twice; so delivering a
row again changes nothing, and a delivery that was cut off is simply repeated from the last acknowledged position.

A folder may be taken up again on another node, as a newer attempt (``attempt.json``; none is the oldest). The first run
is tagged with the newest attempt that delivered; folders of older ones deliver nothing more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap.base.errors import Superseded
from proxygap.record.attempt import Attempt, held_by
from proxygap.record.folder import read_json, write_json
from proxygap.record.inputs import EVENT, dataset_input
from proxygap.record.known_runs import NEW_STATE, Destination, KnownRuns
from proxygap.record.rows import Raw, number, read_tail
from proxygap.record.sources import PARENT, RunSource
from proxygap.record.tracker import BATCH, TAG_LENGTH, allowed_name, redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHUNK = 1 << 18
"""Bytes of a journal between two notes of how far it has been delivered."""
ATTEMPT_TAG = "proxygap.attempt"
FIRST = Attempt(0, "00000000")
"""The attempt of whoever runs without storage."""


@dataclass(slots=True)
class Position:
    """How far one journal of one attempt, and the changes of a trial's setting, have been delivered to one run."""

    run_id: str = ""
    attempt: str = FIRST.name
    generation: int = 0
    offset: int = 0
    delivered: int = 0
    state: str = ""
    artifacts: dict[str, str] = field(default_factory=dict)
    changes: int = 0


@dataclass(slots=True)
class Tally:
    """What the tracker has acknowledged in the attempt that is under way: readings, or artifacts."""

    count: int = 0


class FolderDelivery:
    """Brings the runs of one folder up to date; ``tracking.json`` in the folder keeps the positions.

    Args:
        path: the folder, which has the runs of an experiment, or of a trial, or the one of a sweep.
        destination: where to.
        runs: what is there already.
        tally: counts what is delivered, also where a later step fails.

    Methods raise what `tracker_errors` lists, and StorageError for a journal that cannot be read.
    """

    def __init__(self, path: Path, destination: Destination, runs: KnownRuns, tally: Tally) -> None:
        self.path, self._runs, self._tally = path, runs, tally
        self._where = {"uri": redacted(destination.uri), "experiment": destination.name}
        self.positions = _positions(path, self._where)
        self._bound: set[str] = set()
        self._dirty = False

    @property
    def _client(self) -> MlflowClient:
        return self._runs.client

    def bind(self, sources: Iterable[RunSource], above: str = "") -> None:
        """Know the run of every source, the first one's below ``above``, the others' below the first one's."""
        for source in sources:
            if source.name not in self._bound:
                known = self._runs.ensure(source, above if source.name == PARENT else self.run_id)
                if self.positions.setdefault(source.name, Position()).run_id != known.run_id:
                    state = NEW_STATE if known.new else ""
                    self.positions[source.name], self._dirty = Position(run_id=known.run_id, state=state), True
                known.new = False
                self._bound.add(source.name)
        self.save()

    @property
    def run_id(self) -> str:
        """The run that the others are below."""
        return self.positions[PARENT].run_id

    def fence(self) -> None:
        """Claim the first run, which is bound, for this folder's attempt. Raises Superseded where a newer one has."""
        told = self._client.get_run(self.run_id).data.tags.get(ATTEMPT_TAG, "")
        mine, theirs = attempt_of(self.path), Attempt.named(told) or FIRST
        if mine < theirs:
            raise Superseded(
                "a newer attempt delivers this run, so nothing more is delivered from here",
                field=str(self.path),
                value=mine.name,
                remedy=f"Follow {theirs.name}",
            )
        if mine > theirs:
            self._client.set_tag(self.run_id, ATTEMPT_TAG, mine.name)

    def journals(self, sources: Iterable[RunSource]) -> None:
        """Deliver what the journals have gained."""
        try:
            for source in sources:
                if source.journal.exists():
                    self._journal(source.name, source.journal)
        finally:
            self.save()

    def standings(self, sources: Iterable[RunSource]) -> None:
        """Tell the runs' states where they changed."""
        for source in sources:
            position, standing = self.positions[source.name], source.standing
            if standing is None or position.state == standing.text:
                continue
            if standing.status == "RUNNING":
                self._client.update_run(position.run_id, status="RUNNING")
            else:
                self._client.set_terminated(position.run_id, standing.status, end_time=standing.time_ms)
            self._client.set_tag(position.run_id, "proxygap.state", standing.text[:TAG_LENGTH])
            position.state, self._dirty = standing.text, True
        self.save()

    def changes(self, metrics: Sequence[tuple[str, float, int, int]], tag: str, count: int) -> None:
        """Tell the ``count`` changes of a setting: all numbers as metrics, the whole of it now as a tag."""
        from mlflow.entities import Metric

        position = self.positions[PARENT]
        if position.changes == count:
            return
        told = [Metric(allowed_name(key), value, time_ms, step) for key, value, time_ms, step in metrics]
        for start in range(0, len(told), BATCH):
            self._client.log_batch(position.run_id, metrics=told[start : start + BATCH])
        self._client.set_tag(position.run_id, "proxygap.setting", tag)
        position.changes, self._dirty = count, True
        self.save()

    def artifacts(self, paths: Iterable[Path]) -> None:
        """Log files on the first run, those that changed since the last time."""
        position = self.positions[PARENT]
        for path in paths:
            if not path.is_file():
                continue
            place, digest = path.relative_to(self.path), hashlib.sha256(path.read_bytes()).hexdigest()
            if position.artifacts.get(str(place)) != digest:
                inside = "" if place.parent == Path() else place.parent.as_posix()
                self._client.log_artifact(position.run_id, str(path), inside or None)
                position.artifacts[str(place)], self._dirty = digest, True
                self._tally.count += 1
        self.save()

    def save(self) -> None:
        """Note the positions, where they changed."""
        if self._dirty:
            runs = {name: asdict(position) for name, position in self.positions.items()}
            where = {**self._where, "experiment_id": self._runs.experiment_id}
            write_json(self.path / "tracking.json", {**where, "runs": runs, **_last(self.path)})
            self._dirty = False

    def _journal(self, name: str, path: Path) -> None:
        position = _resumed(self.positions[name], path)
        while True:
            tail = read_tail(path, position.generation, position.offset, limit=CHUNK)
            for batch in batches(tail.rows):
                self._client.log_batch(position.run_id, metrics=batch)
            if inputs := [dataset_input(row["detail"]) for row in tail.rows if row.get("event") == EVENT]:
                self._client.log_inputs(position.run_id, inputs)
            readings = sum("values" in row for row in tail.rows)
            restarted = tail.generation != position.generation
            if (tail.generation, tail.end) != (position.generation, position.offset):
                self.save()  # of the chunk before
                position.delivered = readings + (0 if restarted else position.delivered)
                position.generation, position.offset, self._dirty = tail.generation, tail.end, True
            self._tally.count += readings
            if not tail.rows:
                return


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


def undelivered(path: Path, journals: dict[str, Path]) -> int:
    """Readings in these journals that lie behind the positions kept in a folder."""
    runs = read_json(path / "tracking.json").get("runs", {})
    count = 0
    for name, journal in journals.items():
        position = _resumed(Position(**runs.get(name, {})), journal)
        while journal.exists():
            tail = read_tail(journal, position.generation, position.offset)
            count += sum("values" in row for row in tail.rows)
            position.generation, position.offset = tail.generation, tail.end
            if not tail.rows:
                break
    return count


def attempt_of(path: Path) -> Attempt:
    """Whose files a folder holds; `FIRST` where nobody has taken it up. Raises StorageError for a damaged file."""
    held = held_by(path)
    return held.attempt if held else FIRST


def _resumed(position: Position, journal: Path) -> Position:
    """The position itself, back at the start where the journal is now another attempt's."""
    attempt = attempt_of(journal.parent).name
    if position.attempt != attempt:
        position.attempt, position.generation, position.offset = attempt, -1, 0
    return position


def _last(path: Path) -> dict[str, Any]:
    tracking = read_json(path / "tracking.json")
    return {"last": tracking["last"]} if "last" in tracking else {}


def _positions(path: Path, where: dict[str, str]) -> dict[str, Position]:
    """Positions reached with this tracker; none where the folder was delivered elsewhere before."""
    tracking = read_json(path / "tracking.json")
    if any(tracking.get(key) != value for key, value in where.items()):
        return {}
    return {run: Position(**position) for run, position in tracking.get("runs", {}).items()}
