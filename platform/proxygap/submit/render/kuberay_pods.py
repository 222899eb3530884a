"""Pods of a Ray cluster on Kubernetes: what each offers to Ray, what it takes, how it is watched and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxygap.submit.render.nodes import HEAD, SAFE, custom_resources
from proxygap.submit.settings import Cluster, KubeRay, NodeGroup

GRACE_S = 60
"""Seconds that a pod has after its jobs have stopped."""
_USER = 1000
_HEALTH = {"path": "/api/healthz", "port": 52365}


def own_labels(cluster: Cluster) -> Mapping[str, str]:
    """Labels of everything that is one cluster's."""
    return {"app.kubernetes.io/name": "proxygap", "app.kubernetes.io/instance": cluster.name}


def group_spec(cluster: Cluster, made_by: KubeRay, name: str, *, needs_token: bool) -> Mapping[str, Any]:
    """Labels and resources that the operator hands on to Ray, and the template of the pods.

    Args:
        cluster: what is made.
        made_by: how.
        name: of the group.
        needs_token: whether its pods ask Kubernetes for others, and so need a token of Kubernetes.
    """
    group = cluster.groups[name]
    offered = {"CPU": str(group.cpus), **({"GPU": str(group.gpus)} if group.gpus else {})}
    custom = {key: str(amount) for key, amount in custom_resources(group, f"groups.{name}").items()}
    return {
        "labels": group.labels or None,
        "resources": {**offered, **custom},
        "template": {
            "metadata": {"labels": own_labels(cluster)},
            "spec": {
                "shareProcessNamespace": True,  # orphans are reaped: Ray ends a job when its last process is gone
                "terminationGracePeriodSeconds": cluster.stop_wait_s + GRACE_S,
                "automountServiceAccountToken": needs_token,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": _USER,
                    "runAsGroup": _USER,
                    "fsGroup": _USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "nodeSelector": {"node.kubernetes.io/instance-type": group.machine} if group.machine else None,
                "tolerations": _tolerations(group),
                "containers": [_container(cluster, made_by, name)],
                "volumes": _volumes(made_by) or None,
            },
        },
    }


def _tolerations(group: NodeGroup) -> list[Mapping[str, str]] | None:
    return [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if group.gpus else None


def _container(cluster: Cluster, made_by: KubeRay, name: str) -> Mapping[str, Any]:
    group, head = cluster.groups[name], name == HEAD
    amount = {"cpu": str(group.cpus), "memory": f"{int(group.memory_gib * 1024)}Mi"}
    amount |= {"nvidia.com/gpu": str(group.gpus)} if group.gpus else {}
    drain = ["python", "-m", "proxygap.submit.drain", "head" if head else "worker", "--wait", str(cluster.stop_wait_s)]
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    mounts = [{"name": "runs", "mountPath": cluster.folder}] if made_by.storage_claim else None
    return {
        "name": "ray-head" if head else "ray-worker",
        "image": made_by.image,
        "env": _environment(cluster),
        "envFrom": [{"secretRef": {"name": secret}} for secret in made_by.secrets] or None,
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()] if head else None,
        "resources": {"requests": amount, "limits": amount},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "lifecycle": {"preStop": {"exec": {"command": drain}}},
        "startupProbe": _probe(period=5, failures=60),
        "readinessProbe": _probe(period=10, failures=6),
        "livenessProbe": _probe(period=10, failures=12),
        "volumeMounts": mounts,
    }


def _probe(period: int, failures: int) -> Mapping[str, Any]:
    """Ray's agent answers for its raylet, and on the head for the control store as well; no token is asked for."""
    return {"httpGet": _HEALTH, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _environment(cluster: Cluster) -> list[Mapping[str, str]]:
    """Not ``RAY_AUTH_MODE``: the operator sets it, with the token. ``$$(`` is how Kubernetes writes ``$(`` as it is."""
    own = {key: value for key, value in SAFE.items() if key != "RAY_AUTH_MODE"}
    own |= {"RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_wait_s), "OMP_NUM_THREADS": "1", **cluster.env}
    return [{"name": key, "value": value.replace("$(", "$$(")} for key, value in own.items()]


def _volumes(made_by: KubeRay) -> list[Mapping[str, Any]]:
    if made_by.storage_claim is None:
        return []
    return [{"name": "runs", "persistentVolumeClaim": {"claimName": made_by.storage_claim}}]
