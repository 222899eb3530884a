"""Where measurements and checkpoints go. Nothing here changes a result, so nothing here is part of a run's identity."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from proxygap.base.config import Settings


class Record(Settings):
    """Run folder, MLflow, checkpoints."""

    folder: str = "runs"
    """Folder that holds one folder per experiment."""
    storage: str | None = None
    """Where a copy of every run is kept that all nodes reach: a URI of any pyarrow filesystem, e.g. ``s3://bucket/runs``
    or ``file:///nfs/runs``. Default: ``PROXYGAP_STORAGE``; without either, what writes records stays on one node."""
    tracking_uri: str | None = None
    """MLflow tracking URI. Default: ``MLFLOW_TRACKING_URI``, or else SQLite inside ``folder``."""
    tracking_experiment: str | None = Field(default=None, min_length=1, max_length=500)
    """MLflow experiment. Default: the experiment's name."""
    flush_s: PositiveFloat = 5.0
    """Seconds between two deliveries to MLflow; the journal is always written first."""
    checkpoint_every: PositiveInt = 1
    """Evaluations between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Newest checkpoints kept; two, so that one that turns out broken has a predecessor."""
