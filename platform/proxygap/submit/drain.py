"""Before a pod ends: ``python -m proxygap.submit.drain``, its preStop hook.

On the head, every job is asked to stop, and has time to reach a checkpoint. On a worker, what runs there may come to
its end. Either way the pod goes as soon as there is nothing left to wait for.
"""

from __future__ import annotations

import argparse
import sys
import time

import psutil  # type: ignore[import-untyped]

_POLL_S = 1.0
_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Titles of processes that belong to the node itself."""


def stop_jobs(address: str, wait_s: float) -> list[str]:
    """Stop all running jobs of the cluster, and wait for their ends; returns the ids of those that did not end."""
    from ray.job_submission import JobSubmissionClient

    client, until = JobSubmissionClient(address), time.monotonic() + wait_s
    running = [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    for job in running:
        client.stop_job(job)
    while running and time.monotonic() < until:
        time.sleep(_POLL_S)
        running = [job for job in running if not client.get_job_status(job).is_terminal()]
    return running


def await_idle(wait_s: float) -> list[int]:
    """Wait until Ray's workers on this node have nothing to do; returns the numbers of those that still have."""
    until = time.monotonic() + wait_s
    while (busy := _busy_workers()) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return busy


def _busy_workers() -> list[int]:
    """Processes that Ray has given a task or an actor: it writes which into their titles."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith("ray::") and not title.startswith(_OWN):
            found.append(process.pid)
    return found


def main() -> int:
    """Entry point; 1 where something was still running at the end."""
    parser = argparse.ArgumentParser(prog="python -m proxygap.submit.drain", description=__doc__)
    parser.add_argument("role", choices=("head", "worker"))
    parser.add_argument("--wait", type=float, default=120.0, help="longest wait, seconds")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="dashboard of the head")
    options = parser.parse_args()
    left = stop_jobs(options.address, options.wait) if options.role == "head" else await_idle(options.wait)
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
