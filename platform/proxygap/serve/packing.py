"""Settings and records on their way into a host: plain JSON-able data out, the same object back."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from proxygap.base.config import Settings, canonical_json
from proxygap.base.errors import HostFailed


def packed(settings: Settings) -> dict[str, Any]:
    """``{"home": "module:class", "fields": {...}}``: what `unpacked` builds the settings from, on any node."""
    kind = type(settings)
    return {"home": f"{kind.__module__}:{kind.__qualname__}", "fields": settings.model_dump(mode="json")}


def unpacked(data: Mapping[str, Any]) -> Settings:
    """The settings that were `packed`.

    Raises:
        HostFailed: their class cannot be imported here, or is not one of settings.
    """
    module, _, name = str(data["home"]).partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _no_settings(data["home"], str(error)) from error
    if not (isinstance(kind, type) and issubclass(kind, Settings)):
        raise _no_settings(data["home"], "it is not a class of settings")
    return kind.model_validate_json(canonical_json(data["fields"]))


def _no_settings(home: object, why: str) -> HostFailed:
    return HostFailed(
        f"the settings of the model cannot be built in the host ({why})",
        field="settings",
        value=home,
        remedy="install the package that defines them on every node, and define the class at the top of its module",
    )
