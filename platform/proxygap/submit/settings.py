"""A cluster file: how a cluster is reached, what it is made of, which tool makes it. Loads neither torch nor Ray."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from proxygap.base.config import Settings

FORWARDED = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_S3_ENDPOINT_URL",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "PROXYGAP_STORAGE",
)
"""Variables of the submitter's environment that go with a job where they are set. None of them is a secret."""
SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE", re.IGNORECASE)
"""Names of variables that are never written into a job's description."""


def tells_secret(uri: str) -> bool:
    """Whether a URI holds a password, a user of a web address (which may be a token), or a secret in its query."""
    try:
        parts = urlsplit(uri)
        user = parts.username if parts.scheme in ("http", "https") else None
        return bool(user or parts.password) or any(SECRET.search(name) for name, _ in parse_qsl(parts.query))
    except ValueError:  # no URI at all
        return False


Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""What Kubernetes, the cloud launchers and SLURM all take as a name."""


class NodeGroup(Settings):
    """Equal nodes of a cluster."""

    cpus: PositiveInt
    """CPUs of one node."""
    gpus: NonNegativeInt = 0
    """GPUs of one node."""
    memory_gib: PositiveFloat = 8.0
    """Memory of one node."""
    accelerator_type: str | None = None
    """Ray's name of its accelerator, e.g. ``H100``."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that hosts and seeds may ask for, e.g. ``{pool: reward}``."""
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom resources of one node."""
    least: NonNegativeInt = 1
    """Nodes that are always there."""
    most: NonNegativeInt = 1
    """Nodes that may be there."""
    machine: str | None = None
    """The provider's name of such a machine, e.g. ``g6.2xlarge``; for SLURM a partition."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.most < self.least:
            raise ValueError(f"most = {self.most} is below least = {self.least}; raise it")
        return self


class RayStart(Settings):
    """Nodes that are started by hand with `ray start`: a laptop, a few workstations."""

    kind: Literal["ray_start"] = "ray_start"
    host: str = "127.0.0.1"
    """Address that the head listens on; anything but loopback needs the token on every node."""
    port: PositiveInt = 6379
    """Port of the head."""


class Launcher(Settings):
    """Ray's cluster launcher, `ray up`."""

    kind: Literal["launcher"] = "launcher"
    provider: Literal["local", "aws", "gcp"]
    """Where the machines are; ``local`` is a list of machines that are reached by ssh."""
    region: str | None = None
    """Region of a cloud."""
    zone: str | None = None
    """Zone within it."""
    project: str | None = None
    """Project of Google's cloud."""
    head_ip: str | None = None
    """Address of the head, for ``local``."""
    worker_ips: tuple[str, ...] = ()
    """Addresses of the workers, for ``local``."""
    ssh_user: str = "ubuntu"
    """User on the machines."""
    ssh_private_key: str | None = None
    """Path of the key on the machine that runs `ray up`; the key itself is nowhere in the file."""
    image: str | None = None
    """Container image that holds ProxyGap; without it, it is installed on the machines."""
    machine_image: str | None = None
    """Image that a cloud's machines boot from: an AMI, or a path of Google's. Default: the launcher's own."""
    disk_gib: PositiveInt = 100
    """Disk of one machine of a cloud."""


class KubeRay(Settings):
    """The Kubernetes operator for Ray: a RayCluster to submit to, and a RayJob that brings its own."""

    kind: Literal["kuberay"] = "kuberay"
    image: str
    """Container image that holds ProxyGap."""
    namespace: Name = "proxygap"
    """Kubernetes namespace."""
    fault_tolerant: bool = False
    """Keep the head's state in Redis, so that a new head finds its workers; a running job ends with its head all the
    same, and is taken up again by the next attempt."""
    redis_address: str | None = None
    """``host:port`` of that Redis; its password is in the secret ``proxygap-redis``."""
    storage_claim: str | None = None
    """PersistentVolumeClaim mounted at ``folder`` on every node."""
    secrets: tuple[str, ...] = ()
    """Kubernetes secrets whose keys become environment variables of every node."""
    attempts: PositiveInt = 3
    """Attempts of a RayJob, each on a new cluster."""
    deadline_s: PositiveInt = 604_800
    """Longest life of a RayJob."""


class Slurm(Settings):
    """A batch job that brings its own Ray with `ray symmetric-run`."""

    kind: Literal["slurm"] = "slurm"
    partition: str | None = None
    """Partition; the site's default where it is left out."""
    account: str | None = None
    """Account that is charged."""
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d{1,2}(:\d{2}){0,2}$")
    """Longest time of the job, as SLURM writes it."""
    activate: str | None = None
    """File that is sourced on every node first: a virtual environment, modules."""
    warn_s: PositiveInt = 120
    """Seconds before the end at which SLURM sends SIGTERM, so that every run stops at a checkpoint."""
    requeue: bool = True
    """Let the job be queued again after preemption or a node's failure; it then continues."""
    port: PositiveInt = 6379
    """Port of the head."""


Maker = Annotated[RayStart | Launcher | KubeRay | Slurm, Field(discriminator="kind")]


