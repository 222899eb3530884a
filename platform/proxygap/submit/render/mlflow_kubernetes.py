"""Kubernetes manifests of an MLflow server. Its secrets are one Secret, made from ``.env`` and never from a file here.

``kubectl --namespace NAMESPACE create secret generic NAME-secrets --from-env-file=.env``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxygap.submit.render.mlflow_server import (
    AUTH_FOLDER,
    BUCKET_SCRIPT,
    DATABASE,
    auth_ini,
    bucket_of,
    secrets_needed,
    server_command,
    server_environment,
)
from proxygap.submit.settings import TrackerServer

_DATABASE_PORT, _STORE_PORT = 5432, 9000
_POSTGRES_USER, _USER = 999, 1000
_Tree = Mapping[str, Any]


def manifests(tracker: TrackerServer) -> list[_Tree]:
    """Everything but the Secret: database, artifact store where there is none yet, server."""
    names = {"database": f"{tracker.name}-postgres", "store": f"{tracker.name}-store"}
    own_store = tracker.store_image is not None
    endpoint = f"http://{names['store']}:{_STORE_PORT}" if own_store else tracker.s3_endpoint
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tracker.namespace}},
        *_database(tracker, names["database"]),
        *(_store(tracker, names["store"]) if own_store else []),
        *_server(tracker, f"{names['database']}:{_DATABASE_PORT}", endpoint),
    ]


def _database(tracker: TrackerServer, name: str) -> list[_Tree]:
    ready = {"exec": {"command": ["pg_isready", "--username", DATABASE, "--dbname", DATABASE]}, "periodSeconds": 10}
    container = {
        "name": "postgres",
        "image": tracker.postgres_image,
        "env": [
            {"name": "POSTGRES_USER", "value": DATABASE},
            {"name": "POSTGRES_DB", "value": DATABASE},
            {"name": "PGDATA", "value": "/data/pgdata"},
            _secret(tracker, "POSTGRES_PASSWORD"),
        ],
        **_limits("1", "2Gi"),
        "readinessProbe": ready,
        "livenessProbe": {**ready, "initialDelaySeconds": 60, "failureThreshold": 6},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return _stateful(tracker, name, container, _DATABASE_PORT, _POSTGRES_USER, tracker.database_gib)


def _store(tracker: TrackerServer, name: str) -> list[_Tree]:
    container = {
        "name": "store",
        "image": tracker.store_image,
        "args": ["server", "/data"],
        "env": [
            _secret(tracker, "MINIO_ROOT_USER", "AWS_ACCESS_KEY_ID"),
            _secret(tracker, "MINIO_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY"),
        ],
        **_limits("1", "2Gi"),
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": _STORE_PORT}, "periodSeconds": 10},
        "livenessProbe": {
            "httpGet": {"path": "/minio/health/live", "port": _STORE_PORT},
            "periodSeconds": 10,
            "failureThreshold": 6,
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return _stateful(tracker, name, container, _STORE_PORT, _USER, tracker.store_gib)


def _stateful(tracker: TrackerServer, name: str, container: _Tree, port: int, user: int, gib: int) -> list[_Tree]:
    """A Service, a StatefulSet of one pod with a disk, and a policy that lets the server alone reach it."""
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{gib}Gi"}}},
    }
    spec = {
        "serviceName": name,
        "replicas": 1,
        "selector": {"matchLabels": _labels(name)},
        "template": _pod(name, user, [{**container, "ports": [{"containerPort": port}]}]),
        "volumeClaimTemplates": [claim],
    }
    return [
        _service(tracker, name, port),
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": _metadata(tracker, name), "spec": spec},
        _only_from(tracker, name, port),
    ]


def _server(tracker: TrackerServer, database: str, endpoint: str | None) -> list[_Tree]:
    name = tracker.name
    domain = [name, f"{name}.{tracker.namespace}", f"{name}.{tracker.namespace}.svc"]
    hosts = (*tracker.hosts, *domain, f"{domain[-1]}.cluster.local")
    access = {"name": "auth", "configMap": {"name": name}}
    container = {
        "name": "mlflow",
        "image": tracker.image,
        "command": server_command(tracker, database, hosts),
        "workingDir": "/tmp",  # noqa: S108
        "env": _server_env(tracker, endpoint),
        "ports": [{"containerPort": tracker.port}],
        **_limits("2", "4Gi"),
        "startupProbe": _health(tracker, period=5, failures=60),
        "readinessProbe": _health(tracker, period=10, failures=3),
        "livenessProbe": _health(tracker, period=10, failures=6),
        "volumeMounts": [{"name": "auth", "mountPath": AUTH_FOLDER, "readOnly": True}],
    }
    pod = _pod(name, _USER, [container], volumes=[access])
    if tracker.store_image is not None:
        pod["spec"]["initContainers"] = [_bucket(tracker, endpoint)]
    spec = {"replicas": 1, "selector": {"matchLabels": _labels(name)}, "template": pod}
    ini = {"auth.ini": auth_ini(database)}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(tracker, name), "data": ini},
        _service(tracker, name, tracker.port),
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(tracker, name), "spec": spec},
    ]


def _server_env(tracker: TrackerServer, endpoint: str | None) -> list[_Tree]:
    named = [name for name in secrets_needed(tracker) if name != "POSTGRES_PASSWORD"]
    plain = [{"name": name, "value": value} for name, value in server_environment(endpoint).items()]
    return [*plain, _secret(tracker, "PGPASSWORD", "POSTGRES_PASSWORD"), *(_secret(tracker, name) for name in named)]


def _bucket(tracker: TrackerServer, endpoint: str | None) -> _Tree:
    keys = [_secret(tracker, name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    return {
        "name": "bucket",
        "image": tracker.image,
        "command": ["python", "-c", BUCKET_SCRIPT, bucket_of(tracker)],
        "env": [{"name": "MLFLOW_S3_ENDPOINT_URL", "value": endpoint}, *keys],
        **_limits("500m", "512Mi"),
        "securityContext": _hard(),
    }


def _pod(name: str, user: int, containers: Iterable[_Tree], volumes: list[_Tree] | None = None) -> dict[str, Any]:
    security = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = {
        "automountServiceAccountToken": False,
        "securityContext": security,
        "containers": [{**container, "securityContext": _hard()} for container in containers],
        "volumes": volumes,
    }
    return {"metadata": {"labels": _labels(name)}, "spec": spec}


def _hard() -> _Tree:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _limits(cpu: str, memory: str) -> _Tree:
    amount = {"cpu": cpu, "memory": memory}
    return {"resources": {"requests": amount, "limits": amount}}


def _health(tracker: TrackerServer, period: int, failures: int) -> _Tree:
    """MLflow answers ``/health`` under any name, and to anybody."""
    get = {"path": "/health", "port": tracker.port}
    return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _secret(tracker: TrackerServer, name: str, key: str | None = None) -> _Tree:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": f"{tracker.name}-secrets", "key": key or name}}}


def _labels(name: str) -> _Tree:
    return {"app.kubernetes.io/name": name}


def _metadata(tracker: TrackerServer, name: str) -> _Tree:
    return {"name": name, "namespace": tracker.namespace, "labels": _labels(name)}


def _service(tracker: TrackerServer, name: str, port: int) -> _Tree:
    spec = {"type": "ClusterIP", "selector": _labels(name), "ports": [{"port": port, "targetPort": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(tracker, name), "spec": spec}


def _only_from(tracker: TrackerServer, name: str, port: int) -> _Tree:
    server = {"podSelector": {"matchLabels": _labels(tracker.name)}}
    spec = {
        "podSelector": {"matchLabels": _labels(name)},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [server], "ports": [{"protocol": "TCP", "port": port}]}],
    }
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**kind, "metadata": _metadata(tracker, name), "spec": spec}
