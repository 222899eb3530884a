"""``cluster``: cluster files, rendered for the tools that make clusters, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxygap.base.errors import InvalidExperiment
from proxygap.cli.group import answer, commands, file_argument, json_option, short

if TYPE_CHECKING:
    from proxygap.submit.settings import Cluster, TrackerServer


@commands.group()
def cluster() -> None:
    """Make the files that clusters and trackers are started from."""


_job_option = click.option(
    "--job", type=click.Path(path_type=Path), metavar="EXPERIMENT", help="What a RayJob brings; for KubeRay alone."
)


@cluster.command()
@file_argument
@click.option("--out", type=click.Path(path_type=Path), help="Folder; - prints. Default: beside FILE, by its name.")
@_job_option
def render(file: Path, out: Path | None, job: Path | None) -> None:
    """Write what the tool that makes the cluster of FILE reads.

    clusters/aws.yaml becomes clusters/aws/launcher.yaml, and so on. Nothing is started, and no secret is written.
    """
    from proxygap.submit.load import load_cluster_file

    files = _rendered(load_cluster_file(file), file, job)
    if out == Path("-"):
        for name, text in files.items():
            click.echo(text if len(files) == 1 else f"# {name}\n{text}", nl=False)
        return
    folder = _folder(file) if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)
        click.echo(short(path.absolute()))


@cluster.command()
@file_argument
@_job_option
@json_option
def check(file: Path, job: Path | None, as_json: bool) -> None:
    """Check a cluster file, and whether what was rendered from it is still what it says."""
    from proxygap.submit.load import load_cluster_file

    made = load_cluster_file(file)
    files = {} if _is_there(made) else _rendered(made, file, job)
    stands = {name: path.read_text(encoding="utf-8") for name in files if (path := _folder(file) / name).exists()}
    stale = [name for name, text in stands.items() if text != files[name]]
    notices = _notices(made)
    if stale:
        raise InvalidExperiment(
            f"{', '.join(stale)} below {short(_folder(file).absolute())} is not what it says",
            field=str(file),
            remedy=f"Run `proxygap cluster render {file}`",
        )
    if as_json:
        answer({"valid": True, "name": made.name, "files": list(files), "notices": notices})
        return
    click.echo(f"{made.name}: valid" + (f"; makes {', '.join(files)}" if files else "; there already, nothing to make"))
    for notice in notices:
        click.echo(f"note: {notice}")


def _rendered(made: Cluster | TrackerServer, file: Path, job: Path | None) -> dict[str, str]:
    from proxygap.submit.render import render as render_files
    from proxygap.submit.settings import Cluster

    brought = None
    if job is not None and isinstance(made, Cluster):
        brought = _brought(made, job)
    return render_files(made, file.name, brought)


def _brought(made: Cluster, job: Path) -> dict[str, str]:
    """The experiment as it goes into a ConfigMap: alone, so whatever else it names must be on the nodes."""
    from proxygap.submit.work import load_work

    work = load_work(job, cluster=made)
    if work.files:
        raise InvalidExperiment(
            f"names {len(work.files)} local files, and a RayJob brings the experiment alone",
            field="--job",
            value=str(job),
            remedy="Put them below the cluster's shared_folders, or use `proxygap submit`, which packs them",
        )
    return {"command": work.command, "name": work.name, "text": work.text}


def _is_there(made: Cluster | TrackerServer) -> bool:
    from proxygap.submit.settings import Cluster

    return isinstance(made, Cluster) and made.made_by is None


def _notices(made: Cluster | TrackerServer) -> list[str]:
    """What is allowed, and seldom meant."""
    from proxygap.submit.settings import Cluster

    if not isinstance(made, Cluster):
        return [] if made.listen.startswith("127.") else [f"listen = {made.listen}: put TLS in front of it"]
    told = []
    if made.storage is None and len(made.groups) > 1:
        told.append("storage is not set: whatever writes records runs on the driver's node alone")
    if made.tracking_uri is None:
        told.append("tracking_uri is not set: results go to a database in the run folder of the head")
    return told


def _folder(file: Path) -> Path:
    return file.parent / file.stem
