"""Reward models: ensembles fitted to preferences, and given proxies whose errors are known."""
