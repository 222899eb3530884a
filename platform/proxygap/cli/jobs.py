"""``jobs``: look after what was submitted to a cluster."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxygap.cli.group import answer, commands, json_option, overrides_argument, variant_option
from proxygap.cli.submit import cluster_option, exit_code_of, follow_job, job_document

if TYPE_CHECKING:
    from proxygap.submit.client import JobsClient
    from proxygap.submit.jobs import Job
    from proxygap.submit.settings import Cluster

job_argument = click.argument("job", required=False, metavar="[JOB|FILE]")


@commands.group()
def jobs() -> None:
    """Look after jobs on a cluster.

    Name a JOB by its id, by the beginning of its id, or by the FILE (and overrides) that it was submitted from; by
    default it is the newest.
    """


@jobs.command("list")
@cluster_option
@json_option
def list_jobs(cluster_file: Path | None, as_json: bool) -> None:
    """Show every job that was submitted by ProxyGap, the newest last."""
    from proxygap.submit.client import JobsClient
    from proxygap.submit.jobs import told
    from proxygap.submit.load import load_cluster

    found = [told(each) for each in JobsClient(load_cluster(cluster_file)).jobs()]
    if as_json:
        answer([job_document(job) for job in found])
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        click.echo(f"{job.id:<{width}}  {job.state:<9}  {_time(job.start_ms)}  {', '.join(job.folders)}")


@jobs.command()
@job_argument
@overrides_argument
@cluster_option
@variant_option
@json_option
def status(
    job: str | None, overrides: tuple[str, ...], cluster_file: Path | None, only: tuple[str, ...], as_json: bool
) -> None:
    """Show how a job is doing."""
    _, _, found = _find(job, overrides, only, cluster_file)
    if as_json:
        answer(job_document(found))
        return
    lines = [f"{found.id}: {found.state.lower()}, submitted {_time(found.start_ms)}"]
    lines += [f"ended {_time(found.end_ms)}"] if found.end_ms else []
    lines += [f"reason: {found.reason}"] if found.reason else []
    click.echo("\n".join([*lines, *(f"results on the head: {folder}" for folder in found.folders)]))


@jobs.command()
@job_argument
@overrides_argument
@cluster_option
@variant_option
@click.option("--follow", is_flag=True, help="Go on until the job has ended, and end with its exit code.")
@click.pass_context
def logs(
    ctx: click.Context,
    job: str | None,
    overrides: tuple[str, ...],
    cluster_file: Path | None,
    only: tuple[str, ...],
    follow: bool,
) -> None:
    """Print the log of a job."""
    _, client, found = _find(job, overrides, only, cluster_file)
    if not follow:
        click.echo(client.get_job_logs(found.id), nl=False)
        return
    ctx.exit(exit_code_of(follow_job(ctx, client, found, cluster_file, as_json=False)))


@jobs.command()
@job_argument
@overrides_argument
@cluster_option
@variant_option
@json_option
def stop(
    job: str | None, overrides: tuple[str, ...], cluster_file: Path | None, only: tuple[str, ...], as_json: bool
) -> None:
    """Stop a job at its next checkpoint, wait for it, and say how it ended."""
    from proxygap.submit.jobs import stop as end

    cluster, client, found = _find(job, overrides, only, cluster_file)
    if not found.active:
        click.echo(f"{found.id} has ended already: {found.state.lower()}", err=True)
        if as_json:
            answer({**job_document(found), "killed": False})
        return
    click.echo(f"{found.id}: asked to stop; it has {cluster.stop_wait_s} s to reach a checkpoint", err=True)
    ending = end(client, cluster, found)
    if as_json:
        answer({**job_document(ending.job), "seconds": ending.seconds, "killed": ending.killed})
        return
    if ending.job.state != "STOPPED":
        click.echo(f"{found.id} ended by itself: {ending.job.state.lower()}")
        return
    how = "was killed: its time was over (stop_wait_s)" if ending.killed else "stopped"
    click.echo(
        f"{found.id} {how}, after {ending.seconds:.1f} s. Submit the file again: it continues from its checkpoint."
    )


def _find(
    job: str | None, overrides: tuple[str, ...], only: tuple[str, ...], cluster_file: Path | None
) -> tuple[Cluster, JobsClient, Job]:
    """The job that is meant, and the connection to its cluster."""
    from proxygap.submit import jobs as book
    from proxygap.submit.client import JobsClient
    from proxygap.submit.load import load_cluster
    from proxygap.submit.work import load_work

    cluster = load_cluster(cluster_file)
    if job is not None and Path(job).is_file():
        job = book.stem_of(load_work(job, overrides, only, cluster=cluster))
    elif overrides or only:
        raise click.UsageError("overrides and variants go with a FILE, and this is none")
    client = JobsClient(cluster)
    return cluster, client, book.newest(client) if job is None else book.find(client, job)


def _time(ms: int | None) -> str:
    return dt.datetime.fromtimestamp((ms or 0) / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
