"""Planners: a model and an objective become a sequence of actions."""
