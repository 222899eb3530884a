"""Groups of nodes, as the tools that make clusters take them; what one of them could misread is refused here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.settings import Cluster, NodeGroup

HEAD = "head"
"""The group whose only node is the head."""
SAFE = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""Environment of every node, however it is made: a token is asked for, and nobody is told who runs what."""
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*/)?{_LABEL}")
_VALUE = re.compile(rf"({_LABEL})?")
_RESOURCE = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,62}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def word(value: object, field: str) -> str:
    """A value as one word of a shell script, whatever is in it.

    Raises:
        InvalidExperiment: for line breaks and other control characters, which have no business in a command.
    """
    text = str(value)
    if not text.isprintable():
        remedy = "Write it on one line of printable characters"
        raise InvalidExperiment("has control characters in it", field=field, value=text[:60], remedy=remedy)
    return shlex.quote(text)


def checked(cluster: Cluster) -> Cluster:
    """The cluster, if labels, resources and variables can be written down for any tool. Raises `InvalidExperiment`."""
    for name, group in cluster.groups.items():
        _check_labels(group, f"groups.{name}")
        _check_resources(group, f"groups.{name}")
    for name in cluster.env:
        if not _VARIABLE.fullmatch(name):
            remedy = "Use letters, digits and underscores"
            raise InvalidExperiment("is no name of a variable", field="env", value=name[:60], remedy=remedy)
        word(cluster.env[name], f"env.{name}")
    head = cluster.groups.get(HEAD)
    if head is not None and (head.least, head.most) != (1, 1):
        raise InvalidExperiment("must be one node", field=f"groups.{HEAD}", remedy="Leave out least and most there")
    return cluster


def custom_resources(group: NodeGroup, field: str) -> dict[str, int]:
    """Resources of one node beyond CPUs and GPUs, in whole numbers: the accelerator's type is one.

    Raises:
        InvalidExperiment: for fractions, which the launcher and KubeRay do not take.
    """
    found = _accelerator(group)
    for name, amount in group.resources.items():
        if amount != int(amount):
            remedy = "Count in smaller units, so that it is a whole number"
            raise InvalidExperiment("is a fraction", field=f"{field}.resources.{name}", value=amount, remedy=remedy)
        found[name] = int(amount)
    return found


def _accelerator(group: NodeGroup) -> dict[str, int]:
    """The resource by which Ray finds accelerators of a type; autoscalers have to be told of it."""
    return {f"accelerator_type:{group.accelerator_type}": 1} if group.accelerator_type else {}


def ray_options(group: NodeGroup) -> list[str]:
    """Options of ``ray start`` for a node of the group, not quoted."""
    options = [f"--num-cpus={group.cpus}", f"--num-gpus={group.gpus}"]
    resources = {**_accelerator(group), **group.resources}
    if resources:
        options.append(f"--resources={json.dumps(resources, sort_keys=True)}")
    if group.labels:
        options.append("--labels=" + ",".join(f"{key}={value}" for key, value in sorted(group.labels.items())))
    return options


def workers(cluster: Cluster) -> dict[str, NodeGroup]:
    """All groups but the head."""
    return {name: group for name, group in cluster.groups.items() if name != HEAD}


def image_of(name: str, field: str) -> str:
    """The name of a container image. Raises `InvalidExperiment` for what no registry could take."""
    if not _IMAGE.fullmatch(name):
        raise InvalidExperiment("is no name of an image", field=field, value=name[:80], remedy="Write host/name:tag")
    return name


def path_word(path: str, field: str) -> str:
    """A path as one word of a shell script; ``~/`` at its beginning is the home of whoever runs the script."""
    if path.startswith("~/"):
        return f'"$HOME"/{word(path[2:], field)}'
    return word(path, field)


def exports(variables: Mapping[str, str]) -> list[str]:
    """Lines of a script that set variables."""
    return [f"export {name}={word(value, name)}" for name, value in variables.items()]


def command(words: Iterable[str], field: str = "command") -> str:
    """Words as one command line of a shell, each quoted."""
    return " ".join(word(one, field) for one in words)


def _check_labels(group: NodeGroup, field: str) -> None:
    for key, value in group.labels.items():
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value) or key.startswith("ray.io/"):
            remedy = "Use letters, digits, dash, dot and underscore, at most 63; keys of ray.io are Ray's own"
            raise InvalidExperiment("is no label", field=f"{field}.labels", value=f"{key}={value}"[:80], remedy=remedy)


def _check_resources(group: NodeGroup, field: str) -> None:
    for name in (*group.resources, *_accelerator(group)):
        if not _RESOURCE.fullmatch(name):
            remedy = "Use letters, digits, dash, dot, colon and underscore, at most 63"
            raise InvalidExperiment("is no name of a resource", field=field, value=name[:80], remedy=remedy)
