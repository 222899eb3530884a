"""Jobs on a cluster: submit or attach, find, stop.

A job's id is ``<name>-<ten hex digits>-<attempt>``: the digits are those of what is run, so submitting the same work
again finds the job that does it already. Ray refuses an id that was used, which decides between two submitters at the
same moment. A job that failed or was stopped is followed by the next attempt, which continues from its checkpoints;
the number of the attempt goes along, so that a former attempt that still lives cannot write any more (`record.mirror`).
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ray.job_submission import JobDetails

from proxygap.base.errors import SubmissionFailed
from proxygap.submit.client import POLL_S, READY_S, IdTaken, JobsClient, NotReady
from proxygap.submit.package import contents, entrypoint, runtime_env, versions, write_package
from proxygap.submit.settings import Cluster
from proxygap.submit.work import Work

ACTIVE: Final = frozenset({"PENDING", "RUNNING"})
_ID = re.compile(r"(?P<stem>.+-[0-9a-f]{10})-(?P<attempt>[1-9][0-9]{0,5})")
_KILL_S: Final = 30.0
"""Seconds that Ray may take to end a job beyond its time to stop."""
_STOPPED: Final = 143
_COMMAND_NOT_FOUND: Final = 127


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the cluster tells it. ``state`` is one of Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""

    id: str
    state: str
    folders: tuple[str, ...]
    message: str
    driver_exit_code: int | None
    start_ms: int
    end_ms: int | None

    @property
    def active(self) -> bool:
        """Whether it runs, or is about to."""
        return self.state in ACTIVE

    @property
    def stem(self) -> str:
        """Its id without the attempt."""
        return _split(self.id)[0]

    @property
    def attempt(self) -> int:
        """Number of the attempt, from 1."""
        return _split(self.id)[1]

    @property
    def exit_code(self) -> int:
        """That of the run inside; of a run that never began that of `SubmissionFailed`; 0 while it is active."""
        if self.state == "STOPPED":
            return _STOPPED
        if self.state != "FAILED":
            return 0
        code = self.driver_exit_code
        if code is None or code == _COMMAND_NOT_FOUND:
            return SubmissionFailed.exit_code
        return 128 - code if code < 0 else code

    @property
    def reason(self) -> str:
        """Why it failed, in one line; empty unless it did."""
        if self.state != "FAILED":
            return ""
        if self.driver_exit_code == _COMMAND_NOT_FOUND:
            return "the nodes have no such Python; set python in the cluster file, or start Ray where it is on the PATH"
        if self.driver_exit_code is not None:
            return f"the run ended with exit code {self.exit_code}; `proxygap jobs logs {self.id}` tells more"
        return " ".join(self.message.split())[:500] or "the job never began"


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submission: a new job, one that runs already, or one that has succeeded before."""

    job: Job
    outcome: Literal["submitted", "attached", "succeeded"]
    notices: tuple[str, ...] = ()


def stem_of(work: Work) -> str:
    """The id of the jobs that do this work, without the attempt."""
    return f"{work.name}-{work.identity[:10]}"


def submit(client: JobsClient, cluster: Cluster, work: Work, *, fresh: bool = False) -> Submission:
    """Submit work, unless a job does it already or has done it.

    Args:
        client: the connection.
        cluster: its file.
        work: what to run; its feasibility is checked by the caller (`proxygap.submit.feasible`).
        fresh: submit in any case, and start again in a new folder.

    Raises:
        SubmissionFailed: the cluster does not take it, or another job writes to the same folder.
    """
    jobs = [told(each) for each in client.jobs()]
    same = [job for job in jobs if job.stem == stem_of(work)]
    if same and not fresh:
        newest = max(same, key=lambda job: (job.active, job.attempt))
        if newest.active:
            return Submission(newest, "attached")
        if newest.state == "SUCCEEDED":
            return Submission(newest, "succeeded")
    if not fresh:
        _refuse_shared_folder(work, [job for job in jobs if job.active])
    attempt = 1 + max((job.attempt for job in same), default=0)
    try:
        return Submission(_send(client, cluster, work, attempt, fresh=fresh), "submitted")
    except IdTaken:  # by another submitter, just now
        return Submission(told(client.get_job_info(f"{stem_of(work)}-{attempt}")), "attached")


