"""Datasets that are made before a run: by chance, by a teacher, on a grid, or read from a file; each with its lineage.

A dataset is decided by its settings, the task and a seed, so that it is made once for all runs that ask for it and kept
beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxygap import __version__
from proxygap.base.config import canonical_hash
from proxygap.base.errors import InvalidDataset, InvalidExperiment
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.collect.data.cache import OnEvent, kept
from proxygap.collect.data.choice import bounded
from proxygap.collect.data.grid import grid
from proxygap.collect.data.lineage import Lineage
from proxygap.collect.data.uniform import uniform_episodes
from proxygap.collect.episodes import read_episodes
from proxygap.collect.segments import in_order
from proxygap.loops.data_settings import ExpertData, FileData, GridData, OnPolicyData, RandomData, spread
from proxygap.loops.teachers import exact, expert_episodes, law_policy, lived_through, taught

if TYPE_CHECKING:
    from proxygap.experiment import DatasetPart, Experiment

FORMAT = 1
"""Of what is kept; another number makes every dataset anew."""


def _unheard(kind: str, detail: Mapping[str, Any]) -> None:
    """Nobody listens."""


def dataset(
    experiment: Experiment, settings: DatasetPart, seed: int, on_event: OnEvent = _unheard
) -> tuple[Transitions, Lineage]:
    """The dataset of one run, made or taken from where it is kept.

    Args:
        experiment: its task is acted on, its ``plan`` is a law teacher's default, its ``record.folder`` keeps datasets.
        settings: the experiment's ``data`` or ``expert``, or others that its loop knows.
        seed: of the run; settings with a seed of their own go before.
        on_event: told ``dataset``, the lineage, and ``dataset_refused`` where what was kept is damaged and made anew.

    Raises:
        InvalidExperiment: the data cannot be had as asked for; names the field.
        InvalidDataset: a file that is missing, damaged, of another task, or not the one that was asked for.
        RunFailed, NonFiniteValue: an environment, or a teacher, failed.
        StorageError: the folder cannot be written.
    """
    task: Any = experiment.task
    section = _section(experiment, settings)
    settings.check(experiment, section)
    request = _Request(experiment, settings, section, settings.seed if settings.seed is not None else seed)
    try:
        if isinstance(settings, FileData):
            made = _from_file(request, settings)
        else:
            file = Path(experiment.record.folder) / "datasets" / f"{request.key[:16]}.parquet"
            made = kept(file, request.key, lambda: request.described(_rows(request), request.policy), on_event)
    except InvalidExperiment as error:
        raise _named(error, section) from error
    assert made[0].obs_BO.shape[1] == task.obs_size
    on_event("dataset", {"section": section, **made[1].told()})
    return made


def check_file(experiment: Experiment, settings: FileData) -> None:
    """Read a file as `dataset` would. Raises as it does."""
    section = _section(experiment, settings)
    _read(_Request(experiment, settings, section, 0), settings)


def _section(experiment: Experiment, settings: DatasetPart) -> str:
    """Where an experiment asks for this dataset; a loop may ask for others."""
    return next((name for name, chosen in experiment.datasets.items() if chosen == settings), "dataset")


@dataclass(frozen=True, slots=True)
class _Request:
    """What decides a dataset."""

    experiment: Experiment
    settings: DatasetPart
    section: str
    seed: int

    @property
    def policy(self) -> dict[str, Any]:
        """Who acts, and what identifies it."""
        match self.settings:
            case RandomData():
                return {"kind": "uniform"}
            case GridData():
                return {"kind": "grid"}
            case FileData():
                return {"kind": "file", "path": self.settings.path}
        teacher = self.settings.teacher
        if teacher.kind == "law":
            planning = exact(teacher.plan or self.experiment.plan)
            return {"kind": "law", "plan": planning.model_dump(mode="json")}
        taught_by = teacher.experiment(self.experiment)
        steps, key = taught_by.loop.real_steps, taught_by.run_key(self.seed)
        return {"kind": "loop", "loop": taught_by.loop.kind, "real_steps": steps, "run_key": key}

    @property
    def key(self) -> str:
        """SHA-256 (hex) over all of it."""
        own = self.settings.model_dump(mode="json", exclude={"seed", "teacher"})
        task = self.experiment.task.hash
        made_by = {"format": FORMAT, "version": __version__, "policy": self.policy}
        return canonical_hash({"dataset": own, "task": task, "seed": self.seed, **made_by})

    def described(self, transitions: Transitions, policy: Mapping[str, Any]) -> tuple[Transitions, Lineage]:
        """The rows with their lineage."""
        task: Any = self.experiment.task
        lineage = Lineage.of(
            transitions,
            kind=self.settings.kind,
            task=task.name,
            task_hash=task.hash,
            policy=policy,
            seed=self.seed,
            key=self.key,
        )
        return transitions, lineage


def _rows(request: _Request) -> Transitions:
    """What was gathered, cut down to what was asked for."""
    settings, rng = request.settings, generator(request.seed, "data/choice")
    if isinstance(settings, GridData):
        return bounded(_grid(request, settings), settings.rows, "transitions", rng)
    builders: dict[str, Callable[[_Request, Any], Transitions]] = {
        "random": lambda asked, random: uniform_episodes(asked.experiment.control_task, random.rows, asked.seed),
        "on_policy": _on_policy,
        "expert": _expert,
    }
    rows = in_order(builders[settings.kind](request, settings))
    return bounded(rows, settings.rows, settings.choose, rng)


def _grid(request: _Request, settings: GridData) -> Transitions:
    task = request.experiment.control_task
    return grid(
        task,
        points=settings.points,
        half_width_O=spread(settings.half_width, task.obs_size),
        center_O=spread(settings.center, task.obs_size),
        noise_std_O=spread(settings.noise_std, task.obs_size),
        rng=generator(request.seed, "data/grid"),
    )


def _on_policy(request: _Request, settings: OnPolicyData) -> Transitions:
    with taught(settings.teacher.experiment(request.experiment), request.seed) as loop:
        return lived_through(loop)


def _expert(request: _Request, settings: ExpertData) -> Transitions:
    task, teacher = request.experiment.control_task, settings.teacher
    limits: dict[str, Any] = {
        "rows": settings.rows,
        "least_return": settings.least_return,
        "attempts": settings.attempts,
        "side_by_side": settings.side_by_side,
        "field": request.section,
    }
    if teacher.kind == "law":
        policy = law_policy(task, teacher.plan or request.experiment.plan, request.seed)
        return expert_episodes(policy, task, request.seed, **limits)
    with taught(teacher.experiment(request.experiment), request.seed) as loop:
        return expert_episodes(loop.policy(), task, request.seed, **limits)


def _from_file(request: _Request, settings: FileData) -> tuple[Transitions, Lineage]:
    transitions, provenance = _read(request, settings)
    rng = generator(request.seed, "data/choice")
    chosen = bounded(in_order(transitions), settings.rows, settings.choose, rng)
    return request.described(chosen, {**request.policy, "provenance": provenance})


def _read(request: _Request, settings: FileData) -> tuple[Transitions, dict[str, str]]:
    transitions, provenance = read_episodes(settings.path)
    task, field = request.experiment.control_task, f"{request.section}.path"
    there = tuple(c.shape[1] for c in (transitions.obs_BO, transitions.action_BA, transitions.component_reward_BR))
    if there != (task.obs_size, task.action_size, len(task.components)):
        told = "observations of {}, actions of {} and {} rewards apart".format(*there)
        raise InvalidDataset(
            f"has {told}, and {task.name} has {task.obs_size}, {task.action_size} and {len(task.components)}",
            field=field,
            value=settings.path,
            remedy="Give a file of the same task",
        )
    if len(transitions) == 0:
        raise InvalidDataset("has no rows", field=field, value=settings.path, remedy="Give a file with episodes")
    if settings.content_hash not in (None, transitions.content_hash):
        raise InvalidDataset(
            f"its rows have the hash {transitions.content_hash}",
            field=f"{request.section}.content_hash",
            value=settings.content_hash,
            remedy="Give the file that was meant, or its hash as `proxygap data show` tells it",
        )
    return transitions, provenance


def _named(error: InvalidExperiment, section: str) -> InvalidExperiment:
    """The error with its field below the section."""
    if error.field != "rows":
        return error
    return InvalidExperiment(error.problem, field=f"{section}.rows", value=error.value, remedy=error.remedy)
