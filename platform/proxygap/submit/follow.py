"""Follow a job's log until it ends, over connections that may break: nothing is lost, nothing is shown twice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp

from proxygap.base.errors import SubmissionFailed
from proxygap.submit.client import JobsClient, NoSuchJob
from proxygap.submit.jobs import Job, told

SILENCE_S: Final = 60.0
"""Seconds without a line after which the connection is made anew: a dead one may never say so."""
GIVE_UP_S: Final = 600.0
"""Seconds without any answer of the cluster after which following ends. The job goes on."""
FORGOTTEN: Final = 3
"""Times in a row that the cluster does not know a job before that is believed: it may miss one while it is busy."""
_WAIT_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0)


def follow(client: JobsClient, job_id: str, write: Callable[[str], None], *, give_up_s: float = GIVE_UP_S) -> Job:
    """Show a job's log from its beginning until the job has ended.

    Args:
        client: the connection.
        job_id: of the job.
        write: takes text as it comes, lines with their ends.
        give_up_s: longest time without an answer.

    Returns:
        The job, ended.

    Raises:
        SubmissionFailed: the cluster was restarted and has forgotten the job, or did not answer for too long.
    """
    log, since, waits, unknown = _Log(write), time.monotonic(), 0, 0
    while True:
        shown = log.shown
        try:
            streamed = _streamed(client, job_id, log)
            job = told(client.get_job_info(job_id))
            if not (job.active and streamed):
                log.all_of(client.get_job_logs(job_id))
            if not job.active:
                return job
            since, unknown = time.monotonic(), 0
        except NoSuchJob as error:
            unknown += 1
            if unknown < FORGOTTEN:
                time.sleep(_WAIT_S[unknown])
                continue
            remedy = "Submit the file again: it continues from its newest checkpoint"
            problem = "was forgotten: the cluster was restarted"
            raise SubmissionFailed(problem, field="job", value=job_id, remedy=remedy) from error
        except SubmissionFailed as error:
            if time.monotonic() - since > give_up_s:
                problem = f"the cluster has not answered for {give_up_s:g} s ({error.problem}); the job may well go on"
                remedy = f"`proxygap jobs logs {job_id} --follow` takes up here"
                raise SubmissionFailed(problem, field="job", value=job_id, remedy=remedy) from error
        waits = 0 if log.shown > shown else waits + 1
        time.sleep(_WAIT_S[min(waits, len(_WAIT_S) - 1)])


def _streamed(client: JobsClient, job_id: str, log: _Log) -> bool:
    """Take what one connection tells; False where it broke, or could not be made."""
    try:
        asyncio.run(_tail(client, job_id, log))
    except (RuntimeError, aiohttp.ClientError, OSError):  # Ray's client tells a broken connection by RuntimeError
        return False
    return True


class _Log:
    """What was shown, counted in characters: a new connection tells the log from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self.shown, self._told = write, 0, 0

    def begin(self) -> None:
        """The next text is the log's beginning."""
        self._told = 0

    def take(self, text: str) -> None:
        """The next text of this connection."""
        new = text[max(0, self.shown - self._told) :]
        self._told += len(text)
        if new:
            self._write(new)
            self.shown += len(new)

    def all_of(self, text: str) -> None:
        """The whole log."""
        self.begin()
        self.take(text)


async def _tail(client: JobsClient, job_id: str, log: _Log) -> None:
    """One connection; ends with the job, or after a silence."""
    log.begin()
    lines: AsyncIterator[str] = client.tail_job_logs(job_id)
    async with contextlib.aclosing(lines):  # type: ignore[type-var]
        while True:
            try:
                log.take(await asyncio.wait_for(anext(lines), SILENCE_S))
            except (StopAsyncIteration, TimeoutError):
                return
