"""Keep every measurement: journal on disk first, MLflow second; checkpoints; provenance."""
