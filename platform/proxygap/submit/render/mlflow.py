"""An MLflow server on PostgreSQL: what its compose file and its manifests share, and the compose file.

Clients see the server alone: it reads and writes artifacts for them, asks for user and password, and answers to no
names but those in ``hosts``. Flags are MLflow's 3.17 (``mlflow server --help``). No secret is in any file: the
database's password goes by ``PGPASSWORD``, so that not even the URIs have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import comment, yaml_documents
from proxygap.submit.render.mlflow_kubernetes import manifests
from proxygap.submit.render.mlflow_server import (
    AUTH_FOLDER,
    BUCKET_SCRIPT,
    DATABASE,
    SECRETS,
    auth_ini,
    bucket_of,
    secrets_needed,
    server_command,
    server_environment,
)
from proxygap.submit.render.nodes import image_of
from proxygap.submit.settings import TrackerServer

DATABASE_PORT = 5432
_ARTIFACTS = re.compile(r"[a-z][a-z0-9+]*://[A-Za-z0-9._/-]+"), "s3://bucket/folder"
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?"), "http://minio:9000"
_ADDRESS = re.compile(r"[0-9a-fA-F.:]+"), "127.0.0.1"
_POSTGRES_USER = "999:999"
_USER = "1000:1000"
_HARD = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"], "restart": "unless-stopped"}
_AGAIN = {"interval": "10s", "timeout": "5s", "retries": 12, "start_period": "30s"}


def render_mlflow(tracker: TrackerServer, header: str) -> dict[str, str]:
    """``compose.yaml``, ``kubernetes.yaml``, and ``.env.example`` with the names of the secrets that they ask for.

    Raises:
        InvalidExperiment: for a store without an address, or one that nothing would use.
    """
    _check(tracker)
    example = comment(f"{header}\nCopy to .env, fill in, and keep it to yourself: chmod 600 .env")
    lines = [f"{comment(SECRETS[name])}{name}=\n" for name in secrets_needed(tracker)]
    return {
        "compose.yaml": yaml_documents(header, _compose(tracker)),
        "kubernetes.yaml": yaml_documents(header, *manifests(tracker)),
        ".env.example": example + "".join(lines),
        ".gitignore": ".env\n",
    }


def _check(tracker: TrackerServer) -> None:
    for field in ("image", "postgres_image", "store_image"):
        if (image := getattr(tracker, field)) is not None:
            image_of(image, field)
    if tracker.store_image is not None and not tracker.artifacts.startswith("s3://"):
        remedy = "Set store_image: null"
        raise InvalidExperiment("would not be used: artifacts is no s3:// URI", field="store_image", remedy=remedy)
    if tracker.store_image is not None and not urlsplit(tracker.s3_endpoint or "").hostname:
        remedy = "Write e.g. http://minio:9000"
        raise InvalidExperiment("is missing, and the store needs a name", field="s3_endpoint", remedy=remedy)
    patterns = {"artifacts": _ARTIFACTS, "s3_endpoint": _ENDPOINT, "listen": _ADDRESS}
    for field, (pattern, form) in patterns.items():
        if (value := getattr(tracker, field)) is not None and not pattern.fullmatch(value):
            raise InvalidExperiment("cannot be used", field=field, value=value[:80], remedy=f"Write it like {form}")
    for name in tracker.hosts:
        if not name or not all(letter.isascii() and (letter.isalnum() or letter in ".-:[]") for letter in name):
            remedy = "Write a name or an address; its port is added"
            raise InvalidExperiment("is no name of a host", field="hosts", value=name[:80], remedy=remedy)


def _compose(tracker: TrackerServer) -> Mapping[str, Any]:
    own_store = tracker.store_image is not None
    needs = {"postgres": {"condition": "service_healthy"}}
    needs |= {"bucket": {"condition": "service_completed_successfully"}} if own_store else {}
    volumes: dict[str, Any] = {"database": {}, **({"store": {}} if own_store else {})}
    services = {"postgres": _postgres(tracker), **(_store(tracker) if own_store else {})}
    services["mlflow"] = _server(tracker, needs)
    ini = {"content": auth_ini(f"postgres:{DATABASE_PORT}")}
    return {"name": tracker.name, "services": services, "volumes": volumes, "configs": {"auth": ini}}


def _postgres(tracker: TrackerServer) -> Mapping[str, Any]:
    return {
        "image": tracker.postgres_image,
        "user": _POSTGRES_USER,
        **_HARD,
        "environment": {"POSTGRES_USER": DATABASE, "POSTGRES_DB": DATABASE, **_asked(["POSTGRES_PASSWORD"])},
        "volumes": ["database:/var/lib/postgresql/data"],
        "healthcheck": {"test": ["CMD", "pg_isready", "--username", DATABASE, "--dbname", DATABASE], **_AGAIN},
    }


def _store(tracker: TrackerServer) -> Mapping[str, Mapping[str, Any]]:
    """The store, what gives it its folder, and what makes its bucket."""
    name = str(urlsplit(tracker.s3_endpoint or "").hostname)
    keys = {"user": "AWS_ACCESS_KEY_ID", "password": "AWS_SECRET_ACCESS_KEY"}
    environment = {"MLFLOW_S3_ENDPOINT_URL": tracker.s3_endpoint, **_asked(keys.values())}
    once = {**_HARD, "restart": "no"}
    return {
        "store-folder": {
            "image": tracker.postgres_image,
            "user": "0:0",
            **once,
            "cap_add": ["CHOWN"],
            "network_mode": "none",
            "entrypoint": ["chown", _USER, "/data"],
            "volumes": ["store:/data"],
        },
        name: {
            "image": tracker.store_image,
            "user": _USER,
            **_HARD,
            "command": ["server", "/data"],
            "environment": _asked_as({"MINIO_ROOT_USER": keys["user"], "MINIO_ROOT_PASSWORD": keys["password"]}),
            "volumes": ["store:/data"],
            "depends_on": {"store-folder": {"condition": "service_completed_successfully"}},
        },
        "bucket": {
            "image": tracker.image,
            "user": _USER,
            **once,
            "command": ["python", "-c", BUCKET_SCRIPT, bucket_of(tracker)],
            "environment": environment,
            "depends_on": {name: {"condition": "service_started"}},
        },
    }


def _server(tracker: TrackerServer, needs: Mapping[str, Any]) -> Mapping[str, Any]:
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{tracker.port}/health', timeout=4)"
    asked = [name for name in secrets_needed(tracker) if name != "POSTGRES_PASSWORD"]
    port = {"target": tracker.port, "published": str(tracker.port), "host_ip": tracker.listen, "protocol": "tcp"}
    return {
        "image": tracker.image,
        "user": _USER,
        **_HARD,
        "working_dir": "/tmp",  # noqa: S108
        "command": server_command(tracker, f"postgres:{DATABASE_PORT}", tracker.hosts),
        "environment": {
            **server_environment(tracker.s3_endpoint),
            **_asked_as({"PGPASSWORD": "POSTGRES_PASSWORD"}),
            **_asked(asked),
        },
        "configs": [{"source": "auth", "target": f"{AUTH_FOLDER}/auth.ini"}],
        "ports": [port],
        "depends_on": dict(needs),
        "healthcheck": {"test": ["CMD", "python", "-c", probe], **_AGAIN},
    }


def _asked(names: Iterable[str]) -> Mapping[str, str]:
    return _asked_as({name: name for name in names})


def _asked_as(names: Mapping[str, str]) -> Mapping[str, str]:
    """Variables of a container, by those of ``.env``: one that is missing ends `docker compose` with a sentence."""
    told = "is missing; copy .env.example to .env and fill it in"
    return {name: f"${{{source}:?{told}}}" for name, source in names.items()}
