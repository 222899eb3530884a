"""Nouns that every stage shares. This package imports nothing else of ProxyGap."""
