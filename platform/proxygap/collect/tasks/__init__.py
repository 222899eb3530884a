"""Tasks: something to be good at, with the laws of the environment that its observation determines."""
