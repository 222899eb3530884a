"""Files for Ray's cluster launcher (``ray up``): machines of one's own, Amazon's, Google's.

Ports stay closed: the dashboard, and with it the Jobs API, listens on the head's loopback, and `ray dashboard` tunnels
to it over ssh. The token is copied from the machine that runs `ray up` to every node, over ssh.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.render.documents import yaml_documents
from proxygap.submit.render.nodes import (
    HEAD,
    SAFE,
    checked,
    command,
    custom_resources,
    exports,
    image_of,
    ray_options,
    word,
    workers,
)
from proxygap.submit.settings import Cluster, Launcher, NodeGroup

TOKEN = "~/.ray/auth_token"  # noqa: S105
"""Where Ray looks for the token on every node."""
SOURCE = "~/proxygap/source"
"""Where the project goes on machines that have no image."""
IDLE_MINUTES = 10
_PORT = 6379
_SENT = ("LICENSE", "Makefile", "README.md", "platform", "pyproject.toml", "requirements.lock")
"""What an installation needs, from where `ray up` runs; the launcher reads all of it again each time."""
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def render_launcher(cluster: Cluster, made_by: Launcher, header: str) -> dict[str, str]:
    """``launcher.yaml``: what ``ray up`` reads.

    Raises:
        InvalidExperiment: for what the provider needs and the file lacks.
    """
    checked(cluster)
    for field in ("ssh_user", "ssh_private_key"):
        word(getattr(made_by, field) or "", f"made_by.{field}")
    document = {
        "cluster_name": cluster.name,
        "max_workers": sum(group.most for group in workers(cluster).values()),
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": _provider(cluster, made_by),
        "auth": {"ssh_user": made_by.ssh_user, "ssh_private_key": made_by.ssh_private_key},
        "docker": _docker(made_by),
        **_node_types(cluster, made_by),
        "file_mounts": _file_mounts(cluster, made_by),
        "rsync_exclude": ["__pycache__", "*.egg-info"],
        "initialization_commands": [],
        "setup_commands": _setup(made_by),
        "head_setup_commands": _head_setup(made_by),
        "worker_setup_commands": [],
        "head_start_ray_commands": _start(cluster, made_by, head=True),
        "worker_start_ray_commands": _start(cluster, made_by, head=False),
    }
    return {"launcher.yaml": yaml_documents(header, document)}


def _provider(cluster: Cluster, made_by: Launcher) -> Mapping[str, Any]:
    if made_by.provider == "local":
        head = _need(made_by, "head_ip")
        return {"type": "local", "head_ip": head, "worker_ips": list(_worker_ips(cluster, made_by))}
    for name, group in cluster.groups.items():
        if group.machine is None:
            remedy = "Name the provider's type of machine, e.g. g6.2xlarge"
            raise InvalidExperiment("is missing", field=f"groups.{name}.machine", remedy=remedy)
    region = _need(made_by, "region")
    common = {"type": made_by.provider, "region": region, "availability_zone": made_by.zone}
    if made_by.provider == "aws":
        return {**common, "cache_stopped_nodes": False}
    return {**common, "availability_zone": _need(made_by, "zone"), "project_id": _need(made_by, "project")}


def _need(made_by: Launcher, field: str) -> str:
    value = getattr(made_by, field)
    if value is None:
        remedy = f"Provider {made_by.provider!r} needs it"
        raise InvalidExperiment("is missing", field=f"made_by.{field}", remedy=remedy)
    word(value, f"made_by.{field}")
    return str(value)


def _worker_ips(cluster: Cluster, made_by: Launcher) -> tuple[str, ...]:
    """Addresses of the workers, checked against the groups that they are dealt to in order."""
    for address in (made_by.head_ip or "", *made_by.worker_ips):
        if not _is_host(address):
            remedy = "Write one per machine"
            raise InvalidExperiment(
                "is no address of a machine", field="made_by.worker_ips", value=address[:80], remedy=remedy
            )
    wanted = sum(group.least for group in workers(cluster).values())
    if any(group.least != group.most for group in workers(cluster).values()) or wanted != len(made_by.worker_ips):
        raise InvalidExperiment(
            f"lists {len(made_by.worker_ips)} machines, and the groups other than head have {wanted}",
            field="made_by.worker_ips",
            remedy="Give each group least = most = the number of its machines; they are dealt to the groups in order",
        )
    return made_by.worker_ips


def _is_host(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return _HOST.fullmatch(address) is not None
    return True


def _docker(made_by: Launcher) -> Mapping[str, Any] | None:
    if made_by.image is None:
        return None
    options = ["--init", "--ulimit nofile=65536:65536"]
    image = image_of(made_by.image, "made_by.image")
    return {"image": image, "container_name": "proxygap", "pull_before_run": True, "run_options": options}


def _node_types(cluster: Cluster, made_by: Launcher) -> Mapping[str, Any]:
    if made_by.provider == "local":
        return {}  # the launcher knows one type of node there; groups differ in how they are started
    config = _aws if made_by.provider == "aws" else _gcp
    types = {}
    for name, group in cluster.groups.items():
        whole = custom_resources(group, f"groups.{name}")
        counts = {} if name == HEAD else {"min_workers": group.least, "max_workers": group.most}
        resources = {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {}), **whole}
        types[name] = {**counts, "resources": resources, "labels": group.labels, "node_config": config(group, made_by)}
    return {"available_node_types": types, "head_node_type": HEAD}


def _aws(group: NodeGroup, made_by: Launcher) -> Mapping[str, Any]:
    """Arguments of EC2's ``create_instances``: an encrypted disk, and instance metadata only with a session token."""
    disk = {"VolumeSize": made_by.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    return {
        "InstanceType": group.machine,
        "ImageId": made_by.machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }


def _gcp(group: NodeGroup, made_by: Launcher) -> Mapping[str, Any]:
    """Body of Compute Engine's ``instances.insert``; machines with GPUs cannot migrate."""
    image = made_by.machine_image or "projects/deeplearning-platform-release/global/images/family/common-cpu"
    source = {"diskSizeGb": made_by.disk_gib, "sourceImage": image}
    disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": source}
    scheduling = [{"onHostMaintenance": "TERMINATE"}] if group.gpus else None
    return {"machineType": group.machine, "disks": [disk], "scheduling": scheduling}


def _file_mounts(cluster: Cluster, made_by: Launcher) -> Mapping[str, str]:
    token = {TOKEN: cluster.token_file or TOKEN}
    return token if made_by.image else {**token, **{f"{SOURCE}/{name}": name for name in _SENT}}


def _setup(made_by: Launcher) -> list[str]:
    guarded = f"chmod 600 {TOKEN}"
    if made_by.image:
        return [guarded]
    return [guarded, f"cd {SOURCE} && make .venv/installed PYTHON=python3.11"]


def _head_setup(made_by: Launcher) -> list[str]:
    """The head asks the cloud for machines itself, through a client that ProxyGap does not need."""
    package = {"local": None, "aws": None if made_by.image else "boto3", "gcp": "google-api-python-client>=2,<3"}
    if (wanted := package[made_by.provider]) is None:
        return []
    return ["; ".join([*_enter(made_by), f"python -m pip install --quiet {word(wanted, 'package')}"])]


def _enter(made_by: Launcher) -> list[str]:
    """What a shell needs before it finds ``ray`` and ``python``."""
    return [] if made_by.image else [f". {SOURCE}/.venv/bin/activate"]


def _start(cluster: Cluster, made_by: Launcher, *, head: bool) -> list[str]:
    """Commands that (re)start Ray on a node. They run in its shell, where ``~`` and ``$RAY_HEAD_IP`` are known."""
    enter = _enter(made_by)
    prepare = [*enter, *exports({**SAFE, "RAY_JOB_STOP_WAIT_TIME_S": str(cluster.stop_wait_s), **cluster.env})]
    local = made_by.provider == "local"
    if head:
        start = (
            f"ray start --head --port={_PORT} --object-manager-port=8076 --dashboard-host=127.0.0.1 "
            "--dashboard-port=8265 --autoscaling-config=~/ray_bootstrap_config.yaml"
        )
        options = f" {command(ray_options(cluster.groups[HEAD]))}" if local else ""
        return ["; ".join([*enter, "ray stop"]), "; ".join([*prepare, "ulimit -n 65536", start + options])]
    start = f"ray start --address=$RAY_HEAD_IP:{_PORT} --object-manager-port=8076"
    lines = [*prepare, "ulimit -n 65536"]
    if local and workers(cluster):
        lines.append(_options_by_machine(cluster, made_by))
        start += ' "${options[@]}"'
    return ["; ".join([*enter, "ray stop"]), "; ".join([*lines, start])]


def _options_by_machine(cluster: Cluster, made_by: Launcher) -> str:
    """Sets ``options`` by the address of the machine that it runs on: on premises, groups differ by nothing else."""
    addresses, cases = iter(made_by.worker_ips), []
    for group in workers(cluster).values():
        own = [next(addresses) for _ in range(group.least)]
        if own:
            patterns = "|".join(f'*" "{word(address, "made_by.worker_ips")}" "*' for address in own)
            cases.append(f"{patterns}) options=({command(ray_options(group))});;")
    known = 'options=(); case " $(hostname -I) $(hostname) $(hostname -f) " in '
    return known + " ".join(cases) + " esac"
