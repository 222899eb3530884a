"""Cluster files: read, checked, and found where none is named. Loads neither torch nor Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from proxygap.base.errors import InvalidExperiment
from proxygap.submit.settings import Cluster, TrackerServer
from proxygap.yaml_file import check_values, explain, read_yaml

VARIABLE: Final = "PROXYGAP_CLUSTER"
"""Names the cluster file of commands that are given none."""
FALLBACK: Final = Path("clusters/laptop.yaml")


def load_cluster(path: str | Path | None = None) -> Cluster:
    """Read and validate the file of a cluster.

    Args:
        path: the file; default: what ``PROXYGAP_CLUSTER`` names, or else ``clusters/laptop.yaml``.

    Raises:
        InvalidExperiment: naming field, value and remedy; or there is no such file.
    """
    found = load_cluster_file(_default() if path is None else path)
    if isinstance(found, TrackerServer):
        remedy = "Give a file with an address; `proxygap cluster render` is for this one"
        raise InvalidExperiment("is an MLflow server, and no cluster", field=str(path), remedy=remedy)
    return found


def load_cluster_file(path: str | Path) -> Cluster | TrackerServer:
    """Read and validate any file of ``clusters/``: a cluster, or a tracking server (``kind: mlflow``).

    Raises:
        InvalidExperiment: naming field, value and remedy; or there is no such file.
    """
    if not Path(path).is_file():
        remedy = "`ls clusters` shows those that ship; copy one and change its address"
        raise InvalidExperiment("no such cluster file", field=str(path), remedy=remedy)
    tree = read_yaml(Path(path))
    check_values(tree)
    root: type[Cluster | TrackerServer] = TrackerServer if tree.get("kind") == "mlflow" else Cluster
    try:
        return root.model_validate(_with_tuples(tree))
    except ValidationError as error:
        raise explain(error, root) from None


def _default() -> Path:
    if named := os.environ.get(VARIABLE):
        return Path(named)
    if FALLBACK.is_file():
        return FALLBACK
    remedy = f"Give --cluster clusters/NAME.yaml, or set {VARIABLE}"
    raise InvalidExperiment("says where to submit, and none was named", field="--cluster", remedy=remedy)


def _with_tuples(tree: Any) -> Any:
    """YAML has lists only, and strict tuples refuse them."""
    if isinstance(tree, dict):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(_with_tuples(item) for item in tree) if isinstance(tree, list) else tree
