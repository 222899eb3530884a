"""One run: an experiment with one seed, from its newest checkpoint to the end of its budget."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from proxygap.base.clock import Clocks
from proxygap.base.errors import HostFailed, StorageError, Superseded
from proxygap.base.measurement import Direction, Measurement, Reading, Side
from proxygap.base.progress import Progress
from proxygap.base.seeds import generator
from proxygap.experiment import Experiment
from proxygap.loops.copies import is_held
from proxygap.loops.loop import Loop
from proxygap.loops.recovery import ROOM_S, Loss, Losses, Lost, RayLost, in_a_line, is_loss, release
from proxygap.loops.speed import Speed, Stopwatch
from proxygap.probe.gap import across_models, onset, onset_measurements, optimism, within_run
from proxygap.record.checkpoint import CheckpointStore
from proxygap.record.folder import RunState, SeedFolder
from proxygap.record.journal import Journal
from proxygap.record.rows import EventRow, ReadingRow, Row, read_journal

OnProgress = Callable[[Progress], None]
Stop = Callable[[], bool]
Publish = Callable[[], None]
LOCK_POLL_S, ROOM_POLL_S = 0.1, 2.0
log = logging.getLogger("proxygap")


class SeedRun:
    """Runs one seed: train, and whenever the loop says so measure both sides, record, checkpoint.

    Args:
        experiment: what to run.
        seed: which of its seeds.
        folder: where the run's records are; what is there is continued.
        on_progress: told after every iteration.
        stop: asked after every iteration; true ends the run with a checkpoint.
        key: identity of its checkpoints. Default: that of the experiment and the seed.
        publish: called after every evaluation and every checkpoint, and at the end; copies the records elsewhere.
            Where it raises StorageError the run goes on, and `unpublished` says so; Superseded ends it at once.
        loss: why the run is taken up again, where a process that had it was lost.
        patience_s: longest wait for the process that had the run before to let go of its journal.
    """

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        folder: SeedFolder,
        on_progress: OnProgress,
        stop: Stop,
        *,
        key: str | None = None,
        publish: Publish | None = None,
        loss: Loss | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.experiment, self.seed, self.folder = experiment, seed, folder
        self.on_progress, self.stop = on_progress, stop
        self.key = key or experiment.run_key(seed)
        self.unpublished = False
        """Whether the last attempt to publish failed."""
        self.clocks, self.state = Clocks(), RunState.RUNNING
        self._publish, self._patience_s = publish or (lambda: None), patience_s
        self._loss = loss
        self._losses = Losses(experiment.compute.max_failures, 0 if loss is None else loss.attempt)
        self._saved: Clocks | None = None
        self._speed = Speed(0)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of the run: `_restore` reads it from the journal."""
        self.objective_T: list[float] = []
        self.outcome_T: list[float] = []
        self.noise_T: list[float] = []
        self.step_T: list[int] = []
        self.correlation, self.note = math.nan, ""
        self._weights: dict[str, float] = {}

    def execute(self) -> RunState:
        """Run to the end of the budget, or to a request to stop.

        Raises:
            ProxyGapError: the seed failed; its status says why.
        """
        for _ in self.evaluations():
            pass
        return self.state

    def evaluations(self) -> Iterator[Reading]:
        """Every evaluation of the run in turn: those that the journal keeps first, then each as soon as it is recorded.

        The run stands still between two of them, so that the seeds of a trial can go forward together. Whoever closes
        the iterator early decides what the status says; nothing after the newest checkpoint is then kept. A loop that
        lost a process or a node is built anew on the way, and what it repeats is not given a second time.

        Raises:
            ProxyGapError: the seed failed; its status says why.
            Superseded: a newer attempt has the run; nothing was written about that.
        """
        torch.set_num_threads(self.experiment.compute.threads)
        self.folder.set_status(RunState.RUNNING)
        self.store = CheckpointStore(self.folder.checkpoints, self.experiment.record.keep_checkpoints)
        self.journal = self._open_journal()
        try:
            yield from self._evaluations()
        except (GeneratorExit, Superseded):
            raise
        except RayLost as error:
            self._end(RunState.INTERRUPTED, str(error))
            raise
        except BaseException as error:
            self._end(RunState.FAILED, f"{type(error).__name__}: {error}"[:2000])
            raise
        finally:
            self.journal.close()
        self._end(self.state)

    def _open_journal(self) -> Journal:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return Journal(self.folder.journal)
            except StorageError as error:
                if time.monotonic() > until or not is_held(error):
                    raise
                time.sleep(LOCK_POLL_S)

    def _end(self, state: RunState, reason: str = "") -> None:
        self.folder.set_status(state, reason)
        self._bring_out()

    def _bring_out(self) -> None:
        """Publish, where that is wanted; a copy that falls behind is told once, and does not stop the run."""
        try:
            self._publish()
            self.unpublished = False
        except StorageError as error:
            if not self.unpublished:
                log.warning("seed %d: %s", self.seed, error)
                with contextlib.suppress(StorageError):  # at the end the journal is closed
                    self.journal.event("storage_behind", {"error": str(error)})
            self.unpublished = True

    def checkpoint(self) -> None:
        """Save the state between two evaluations, unless the newest checkpoint is of this very moment."""
        if self._saved != self.loop.clocks:
            self._save(self.loop)
            self._bring_out()

    def _evaluations(self) -> Iterator[Reading]:
        given = 0
        while True:
            try:
                with contextlib.closing(self._life()) as life:
                    for number, reading in enumerate(life, start=1):
                        if number > given:
                            given = number
                            yield reading
            except Lost as lost:
                log.warning("seed %d lost something that it needs: %s", self.seed, lost)
                if not self.stop():
                    self._loss = self._losses.count(str(lost), self.clocks.real_step, self.saved_step)
            else:
                return
            if self._asked_to_stop_in(self._losses.pause_s):
                return

    def _asked_to_stop_in(self, pause_s: float) -> bool:
        """Wait for the next life; whether the run is to stop where its newest checkpoint is."""
        gc.collect()  # actors that nobody refers to any more end
        until = time.monotonic() + pause_s
        while not self.stop():
            if time.monotonic() >= until:
                return False
            time.sleep(LOCK_POLL_S)
        self._interrupt(max(self.saved_step, 0))
        return True

    @property
    def saved_step(self) -> int:
        """Real steps at the newest checkpoint of this process's doing or knowing; -1 where there is none."""
        return -1 if self._saved is None else self._saved.real_step

    def _life(self) -> Generator[Reading, None, None]:
        """The run from its newest checkpoint on, until its end or until it loses something. Raises Lost."""
        self._forget()
        self._tell("starting", self.clocks)
        self.loop = loop = self._start()
        try:
            yield from self._restore(loop)
            yield from self._train(loop)
        except Exception as error:
            lost = is_loss(error, loop)
            release(loop)
            if not lost:
                raise
            del self.loop
            raise Lost(in_a_line(error)) from None
        except BaseException:  # closed early, or the process ends; raised again
            loop.stop()
            raise
        loop.stop()

    def _start(self) -> Loop:
        """Build the loop. After a loss, wait a while for the room, and the names, that it needs.

        Raises:
            Lost: an actor of it was lost while it was being built.
        """
        until = time.monotonic() + ROOM_S
        while True:
            try:
                return self.experiment.loop.start(self.experiment, self.seed)
            except Exception as error:
                first = self._loss is None  # then a host that does not start is the experiment's fault, not a loss
                if (first and isinstance(error, HostFailed)) or not is_loss(error, rebuilding=not first):
                    raise
                if first or time.monotonic() >= until or self.stop():
                    raise Lost(in_a_line(error)) from None
            gc.collect()
            time.sleep(ROOM_POLL_S)

    def _restore(self, loop: Loop) -> list[Reading]:
        """Continue from the newest sound checkpoint; measurements after it are superseded, none is lost."""
        found = self.store.load_newest(self.key)
        if found is not None:
            for refusal in found.refusals:
                self.journal.event("checkpoint_refused", {"checkpoint": refusal.name, "reason": refusal.reason})
            loop.load_parts(found.parts)
        self.clocks, self._saved = loop.clocks, loop.clocks if found is not None else None
        superseded = self.journal.rewind(loop.clocks.iteration)
        if self._loss is not None:
            self.journal.event("recovered", self._loss.recovered(loop.clocks.real_step))
            self.note = "recovered"
        elif found is not None or superseded:
            self.journal.event("resumed", {"real_step": loop.clocks.real_step, "superseded": superseded})
        rows = read_journal(self.folder.journal)
        self._record_notices(rows)
        kept = [row.reading for row in rows if isinstance(row, ReadingRow)]
        for reading in kept:
            self._weights = weights_of(reading) or self._weights
        evaluations = [reading for reading in kept if is_evaluation(reading)]
        for reading in evaluations:
            self._remember(reading.measurements, reading.clocks)
        return evaluations

    def _train(self, loop: Loop) -> Iterator[Reading]:
        budget = self.experiment.loop.real_steps
        evaluations = len(self.step_T)
        watch = Stopwatch(time.perf_counter())
        self._speed = Speed(loop.clocks.real_step)
        while loop.clocks.real_step < budget:
            loop.train()
            self.clocks = loop.clocks
            self._record_events(loop)
            self._record_weights(loop)
            now, reading = loop.clocks.real_step, None
            if loop.measure_due:
                evaluations += 1
                reading = self._measure(loop, watch)
            stopping = self.stop() and now < budget
            due = reading is not None and evaluations % self.experiment.record.checkpoint_every == 0
            if stopping or now == budget or due:
                self._save(loop)
            if stopping:
                return self._interrupt(now)
            if reading is not None:
                self._bring_out()
            self._tell("running", loop.clocks)
            if reading is not None:
                yield reading
        loop.keep(self.folder.path, self._provenance())
        self._tell("finished", loop.clocks)
        self.state = RunState.FINISHED

    def _interrupt(self, real_step: int) -> None:
        self.journal.event("interrupted", {"real_step": real_step})
        self._tell("interrupted", self.clocks)
        self.state = RunState.INTERRUPTED

    def _save(self, loop: Loop) -> None:
        self.store.save(loop.parts(), loop.clocks, self.key)
        self._saved = loop.clocks

    def _measure(self, loop: Loop, watch: Stopwatch) -> Reading:
        """Both sides at the same clocks, and how they relate so far."""
        started = time.perf_counter()
        both = loop.measure()
        self._remember(both, loop.clocks)
        gap = self._gap(both, loop.clocks)
        learned = tuple(Measurement(f"policy/{k}", v, Side.MODEL) for k, v in loop.learned.items())
        watch.probe_s += time.perf_counter() - started
        timing = (
            Measurement("wall_s", time.perf_counter() - watch.started, Side.TIME, "s"),
            Measurement("probe_s", watch.probe_s, Side.TIME, "s"),
            Measurement("record_s", watch.record_s, Side.TIME, "s"),
            Measurement("real_steps_per_s", self._speed(loop.clocks.real_step), Side.TIME, "1/s"),
        )
        started = time.perf_counter()
        reading = Reading(loop.clocks, (*both, *gap, *learned, *timing))
        self.journal.write(reading)
        watch.record_s += time.perf_counter() - started
        return reading

    def _gap(self, both: tuple[Measurement, ...], clocks: Clocks) -> tuple[Measurement, ...]:
        """How the two sides of this run relate so far, and whether the outcome has turned down."""
        directions = {m.key: m.direction for m in both}
        side = directions.get(f"objective/{self.experiment.objective}", Direction.HIGHER)
        probe, rng = self.experiment.probe, generator(self.seed, f"probe/gap/{clocks.real_step}")
        options: dict[str, Any] = {
            "resamples": probe.resamples,
            "confidence": probe.confidence,
            "objective_direction": side,
        }
        if getattr(self.experiment.loop, "exchangeable", False):
            return self._across_models(options, rng)
        related = within_run(self.objective_T, self.outcome_T, rng=rng, **options)
        turned = onset(self.objective_T, self.outcome_T, self.step_T, rng, noise_T=self.noise_T, **options)
        self.correlation = next((m.value for m in related if m.name == "spearman"), math.nan)
        return (*related, *onset_measurements(turned), *optimism(both))

    def _across_models(self, options: dict[str, Any], rng: np.random.Generator) -> tuple[Measurement, ...]:
        """The same of evaluations that do not follow from each other: each is a model, and their order is chance."""
        related = across_models(self.objective_T, self.outcome_T, rng=rng, **options)
        self.correlation = next((m.value for m in related if m.name == "spearman"), math.nan)
        return related

    def _remember(self, measurements: tuple[Measurement, ...], clocks: Clocks) -> None:
        values = {m.key: m.value for m in measurements}
        wanted = f"outcome/{self.experiment.outcomes[0]}"
        self.objective_T.append(values.get(f"objective/{self.experiment.objective}", math.nan))
        self.outcome_T.append(values.get(wanted, math.nan))
        self.noise_T.append(values.get(f"{wanted}_std", math.nan) / math.sqrt(self.experiment.outcome_samples))
        self.step_T.append(clocks.real_step)
        self.correlation = values.get("gap/spearman", self.correlation)

    def _record_events(self, loop: Loop) -> None:
        for kind, detail in loop.events:
            self.journal.event(kind, detail)
            self.note = kind if kind != "fitted" else self.note
        loop.events.clear()

    def _record_notices(self, rows: list[Row]) -> None:
        """What should be known of this experiment before it starts; what the journal tells already is left out."""
        known = {row.detail["text"] for row in rows if isinstance(row, EventRow) and row.kind == "notice"}
        for text in self.experiment.notices:
            if text not in known:
                self.journal.event("notice", {"text": text})

    def _record_weights(self, loop: Loop) -> None:
        """The weights of a vector reward, in a reading of their own whenever they changed."""
        weights: Mapping[str, float] = getattr(loop, "weights", {})
        if weights and dict(weights) != self._weights:
            self._weights = dict(weights)
            self.journal.write(Reading(loop.clocks, tuple(Measurement(k, v, Side.WEIGHT) for k, v in weights.items())))

    def _provenance(self) -> dict[str, str]:
        return {"run_key": self.key, "task": self.experiment.task.name, "seed": str(self.seed)}

    def _tell(self, state: str, clocks: Clocks) -> None:
        budget = self.experiment.loop.real_steps
        speed = self._speed(clocks.real_step) if state not in {"starting"} else math.nan
        self.on_progress(
            Progress(
                seed=self.seed,
                state=state,
                clocks=clocks,
                budget=budget,
                steps_per_second=speed,
                eta_s=(budget - clocks.real_step) / speed if speed > 0 else math.nan,
                objective=self.objective_T[-1] if self.objective_T else math.nan,
                outcome=self.outcome_T[-1] if self.outcome_T else math.nan,
                correlation=self.correlation,
                note=self.note,
            )
        )


def is_evaluation(reading: Reading) -> bool:
    """Whether both sides were measured; a reading of weights alone is none."""
    return any(m.side is Side.OUTCOME for m in reading.measurements)


def weights_of(reading: Reading) -> dict[str, float]:
    """Weight by name, of a reading that is not an evaluation; empty where it holds none."""
    return {m.name: m.value for m in reading.measurements if m.side is Side.WEIGHT}
