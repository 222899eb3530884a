"""Ray actors around plain models: placement, batching, versions, health, restart. One mechanism for every model."""
