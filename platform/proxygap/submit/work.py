"""What is submitted: an experiment, a study or a sweep, made to run elsewhere. Loads neither torch nor Ray.

What travels is the file with every override applied, its record settings those of the cluster unless it sets them, and
the local files that it names (`proxygap.submit.files`). Equal work has an equal identity wherever it is submitted from,
which is what makes a job the same job (`proxygap.submit.jobs`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from proxygap.base.config import canonical_hash
from proxygap.base.errors import InvalidExperiment
from proxygap.experiment import Experiment
from proxygap.study import load_study
from proxygap.submit.files import LocalFile, names_elsewhere, pack_files
from proxygap.submit.settings import Cluster, tells_secret
from proxygap.sweep.load import LoadedSweep, load_sweep
from proxygap.yaml_file import assign, parse_override, read_yaml, yaml_text


@dataclass(frozen=True, slots=True)
class Work:
    """One file, read and checked, as it will run on a cluster.

    Args:
        command: of the command line, that runs it there.
        name: of the experiment, the study or the sweep.
        text: the YAML that travels.
        files: what travels beside it.
        experiments: every experiment of it, by variant; of a sweep its base.
        sweep: where it is one.
        originals: the experiments as this machine would run them, their files at their places here.
    """

    command: Literal["run", "sweep"]
    name: str
    text: str
    files: tuple[LocalFile, ...]
    experiments: Mapping[str, Experiment]
    sweep: LoadedSweep | None = None
    originals: tuple[Experiment, ...] = ()

    @property
    def identity(self) -> str:
        """SHA-256 over what is run: all that can change a result, the seeds, and how many trials there are."""
        if self.sweep is not None:
            return canonical_hash({"sweep": self.sweep.identity, "trials": self.sweep.sweep.trial_count})
        return canonical_hash({name: [one.identity, list(one.seeds)] for name, one in self.experiments.items()})

    def check(self) -> None:
        """Look at what the experiments name, as before a run here; what only the nodes can read is looked at there.

        Raises:
            ProxyGapError: as `Experiment.check`.
        """
        for experiment in self.originals:
            if not names_elsewhere(experiment.model_dump(mode="json")):
                experiment.check()

    @property
    def notices(self) -> tuple[str, ...]:
        """What should be known before the start, in sentences."""
        if self.sweep is not None:
            return self.sweep.notices
        return tuple(dict.fromkeys(notice for one in self.experiments.values() for notice in one.notices))

    @property
    def record_folder(self) -> str:
        """``record.folder`` of the whole, on the head."""
        return next(iter(self.experiments.values())).record.folder

    @property
    def folders(self) -> tuple[str, ...]:
        """Run folders on the head that it writes to."""
        if self.sweep is not None:
            return (f"{self.record_folder}/{self.name}-{self.sweep.identity[:8]}",)
        return tuple(f"{one.record.folder}/{one.folder_name}" for one in self.experiments.values())


def load_work(file: str | Path, overrides: Sequence[str] = (), only: Sequence[str] = (), *, cluster: Cluster) -> Work:
    """Read a file that is to be submitted.

    Args:
        file: an experiment, a study with variants, or a sweep.
        overrides: dotted assignments such as ``loop.real_steps=512``.
        only: variants to keep; none keeps all.
        cluster: where it goes.

    Raises:
        InvalidExperiment: naming field, value and remedy; also for a local file that cannot travel, a run folder that
            is relative, and a URI with a password in it.
    """
    path = Path(file)
    work = _sweep(path, overrides, cluster) if "sweep" in read_yaml(path) else _study(path, overrides, only, cluster)
    if only and work.sweep is not None:
        raise InvalidExperiment("a sweep has no variants", field="--variant", value=only[0], remedy="Leave it out")
    for experiment in work.experiments.values():
        _check_record(experiment, work.record_folder)
    return work


def _study(path: Path, overrides: Sequence[str], only: Sequence[str], cluster: Cluster) -> Work:
    tree = read_yaml(path)
    for text in overrides:
        assign(tree, *parse_override(text))
    tree, files = pack_files(_placed(tree, cluster), cluster.shared_folders)
    with _written(tree) as written:
        study = load_study(written, (), only)
    originals = load_study(path, overrides, only).experiments if files else study.experiments
    if study.compared:
        tree["variants"] = {name: tree["variants"][name] for name in study.experiments}
    else:
        (alone,) = study.experiments.values()
        tree = alone.model_dump(mode="json")
    name = study.name if study.compared else str(tree["name"])
    return Work("run", name, yaml_text(tree), files, study.experiments, None, tuple(originals.values()))


def _sweep(path: Path, overrides: Sequence[str], cluster: Cluster) -> Work:
    original = loaded = load_sweep(path, overrides)
    tree = {**loaded.tree, "sweep": loaded.sweep.model_dump(mode="json")}
    tree, files = pack_files(_placed(tree, cluster), cluster.shared_folders)
    with _written(tree) as written:
        loaded = load_sweep(written)
    return Work("sweep", loaded.name, loaded.text, files, {"": loaded.base}, loaded, (original.base,))


def _placed(tree: Mapping[str, Any], cluster: Cluster) -> dict[str, Any]:
    """The tree with the cluster's record settings where it has none of its own."""
    own = tree.get("record") or {}
    if not isinstance(own, dict):
        return dict(tree)  # refused when it is validated
    places = {"folder": cluster.folder, "storage": cluster.storage, "tracking_uri": cluster.tracking_uri}
    given = {name: place for name, place in places.items() if place is not None and own.get(name) is None}
    return {**tree, "record": {**own, **given}}


@contextlib.contextmanager
def _written(tree: dict[str, Any]) -> Iterator[Path]:
    """A tree as a file for the length of a block: what travels is what was checked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experiment.yaml"
        path.write_text(yaml_text(tree), encoding="utf-8")
        yield path


def _check_record(experiment: Experiment, whole: str) -> None:
    record = experiment.record
    if not record.folder.startswith("/") and not (record.folder.startswith("~/") and record.folder == whole):
        raise InvalidExperiment(
            "is relative, and a job has no folder of its own",
            field="record.folder",
            value=record.folder,
            remedy="Leave it out, so that the cluster's is used, or give an absolute path on the nodes",
        )
    for field, uri in (("storage", record.storage), ("tracking_uri", record.tracking_uri)):
        if uri is not None and tells_secret(uri):
            remedy = "Remove it, and set it on the nodes (the cluster file's secrets)"
            problem = "has a password or a token in it, and whoever sees the job would see it"
            raise InvalidExperiment(problem, field=f"record.{field}", remedy=remedy)
