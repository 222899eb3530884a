"""Where a dataset came from: which policy on which task, by which seed, and the hash of what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from proxygap.base.config import canonical_json
from proxygap.base.errors import InvalidDataset
from proxygap.base.records import Transitions


@dataclass(frozen=True, slots=True)
class Lineage:
    """The origin of the rows of a dataset.

    Args:
        kind: how they were gathered, as in the registry.
        task: name of the task.
        task_hash: SHA-256 (hex) of the task's settings.
        policy: who acted, as JSON-able data: ``kind``, and what identifies it (a planner's settings; run key and real
            steps of a teacher).
        seed: everything random about them derives from it.
        rows: how many there are.
        episodes: how many episodes they are of.
        content_hash: `Transitions.content_hash`.
        key: SHA-256 (hex) of all that decided the rows: equal keys, equal rows.
    """

    kind: str
    task: str
    task_hash: str
    policy: dict[str, Any]
    seed: int
    rows: int
    episodes: int
    content_hash: str
    key: str

    @staticmethod
    def of(
        transitions: Transitions,
        *,
        kind: str,
        task: str,
        task_hash: str,
        policy: Mapping[str, Any],
        seed: int,
        key: str,
    ) -> Lineage:
        """The lineage of these rows."""
        episodes = len(np.unique(transitions.episode_B))
        return Lineage(
            kind, task, task_hash, dict(policy), seed, len(transitions), episodes, transitions.content_hash, key
        )

    def told(self) -> dict[str, Any]:
        """As JSON-able data, for a journal."""
        return asdict(self)

    def provenance(self) -> dict[str, str]:
        """As a file of episodes keeps it."""
        return {name: value if isinstance(value, str) else canonical_json(value) for name, value in self.told().items()}

    @staticmethod
    def read(provenance: Mapping[str, str], transitions: Transitions, source: str) -> Lineage:
        """What `provenance` of a file says about its rows.

        Raises:
            InvalidDataset: it says nothing, or something else than what the rows are.
        """
        missing = [field.name for field in fields(Lineage) if field.name not in provenance]
        if missing:
            raise _refusal(source, f"tells nothing of its {missing[0]}: it is no dataset of ProxyGap's")
        plain = {name: provenance[name] for name in ("kind", "task", "task_hash", "content_hash", "key")}
        try:
            policy = dict(json.loads(provenance["policy"]))
            seed, rows, episodes = (int(provenance[name]) for name in ("seed", "rows", "episodes"))
        except (ValueError, TypeError) as error:
            raise _refusal(source, f"has a lineage that cannot be read: {error}") from error
        found = Lineage(policy=policy, seed=seed, rows=rows, episodes=episodes, **plain)
        if (found.rows, found.content_hash) != (len(transitions), transitions.content_hash):
            raise _refusal(source, "has the lineage of other rows")
        return found


def _refusal(source: str, problem: str) -> InvalidDataset:
    return InvalidDataset(problem, field=source, remedy="Build it with `proxygap data build`")
