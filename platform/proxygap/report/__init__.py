"""Measurements in, tables and figures out."""
