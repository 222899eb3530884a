"""Language models: a table, a small transformer of our own, any causal model of transformers, and pretraining."""
