"""Schemas of the tools that read rendered files, made strict: a field that a tool does not know is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def parsed(text: str) -> list[dict[str, Any]]:
    """All documents of a YAML text, by a parser of YAML 1.1: what Ray, compose and Kubernetes take it for."""
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


@functools.cache
def custom_resource(kind: str) -> jsonschema.Draft202012Validator:
    """A validator of KubeRay's CRD ``ray.io/v1`` for RayCluster or RayJob; skips where the CRDs are not at hand."""
    path = DATA / f"ray.io_{kind.lower()}s.yaml"
    if not path.is_file():
        pytest.skip(f"KubeRay's CRDs are not here: no {path.name} in shared/data beside the repository")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    assert definition["spec"]["names"]["kind"] == kind
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


@functools.cache
def pod_template() -> jsonschema.Draft202012Validator:
    """A validator of Kubernetes' pod templates, which the CRDs repeat in full."""
    spec = custom_resource("RayCluster").schema["properties"]["spec"]["properties"]
    return jsonschema.Draft202012Validator(spec["headGroupSpec"]["properties"]["template"])


@functools.cache
def compose() -> jsonschema.Draft7Validator:
    """A validator of compose files; skips where the schema is not at hand."""
    path = DATA / "compose-spec.json"
    if not path.is_file():
        pytest.skip(
            "the schema of compose files is not here: no compose-spec.json in shared/data beside the repository"
        )
    return jsonschema.Draft7Validator(yaml.load(path.read_text(), Loader=yaml.CSafeLoader))


def problems(validator: Any, document: Any) -> list[str]:
    """What is wrong with a document, each with its place; empty where it is valid."""
    return [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(document)
    ]


def _strict(node: Any) -> Any:
    """A structural schema whose objects have the properties that it names, and no others."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "type" in node and "additionalProperties" not in node:
        strict["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    return strict
