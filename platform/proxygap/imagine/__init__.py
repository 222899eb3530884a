"""Roll a fitted model forward."""
