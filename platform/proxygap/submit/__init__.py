"""Ray Jobs, and the files that clusters are made from."""
