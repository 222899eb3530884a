"""Real experience made before a run: how it is gathered, cut down, described and kept."""