class Cluster(Settings):
    """A cluster that experiments are submitted to."""

    name: Name
    """Name of the cluster."""
    address: str = "http://127.0.0.1:8265"
    """Where the Jobs API answers from here: a tunnel, a port-forward or an ingress with TLS."""
    token_file: str | None = None
    """File that holds Ray's token. Default: where Ray looks, ``RAY_AUTH_TOKEN``, ``RAY_AUTH_TOKEN_PATH``,
    ``~/.ray/auth_token``."""
    ca_file: str | None = None
    """Certificates that the certificate of ``address`` is checked against. Default: those that this machine trusts."""
    folder: str = Field(default="~/proxygap/runs", pattern=r"^(/|~/)[^\n\r\x00]*$")
    """Run folder on the head, absolute or below ``~``: ``record.folder`` of what is submitted."""
    storage: str | None = None
    """``record.storage`` of what is submitted: a URI that every node reaches."""
    tracking_uri: str | None = None
    """``record.tracking_uri`` of what is submitted, as seen from the cluster and without user or password."""
    code: Literal["ship", "installed"] = "ship"
    """Whether ProxyGap's own code travels with a job, or is the one that the nodes have installed. What it depends on
    is always the nodes'."""
    python: str = "python"
    """Python of the nodes, the one that Ray was installed for: a name on the ``PATH`` that Ray was started with, or a
    path."""
    shared_folders: tuple[str, ...] = ()
    """Folders that every node has under the same path, e.g. an NFS mount: datasets and models below them are named in
    a job, others are packed into it."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of every process of a job; no secrets, since whoever sees the job sees them."""
    forward: tuple[str, ...] = FORWARDED
    """Variables of the submitter's own environment that are passed on where they are set."""
    secrets: tuple[str, ...] = ()
    """Variables that the nodes must have by themselves, e.g. ``MLFLOW_TRACKING_TOKEN``: a job that misses one ends
    before it begins, and says which."""
    secrets_file: str | None = None
    """File on the nodes with lines ``NAME=value`` that a job reads into its environment; it never leaves the nodes."""
    stop_wait_s: PositiveInt = 120
    """Seconds that a job has to reach a checkpoint when it is stopped."""
    entrypoint_cpus: NonNegativeFloat = 0.0
    """CPUs reserved for the process that drives the job, on top of what the experiment reserves."""
    groups: dict[Name, NodeGroup] = Field(default_factory=dict)
    """What the cluster is made of; the group ``head`` is its head. Needed to make it, and, where nodes come and go, to
    know what it could hold."""
    made_by: Maker | None = None
    """The tool that makes it; without one it is there already."""

    @model_validator(mode="after")
    def _keeps_no_secrets(self) -> Self:
        for field, names in (("env", tuple(self.env)), ("forward", self.forward)):
            if found := next((name for name in names if SECRET.search(name)), None):
                raise ValueError(
                    f"{field}: {found} looks like a secret, and a job's description is no place for one; "
                    f"name it under secrets, and set it on the nodes"
                )
        uris = {field: getattr(self, field) or "" for field in ("address", "storage", "tracking_uri")}
        for field, uri in {**uris, **{f"env.{name}": value for name, value in self.env.items()}}.items():
            if tells_secret(uri):
                raise ValueError(f"{field}: has a password in it; remove it, and set it on the nodes (see secrets)")
        if not re.match(r"^https?://[^?#\s]+$", self.address):
            shown = self.address[:100]
            raise ValueError(f"address: {shown!r} is no address of a dashboard; write http://HOST:8265 or https://HOST")
        if self.made_by is not None and self.made_by.kind != "ray_start" and "head" not in self.groups:
            raise ValueError("groups: lacks the group head; add it")
        return self


class TrackerServer(Settings):
    """An MLflow server on PostgreSQL with an artifact store, for compose and for Kubernetes."""

    kind: Literal["mlflow"] = "mlflow"
    name: Name = "proxygap-mlflow"
    """Name of its services."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names by which it is reached; each is allowed with and without its port."""
    port: PositiveInt = 5000
    """Port that it listens on."""
    listen: str = "127.0.0.1"
    """Address of this machine that the port is published on."""
    artifacts: str = "s3://mlflow"
    """Artifact store that the server reads and writes for its clients."""
    s3_endpoint: str | None = "http://minio:9000"
    """Endpoint of an S3-compatible store; None for Amazon's."""
    image: str = "ghcr.io/mlflow/mlflow:v3.17.2-full"
    """Image of the server, with drivers for PostgreSQL and S3."""
    postgres_image: str = "postgres:17"
    """Image of the database."""
    store_image: str | None = "minio/minio:RELEASE.2025-09-07T16-13-09Z"
    """Image of the S3-compatible store; None where there is one already."""
    workers: PositiveInt = 4
    """Server processes."""
    namespace: Name = "proxygap"
    """Kubernetes namespace."""
    database_gib: PositiveInt = 20
    """Disk of the database, on Kubernetes."""
    store_gib: PositiveInt = 100
    """Disk of the S3-compatible store, on Kubernetes."""
