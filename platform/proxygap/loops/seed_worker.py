"""A seed in an actor, on whatever node it was put."""

from __future__ import annotations

import ray

from proxygap.base.progress import Progress
from proxygap.experiment import Experiment
from proxygap.loops.copies import TAKE_UP_S, Copy, away, clear, part_of
from proxygap.loops.recovery import Loss
from proxygap.loops.seed_run import SeedRun
from proxygap.record.folder import RunState, SeedFolder
from proxygap.record.storage import Storage

PATIENCE_S = 30.0
"""Longest wait for a process that had the seed before and is about to end."""


class SeedWorker:
    """Runs one seed; the other methods answer while it does.

    Args:
        experiment: what to run.
        place: the seed's folder on the driver's node.
        storage: where a copy of its records is kept, or None.
        home: id of the driver's node; anywhere else the records are in a folder of that node's own.
        loss: why another actor no longer has it, or None.
    """

    def __init__(
        self, experiment: Experiment, place: SeedFolder, storage: Storage | None, home: str, loss: Loss | None
    ) -> None:
        self._experiment, self._loss = experiment, loss
        here = ray.get_runtime_context().get_node_id()
        self._away = here != home
        self._place = away(place, here) if self._away else place
        self._copy = Copy(part_of(storage, place.path.parent, place.path.name), self._place.path)
        self._run: SeedRun | None = None
        self._progress: Progress | None = None
        self._stopping = False

    def execute(self) -> bool:
        """Run the seed to its end, or to a request to stop; whether storage has all of it.

        Raises:
            ProxyGapError: the seed failed; its status says why.
            Superseded: another process has taken it over.
        """
        if not self._copy.take_up(store_s=TAKE_UP_S, holder_s=PATIENCE_S, stop=lambda: self._stopping):
            return False
        self._run = SeedRun(
            self._experiment,
            self._place.seed,
            self._place,
            self._keep,
            lambda: self._stopping,
            publish=self._copy.publish,
            loss=self._loss,
            patience_s=PATIENCE_S,
        )
        state = self._run.execute()
        complete = self._copy.settle()
        if self._away and complete and state is RunState.FINISHED:
            clear(self._place)
        return complete

    def told(self) -> tuple[Progress | None, int, bool]:
        """The newest progress, the real step of its newest checkpoint, and whether its records are not at home."""
        return self._progress, -1 if self._run is None else self._run.saved_step, self._away

    def stop(self) -> None:
        """Ask the run to checkpoint and return."""
        self._stopping = True

    def _keep(self, progress: Progress) -> None:
        self._progress = progress
