"""The base of every settings class: frozen, strict, unknown keys refused, hashed canonically."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen, strict set of options; the docstring under each field says what moving it does."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields, defaults included."""
        return canonical_hash(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """One text for one value: keys sorted, no spaces, floats as ``repr`` writes them, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def canonical_hash(value: Any) -> str:
    """SHA-256 (hex) of `canonical_json`; equal across processes, machines and key order."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
