"""Filesystems by the URI of a file or folder, or by an absolute path.

``/nfs/runs``, ``file:///nfs/runs``, ``s3://bucket/runs?endpoint_override=host:9000&scheme=http``, ``gs://``,
``abfs://``, ``hdfs://``. Credentials come from where the filesystem's own tools take them (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, instance roles, ...), never from the URI. An S3 or GCS endpoint that does not answer fails within
about `DEADLINE_S`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from proxygap.base.errors import InvalidExperiment, StorageError
from proxygap.base.files import Place, remedy_of

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

DEADLINE_S = 20
"""About how long one request to an endpoint that does not answer takes to fail, all of its attempts included."""

_CONNECT_S, _REQUEST_S, _ATTEMPTS = 5.0, 4.0, 2
_PUT_S = 6.0  # what an attempt to put takes longer, where a server takes the connection and stays silent
_S3_TEXT = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
_S3_FLAGS = ("allow_bucket_creation", "force_virtual_addressing")
_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_SECRET = ("key", "secret", "token", "password", "credential", "signature", "sas")


def is_uri(path: str | Path) -> bool:
    """Whether a path is the URI of a filesystem."""
    return isinstance(path, str) and "://" in path


def place_of(uri: str, field: str = "record.storage") -> Place:
    """Open a URI or an absolute path; of S3 and GCS nothing is asked yet, but for the region of a bucket.

    Raises:
        InvalidExperiment: ``field`` is relative, carries credentials, or no filesystem takes it.
        StorageError: the filesystem cannot be reached.
    """
    if uri.startswith("/"):
        uri = f"file://{quote(uri)}"
    parts = _checked(uri, field)
    path = unquote(parts.path).rstrip("/")
    if ".." in PurePosixPath(path).parts:
        raise _refused(field, parts, "the path has a .. in it", "Write it without")
    public = f"{parts.scheme}://{parts.netloc}{quote(path)}" + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "s3":
        return Place(_s3(parts, field), f"{parts.netloc}{path}", public)
    return Place(*_generic(parts, uri, field), public)


def _checked(uri: str, field: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        password = parts.password
    except ValueError as error:
        raise InvalidExperiment("not a URI", field=field, remedy="Write SCHEME://BUCKET/PATH") from error
    secrets = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in _SECRET)]
    if password is not None or secrets or (parts.scheme == "s3" and parts.username is not None):
        remedy = "Give them in the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise _refused(field, parts, "a URI does not carry credentials", remedy)
    if not parts.scheme:
        raise _refused(field, parts, "neither a URI nor an absolute path", "Write the path from its /, or a URI")
    if parts.scheme not in _SCHEMES:
        raise _refused(field, parts, f"no filesystem takes {parts.scheme}://", f"Use one of {', '.join(_SCHEMES)}")
    if parts.scheme != "file" and not parts.netloc:
        raise _refused(field, parts, "no bucket is named", f"Write {parts.scheme}://BUCKET/PATH")
    return parts


def _refused(field: str, parts: SplitResult, problem: str, remedy: str) -> InvalidExperiment:
    """A refusal that shows the URI without user, password and query."""
    host = parts.netloc.rpartition("@")[2]
    shown = f"{parts.scheme}://{host}{parts.path}" if parts.scheme else parts.path
    return InvalidExperiment(problem, field=field, value=shown, remedy=remedy)


def _s3(parts: SplitResult, field: str) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    options: dict[str, Any] = dict(parse_qsl(parts.query))
    if unknown := sorted(options.keys() - {*_S3_TEXT, *_S3_FLAGS}):
        raise _refused(field, parts, f"unknown option {unknown[0]}", f"Use {', '.join((*_S3_TEXT, *_S3_FLAGS))}")
    options |= {flag: options[flag].lower() in ("1", "true") for flag in _S3_FLAGS if flag in options}
    endpoint = options.get("endpoint_override") or _endpoint()
    if "://" in endpoint:
        options["scheme"], _, endpoint = endpoint.rstrip("/").partition("://")
    if endpoint:
        options["endpoint_override"] = endpoint
    if not options.get("region"):
        options["region"] = _region(parts.netloc, elsewhere=bool(endpoint))
    return S3FileSystem(
        **options,
        connect_timeout=_CONNECT_S,
        request_timeout=_REQUEST_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        allow_delayed_open=True,
    )


def _endpoint() -> str:
    """Where the environment sends requests; empty for AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _region(bucket: str, *, elsewhere: bool) -> str:
    """The environment's, else that of the bucket; servers ``elsewhere`` than at AWS take any."""
    from pyarrow.fs import resolve_s3_region

    told = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if told or elsewhere:
        return told or "us-east-1"
    try:
        return str(resolve_s3_region(bucket))
    except OSError as error:
        problem = str(error).splitlines()[0]
        raise StorageError(problem, field=f"s3://{bucket}", remedy=remedy_of(error, problem)) from error


def _generic(parts: SplitResult, uri: str, field: str) -> tuple[FileSystem, str]:
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        limit = timedelta(seconds=DEADLINE_S - 5).total_seconds()
        uri += f"{'&' if parts.query else '?'}retry_limit_seconds={limit:g}"
    try:
        filesystem, path = FileSystem.from_uri(uri)
    except (ArrowException, ValueError, OSError) as error:
        problem = str(error).splitlines()[0].replace(uri, parts.scheme)
        raise _refused(field, parts, problem, "Correct the URI, or install what it needs") from error
    return filesystem, str(path)
