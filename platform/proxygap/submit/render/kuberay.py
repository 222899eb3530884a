"""Manifests for KubeRay: a RayCluster to submit to, and a RayJob that brings its own cluster and its experiment.

Fields are those of KubeRay's CRDs (``ray.io/v1``). Ray's token is the operator's (``authOptions``); pods run as nobody
special, take no more than they ask for, and have time to checkpoint before they end. Every attempt of a RayJob runs the
same command on a new cluster: it continues what the former one has left in the storage, and the former one can write no
more (``record/mirror.py``).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import yaml_documents
from proxygap.submit.render.kuberay_pods import group_spec, own_labels
from proxygap.submit.render.nodes import HEAD, checked, image_of, workers
from proxygap.submit.settings import Cluster, KubeRay

EXPERIMENT = "/etc/proxygap"
"""Folder of the head that the ConfigMap with the experiment is mounted at."""
FILE = "experiment.yaml"
KEPT_S = 3600
"""Seconds for which the pods of an ended RayJob stay, to be looked at."""
IDLE_S = 300
"""Seconds without work after which a node of a group that may shrink is given back."""


def render_kuberay(
    cluster: Cluster, made_by: KubeRay, header: str, job: Mapping[str, str] | None = None
) -> dict[str, str]:
    """``raycluster.yaml``, and ``rayjob.yaml``, each with its network policy.

    Args:
        cluster: what is to be made.
        made_by: how.
        header: comment of each file.
        job: what a RayJob brings: ``command`` (run or sweep), ``name``, ``text`` (the resolved experiment's YAML).
            Without it, there is no ``rayjob.yaml``.

    Raises:
        InvalidExperiment: for what Kubernetes would refuse, and for attempts that could not continue one another.
    """
    checked(cluster)
    _check(cluster, made_by)
    spec = _cluster_spec(cluster, made_by)
    alone = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(cluster.name, cluster, made_by),
        "spec": spec,
    }
    files = {"raycluster.yaml": yaml_documents(header, alone, _network_policy(cluster, made_by))}
    if job is not None:
        _check_attempts(cluster, made_by)
        own = _config_map(cluster, made_by, job), _ray_job(cluster, made_by, job)
        files["rayjob.yaml"] = yaml_documents(header, *own, _network_policy(cluster, made_by))
    return files


def _check(cluster: Cluster, made_by: KubeRay) -> None:
    image_of(made_by.image, "made_by.image")
    if made_by.fault_tolerant != (made_by.redis_address is not None):
        remedy = "Give both fault_tolerant: true and redis_address, or neither"
        raise InvalidExperiment("goes with redis_address", field="made_by.fault_tolerant", remedy=remedy)
    if not cluster.folder.startswith("/"):
        raise InvalidExperiment(
            "must be absolute: it is a folder of containers, where made_by.storage_claim is mounted",
            field="folder",
            value=cluster.folder,
            remedy="Write e.g. /var/lib/proxygap/runs",
        )


def _check_attempts(cluster: Cluster, made_by: KubeRay) -> None:
    if made_by.attempts > 1 and cluster.storage is None and made_by.storage_claim is None:
        raise InvalidExperiment(
            "is more than one, and the next attempt's new cluster would find nothing of the last one's",
            field="made_by.attempts",
            value=made_by.attempts,
            remedy="Set storage or made_by.storage_claim, or attempts: 1",
        )


def _metadata(name: str, cluster: Cluster, made_by: KubeRay) -> Mapping[str, Any]:
    return {"name": name, "namespace": made_by.namespace, "labels": own_labels(cluster)}


def _cluster_spec(cluster: Cluster, made_by: KubeRay) -> Mapping[str, Any]:
    grows = any(group.least != group.most for group in workers(cluster).values())
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True if grows else None,
        "autoscalerOptions": _autoscaler() if grows else None,
        "gcsFaultToleranceOptions": _fault_tolerance(made_by) if made_by.fault_tolerant else None,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {},
            **group_spec(cluster, made_by, HEAD, needs_token=grows),
        },
        "workerGroupSpecs": [
            {
                "groupName": name,
                "replicas": group.least,
                "minReplicas": group.least,
                "maxReplicas": group.most,
                "rayStartParams": {},
                **group_spec(cluster, made_by, name, needs_token=False),
            }
            for name, group in workers(cluster).items()
        ],
    }


def _autoscaler() -> Mapping[str, Any]:
    amount = {"cpu": "500m", "memory": "512Mi"}
    return {"version": "v2", "idleTimeoutSeconds": IDLE_S, "resources": {"requests": amount, "limits": amount}}


def _fault_tolerance(made_by: KubeRay) -> Mapping[str, Any]:
    secret = {"valueFrom": {"secretKeyRef": {"name": "proxygap-redis", "key": "password"}}}
    return {"redisAddress": made_by.redis_address, "redisPassword": secret}


def _network_policy(cluster: Cluster, made_by: KubeRay) -> Mapping[str, Any]:
    """Pods of the cluster among each other; the dashboard also for this namespace and for the operator; nobody else."""
    pods = {"podSelector": {"matchLabels": own_labels(cluster)}}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    dashboard = [{"protocol": "TCP", "port": 8265}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(cluster.name, cluster, made_by),
        "spec": {
            **pods,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [pods]}, {"from": [{"podSelector": {}}, operator], "ports": dashboard}],
        },
    }


def _job_name(cluster: Cluster, job: Mapping[str, str]) -> str:
    """A name that Kubernetes takes: the experiment's, in lower case and with dashes alone, behind the cluster's."""
    letters = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in job["name"].lower())
    return f"{cluster.name[:20]}-{letters}"[:45].strip("-")


def _config_map(cluster: Cluster, made_by: KubeRay, job: Mapping[str, str]) -> Mapping[str, Any]:
    metadata = _metadata(_job_name(cluster, job), cluster, made_by)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {FILE: job["text"]}}


def _ray_job(cluster: Cluster, made_by: KubeRay, job: Mapping[str, str]) -> Mapping[str, Any]:
    name = _job_name(cluster, job)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(name, cluster, made_by),
        "spec": {
            "entrypoint": shlex.join(["proxygap", job["command"], f"{EXPERIMENT}/{FILE}"]),
            "entrypointNumCpus": cluster.entrypoint_cpus or None,
            "submissionMode": "K8sJobMode",
            "backoffLimit": made_by.attempts - 1,
            "activeDeadlineSeconds": made_by.deadline_s,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_S,
            "rayClusterSpec": _with_experiment(_cluster_spec(cluster, made_by), name),
        },
    }


def _with_experiment(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The cluster with the ConfigMap mounted on its head, where the driver runs."""
    head = spec["headGroupSpec"]
    pod = head["template"]["spec"]
    (container,) = pod["containers"]
    mount = {"name": "experiment", "mountPath": EXPERIMENT, "readOnly": True}
    volume = {"name": "experiment", "configMap": {"name": name}}
    container = {**container, "volumeMounts": [*(container["volumeMounts"] or []), mount]}
    pod = {**pod, "containers": [container], "volumes": [*(pod["volumes"] or []), volume]}
    return {**spec, "headGroupSpec": {**head, "template": {**head["template"], "spec": pod}}}
