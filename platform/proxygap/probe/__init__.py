"""Measure objective and outcome; change nothing."""