def _send(client: JobsClient, cluster: Cluster, work: Work, attempt: int, *, fresh: bool) -> Job:
    environment = runtime_env(cluster, attempt)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "job.zip"
        write_package(package, contents(work, cluster, fresh=fresh))
        asked = {
            "entrypoint": entrypoint(cluster),
            "submission_id": f"{stem_of(work)}-{attempt}",
            "runtime_env": {**environment, "working_dir": str(package)},
            "metadata": metadata(work, attempt),
            "entrypoint_num_cpus": cluster.entrypoint_cpus or None,
        }
        until = time.monotonic() + READY_S
        while True:
            try:
                return told(client.get_job_info(client.submit_job(**asked)))
            except NotReady:
                if time.monotonic() > until:
                    raise
                time.sleep(POLL_S)


def metadata(work: Work, attempt: int) -> dict[str, str]:
    """What a job says about itself to whoever may see it."""
    return {
        **versions(),
        "name": work.name,
        "identity": work.identity,
        "attempt": str(attempt),
        "folders": json.dumps(work.folders),
    }


def _refuse_shared_folder(work: Work, active: Sequence[Job]) -> None:
    for job in active:
        if shared := sorted(set(job.folders) & set(work.folders)):
            raise SubmissionFailed(
                f"job {job.id} is writing to it",
                field="folder",
                value=shared[0],
                remedy=f"Wait for it, or `proxygap jobs stop {job.id}` and submit again",
            )


def find(client: JobsClient, wanted: str) -> Job:
    """The job of an id, or of its beginning; of several attempts at the same work the newest.

    Raises:
        SubmissionFailed: none, or jobs of different work.
    """
    jobs = [told(each) for each in client.jobs()]
    found = [job for job in jobs if job.id == wanted] or [job for job in jobs if job.id.startswith(wanted)]
    if not found:
        raise SubmissionFailed(
            f"the cluster does not know it; it knows {len(jobs)} jobs",
            field="job",
            value=wanted,
            remedy="`proxygap jobs list` shows them; a restarted cluster forgets its jobs: submit the file again, and "
            "it continues",
        )
    if len(stems := sorted({job.stem for job in found})) > 1:
        problem = f"is the beginning of {len(stems)}: {', '.join(stems[:4])}"
        raise SubmissionFailed(problem, field="job", value=wanted, remedy="Give more of it")
    return max(found, key=lambda job: job.attempt)


def newest(client: JobsClient) -> Job:
    """The job that was submitted last. Raises `SubmissionFailed` where there is none."""
    jobs = client.jobs()
    if not jobs:
        raise SubmissionFailed("the cluster has none", field="job", remedy="`proxygap submit FILE` makes one")
    return told(jobs[-1])


@dataclass(frozen=True, slots=True)
class Stopping:
    """How a job ended that was asked to."""

    job: Job
    seconds: float
    killed: bool


def stop(client: JobsClient, cluster: Cluster, job: Job) -> Stopping:
    """Ask a job to stop at its next checkpoint, and wait until it has.

    Raises:
        SubmissionFailed: it still runs long after its time is over.
    """
    began = time.monotonic()
    if job.active:
        client.stop_job(job.id)
    while (job := told(client.get_job_info(job.id))).active:
        if time.monotonic() - began > cluster.stop_wait_s + _KILL_S:
            problem = f"still {job.state.lower()} after {time.monotonic() - began:.0f} s"
            raise SubmissionFailed(problem, field="job", value=job.id, remedy="See the head; ask again")
        time.sleep(POLL_S)
    seconds = time.monotonic() - began
    return Stopping(job, seconds, killed=job.state == "STOPPED" and seconds >= cluster.stop_wait_s)


def told(details: JobDetails) -> Job:
    """A job in our words."""
    try:
        folders = tuple(map(str, json.loads((details.metadata or {}).get("folders", "[]"))))
    except ValueError:
        folders = ()
    return Job(
        id=str(details.submission_id),
        state=str(details.status),
        folders=folders,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
        start_ms=details.start_time or 0,
        end_ms=details.end_time,
    )


def _split(job_id: str) -> tuple[str, int]:
    found = _ID.fullmatch(job_id)
    return (found["stem"], int(found["attempt"])) if found else (job_id, 0)
