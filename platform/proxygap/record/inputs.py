"""Datasets that a run learned from, told by the journal's event ``dataset``, as MLflow's inputs of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxygap.base.config import canonical_json
from proxygap.record.tracker import shortened

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

EVENT = "dataset"
DIGEST_LENGTH, SOURCE_LENGTH = 36, 60_000


def dataset_input(detail: Mapping[str, Any]) -> DatasetInput:
    """Kind and task are its name, the content hash is its digest, all the rest its source."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    counts = {name: detail[name] for name in ("rows", "episodes")}
    told = {name: value for name, value in detail.items() if name not in ("section", *counts)}
    dataset = Dataset(
        name=f"{detail['kind']} data of {detail['task']}"[:500],
        digest=str(detail["content_hash"])[:DIGEST_LENGTH],
        source_type="proxygap",
        source=shortened(canonical_json(told), SOURCE_LENGTH),
        profile=canonical_json(counts),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", str(detail["section"]))])
