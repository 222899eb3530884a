"""The command line, environment and access file of an MLflow server, wherever it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from proxygap.submit.settings import TrackerServer

DATABASE: Final = "mlflow"
"""Name of the database, and of its user."""
AUTH_FOLDER: Final = "/etc/mlflow"
SECRETS: Final = {
    "POSTGRES_PASSWORD": "Password of the database's user; only the server and the database know it.",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "Of the user admin, at least 12 characters; MLflow does not start without it.",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "Signs the forms of the server's pages. Make one:  openssl rand -hex 32",
    "AWS_ACCESS_KEY_ID": "User of the artifact store.",
    "AWS_SECRET_ACCESS_KEY": "Its password, at least 8 characters.",
}
"""What a server has to be given, and never by a file of the project."""
BUCKET_SCRIPT: Final = """\
import os, sys, time
import boto3
from botocore.exceptions import BotoCoreError, ClientError
store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
until = time.monotonic() + 120
while True:
    try:
        if sys.argv[1] not in [bucket["Name"] for bucket in store.list_buckets()["Buckets"]]:
            store.create_bucket(Bucket=sys.argv[1])
        break
    except (BotoCoreError, ClientError) as error:
        if time.monotonic() > until:
            sys.exit(f"error: the artifact store does not answer: {error}")
        time.sleep(2)
"""
"""Makes the bucket where there is none, as soon as the store answers."""


def secrets_needed(tracker: TrackerServer) -> tuple[str, ...]:
    """Names of the secrets; an S3-compatible store has keys, Amazon's gives roles instead."""
    keyed = tracker.store_image is not None or tracker.s3_endpoint is not None
    return tuple(name for name in SECRETS if keyed or not name.startswith("AWS_"))


def database_uri(place: str) -> str:
    """The database's URI for ``host:port``, with the driver that MLflow's image has. Its password is ``PGPASSWORD``."""
    return f"postgresql+psycopg2://{DATABASE}@{place}/{DATABASE}"


def server_command(tracker: TrackerServer, database: str, hosts: Iterable[str]) -> list[str]:
    """``mlflow server``, listening inside its container.

    Args:
        tracker: the server.
        database: ``host:port`` of PostgreSQL.
        hosts: names that it answers to, each with and without the port: MLflow compares Host headers as they are.
    """
    allowed = [form for name in dict.fromkeys(hosts) for form in (name, f"{name}:{tracker.port}")]
    command = ["mlflow", "server", "--host", "0.0.0.0", "--port", str(tracker.port), "--workers", str(tracker.workers)]  # noqa: S104
    command += ["--app-name", "basic-auth", "--backend-store-uri", database_uri(database)]
    command += ["--serve-artifacts", "--artifacts-destination", tracker.artifacts]
    return [*command, "--allowed-hosts", ",".join(allowed)]


def server_environment(endpoint: str | None) -> dict[str, str]:
    """What is no secret. Endpoint: of the S3-compatible store, None for Amazon's or another kind of store."""
    own = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_AUTH_CONFIG_PATH": f"{AUTH_FOLDER}/auth.ini", "HOME": "/tmp"}  # noqa: S108
    return own if endpoint is None else {**own, "MLFLOW_S3_ENDPOINT_URL": endpoint}


def auth_ini(database: str) -> str:
    """MLflow's access file: users are in the database, and read what others have; the first is ``admin``."""
    return (
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database_uri(database)}\n"
        "admin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "grant_default_workspace_access = false\n"
    )


def bucket_of(tracker: TrackerServer) -> str:
    """The bucket of the artifact store."""
    return urlsplit(tracker.artifacts).netloc
