"""The connection to a cluster's Jobs API: every failure of it is one `SubmissionFailed` with its remedy.

Ray's own client sends its token when token authentication is on in this process, follows ``RAY_ADDRESS`` before its
argument, and waits without end for what does not answer. Here the cluster file says where to go, the token goes along
wherever one is found, and every request has a deadline.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from proxygap.base.errors import SubmissionFailed
from proxygap.submit.settings import Cluster

CONNECT_S: Final = 10.0
ANSWER_S: Final = 60.0
READY_S: Final = 60.0
"""Longest wait for a head that has just started."""
POLL_S: Final = 0.5
_CHATTY: Final = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
_ELSEWHERE: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_START: Final = {
    "ray_start": "Start it with `ray start --head`, or correct the address",
    "launcher": "Open the tunnel with `ray dashboard LAUNCHER_FILE`, or correct the address",
    "kuberay": "Forward the port of its head service (`kubectl port-forward`), or correct the address",
}


class NoSuchJob(SubmissionFailed):
    """The cluster does not know a job of this id."""


class IdTaken(SubmissionFailed):
    """A job of this id was submitted before."""


class NotReady(SubmissionFailed):
    """The head has just started, and its agent does not take jobs yet."""


class JobsClient(JobSubmissionClient):  # type: ignore[misc] # Ray's classes carry no types
    """Ray's client with deadlines, and with errors that name the remedy.

    Args:
        cluster: where it is, and how it is trusted.

    Raises:
        SubmissionFailed: it cannot be reached, wants another token, is no Ray dashboard, or runs another Ray.
    """

    def __init__(self, cluster: Cluster) -> None:
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._cluster = cluster
        token = token_of(cluster)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if cluster.ca_file is not None and not Path(cluster.ca_file).expanduser().exists():
            raise _failed("there is no such file", field="ca_file", value=cluster.ca_file, remedy="Correct it")
        verify = str(Path(cluster.ca_file).expanduser()) if cluster.ca_file else True
        with _without(_ELSEWHERE):
            super().__init__(cluster.address, headers=headers, verify=verify)
        self.session_name = self._check_version()

    def nodes(self) -> list[dict[str, Any]]:
        """State of every live node: ``resources_total``, ``labels``, ``is_head_node``. Waits for the first one.

        Raises:
            NotReady: there is none after `READY_S` seconds.
        """
        until = time.monotonic() + READY_S
        while not (alive := self._alive()):
            if time.monotonic() > until:
                raise NotReady(
                    "has no live node", field="address", value=self._cluster.address, remedy="See `ray status`"
                )
            time.sleep(POLL_S)
        return alive

    def _alive(self) -> list[dict[str, Any]]:
        limits = {"limit": "10000", "timeout": "30"}
        response = self._do_request("GET", "/api/v0/nodes", params=limits)
        if response.status_code != requests.codes.ok:
            self._raise_error(response)
        rows: list[dict[str, Any]] = response.json()["data"]["result"]["result"]
        return [row for row in rows if row["state"] == "ALIVE"]

    def jobs(self) -> list[JobDetails]:
        """Every job that was submitted by ProxyGap, oldest first."""
        found = [job for job in self.list_jobs() if "proxygap" in (job.metadata or {}) and job.submission_id]
        return sorted(found, key=lambda job: (job.start_time or 0, job.submission_id))

    def _check_connection_and_version(self, *_: Any, **__: Any) -> None:
        """Ray asks twice, and for any version; `_check_version` asks once."""

    def _check_version(self) -> str:
        response = self._do_request("GET", "/api/version")
        try:
            told = response.json()
            theirs, session = str(told["ray_version"]), str(told.get("session_name", ""))
        except (ValueError, KeyError, TypeError):
            raise self._trouble(
                f"is no Ray dashboard: it answers /api/version with {response.status_code}",
                "Give the address of the dashboard (port 8265 unless it was changed)",
            ) from None
        if theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
            remedy = f"Submit from an environment with ray {theirs}, or start the cluster with ray {ray.__version__}"
            raise self._trouble(f"runs Ray {theirs}, and this is Ray {ray.__version__}", remedy)
        return session

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            answer: requests.Response = super()._do_request(method, endpoint, timeout=(CONNECT_S, ANSWER_S), **options)
        except AuthenticationError:
            raise self._refused_token() from None
        except requests.exceptions.SSLError as error:
            remedy = "Set ca_file to the certificate authority's file, or correct the address"
            raise self._trouble(f"has a certificate that is not trusted here ({_cause(error)})", remedy) from None
        except requests.exceptions.ReadTimeout:
            raise self._trouble(f"did not answer within {ANSWER_S:g} s", "Try again; see the head's logs") from None
        except requests.exceptions.RequestException as error:
            maker = self._cluster.made_by.kind if self._cluster.made_by else ""
            remedy = _START.get(maker, "Start it, or correct the address")
            raise self._trouble(f"cannot be reached ({_cause(error)})", remedy) from None
        return answer

    def _raise_error(self, response: requests.Response) -> None:
        lines = [line for line in response.text.splitlines() if any(letter.isalnum() for letter in line)]
        told = lines[-1].strip()[:300] if lines else ""  # of a traceback the error
        if response.status_code == requests.codes.not_found:
            raise NoSuchJob(
                f"the cluster does not know it ({told})",
                field="job",
                remedy="`proxygap jobs list` shows those that it knows; a restarted cluster forgets its jobs: submit "
                "the file again, and it continues",
            )
        if "already exists" in told:
            raise IdTaken(told, field="job")
        if "No available agent" in told:
            remedy = "Submit again in a moment; if it stays so, another Ray on the head has its agent's port (52365)"
            raise NotReady("takes no jobs yet", field="address", value=self._cluster.address, remedy=remedy)
        raise self._trouble(f"refuses ({response.status_code}: {told})", "See the head's logs (dashboard.log)")

    def _refused_token(self) -> SubmissionFailed:
        if "Authorization" in self._headers:
            problem, remedy = "does not take this token", "Get the one that its head was started with"
        else:
            problem, remedy = "wants a token, and there is none here", "Copy the one that its head was started with"
        where = "token_file, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
        return self._trouble(problem, f"{remedy} (`ray get-auth-token` there) to {where}")

    def _trouble(self, problem: str, remedy: str) -> SubmissionFailed:
        return _failed(problem, field="address", value=self._cluster.address, remedy=remedy)


def token_of(cluster: Cluster) -> str | None:
    """Ray's token for a cluster: of its ``token_file``, or where Ray looks, in Ray's order; None where there is none.

    Raises:
        SubmissionFailed: a file that is named does not hold one. The token itself is never shown.
    """
    named = cluster.token_file
    if named is None and (token := os.environ.get("RAY_AUTH_TOKEN", "").strip()):
        return _checked(token, "RAY_AUTH_TOKEN")
    path, field = named or os.environ.get("RAY_AUTH_TOKEN_PATH"), "token_file" if named else "RAY_AUTH_TOKEN_PATH"
    place = Path(path).expanduser() if path else Path.home() / ".ray" / "auth_token"
    if path is None and not place.is_file():
        return None
    try:
        return _checked(place.read_text(encoding="utf-8").strip(), field)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise _failed(f"cannot be read ({reason})", field=field, value=str(place), remedy="Correct the path") from None


def plain_http(cluster: Cluster) -> bool:
    """Whether the token would cross a network that is not this machine without encryption."""
    parts = urlsplit(cluster.address)
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def _checked(token: str, field: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise _failed("holds no token", field=field, remedy="Write the token of the head into it, and nothing else")
    return token


def _failed(problem: str, *, field: str, value: object = None, remedy: str) -> SubmissionFailed:
    return SubmissionFailed(problem, field=field, value=value, remedy=remedy)


def _cause(error: BaseException) -> str:
    """The innermost reason in a few words, e.g. ``Connection refused``."""
    found: Any = error
    for _ in range(8):
        inner = getattr(found, "reason", None) or (found.args[0] if getattr(found, "args", ()) else None)
        if not isinstance(inner, BaseException):
            break
        found = inner
    text = str(getattr(found, "strerror", None) or found).rpartition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", text)[:120] or type(error).__name__


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
