"""``submit``: run a file on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxygap.cli.group import answer, commands, file_argument, json_option, overrides_argument, variant_option

if TYPE_CHECKING:
    from proxygap.submit.client import JobsClient
    from proxygap.submit.jobs import Job, Submission
    from proxygap.submit.settings import Cluster
    from proxygap.submit.work import Work

cluster_option = click.option(
    "--cluster",
    "cluster_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of the cluster. [default: $PROXYGAP_CLUSTER, else clusters/laptop.yaml]",
)


@commands.command()
@file_argument
@overrides_argument
@cluster_option
@click.option("--follow", is_flag=True, help="Show the log until the job has ended, and end with its exit code.")
@click.option("--fresh", is_flag=True, help="Start again in a new folder instead of attaching or continuing.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@variant_option
@json_option
@click.pass_context
def submit(
    ctx: click.Context,
    file: Path,
    overrides: tuple[str, ...],
    cluster_file: Path | None,
    follow: bool,
    fresh: bool,
    dry_run: bool,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run an experiment, a study or a sweep as a job on a cluster.

    The same work is never done twice: submitting it again attaches to the job that does it, tells of the one that has
    done it, or continues one that failed or was stopped. Ctrl-C while following leaves the job running.
    """
    from proxygap.submit.load import load_cluster
    from proxygap.submit.work import load_work

    cluster = load_cluster(cluster_file)
    work = load_work(file, overrides, only, cluster=cluster)
    work.check()
    if dry_run:
        _show_plan(cluster, work, fresh, as_json)
        return
    client, submission = _submit(cluster, work, fresh)
    _say_submission(work, submission, cluster_file)
    job = submission.job
    if follow and job.active:
        job = follow_job(ctx, client, job, cluster_file, as_json)
    if as_json:
        answer({**job_document(job), "outcome": submission.outcome})
    ctx.exit(exit_code_of(job) if follow else 0)


def _submit(cluster: Cluster, work: Work, fresh: bool) -> tuple[JobsClient, Submission]:
    from proxygap.submit.client import JobsClient
    from proxygap.submit.feasible import check_work
    from proxygap.submit.jobs import submit as send

    client = JobsClient(cluster)
    _warn_of_plain_http(cluster)
    check_work(work, cluster, client.nodes())
    return client, send(client, cluster, work, fresh=fresh)


def _warn_of_plain_http(cluster: Cluster) -> None:
    from proxygap.submit.client import plain_http

    if plain_http(cluster):
        note = "http:// sends Ray's token readable across the network; use https://, or a tunnel to 127.0.0.1"
        click.echo(f"note: {cluster.address}: {note}", err=True)


def _show_plan(cluster: Cluster, work: Work, fresh: bool, as_json: bool) -> None:
    from proxygap.submit.jobs import metadata, stem_of
    from proxygap.submit.package import contents, entrypoint, runtime_env

    sizes = {name: len(content) for name, content in contents(work, cluster, fresh=fresh).items()}
    own = {name: size for name, size in sizes.items() if not name.startswith("proxygap/")}
    plan = {
        "id": f"{stem_of(work)}-1",
        "address": cluster.address,
        "entrypoint": entrypoint(cluster),
        "runtime_env": runtime_env(cluster, 1),
        "metadata": metadata(work, 1),
        "files": own,
        "code_bytes": sum(sizes.values()) - sum(own.values()),
    }
    if as_json:
        answer(plan)
        return
    from proxygap.yaml_file import yaml_text

    click.echo(yaml_text(plan).rstrip("\n"))


def _say_submission(work: Work, submission: Submission, cluster_file: Path | None) -> None:
    job, option = submission.job, _option(cluster_file)
    said = {
        "submitted": f"Submitted {job.id}." if job.attempt == 1 else f"Submitted {job.id}: it continues.",
        "attached": f"{job.id} does this already ({job.state.lower()}).",
        "succeeded": f"{job.id} has done this; --fresh does it again.",
    }
    lines = [*(f"note: {notice}" for notice in work.notices), said[submission.outcome]]
    lines += [f"Results on the head: {folder}" for folder in job.folders]
    if job.active:
        lines += [f"Follow it: proxygap jobs logs {job.id} --follow{option}"]
        lines += [f"Stop it:   proxygap jobs stop {job.id}{option}"]
    click.echo("\n".join(lines), err=True)


def follow_job(ctx: click.Context, client: JobsClient, job: Job, cluster_file: Path | None, as_json: bool) -> Job:
    """Show a job's log until it has ended; Ctrl-C ends the showing."""
    from proxygap.submit.follow import follow as watch

    def show(text: str) -> None:
        click.echo(text, nl=False, err=as_json)

    try:
        return watch(client, job.id, show)
    except KeyboardInterrupt:
        stop = f"proxygap jobs stop {job.id}{_option(cluster_file)}"
        click.echo(f"\n{job.id} goes on; `{stop}` stops it at a checkpoint", err=True)
        ctx.exit(130)


def exit_code_of(job: Job) -> int:
    """The exit code of a job that was followed, and its reason on standard error."""
    if job.reason:
        click.echo(f"error: {job.id}: {job.reason}", err=True)
    elif job.state == "STOPPED":
        click.echo(f"{job.id} was stopped; submit the file again to continue", err=True)
    return job.exit_code


def _option(cluster_file: Path | None) -> str:
    return f" --cluster {cluster_file}" if cluster_file else ""


def job_document(job: Job) -> dict[str, Any]:
    """A job as JSON-able data."""
    return {
        "id": job.id,
        "state": job.state,
        "attempt": job.attempt,
        "folders": list(job.folders),
        "reason": job.reason,
        "exit_code": None if job.active else job.exit_code,
        "start_ms": job.start_ms,
        "end_ms": job.end_ms,
    }
