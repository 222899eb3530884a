"""Preference labels in: simulated annotators, and datasets of labeled pairs."""
