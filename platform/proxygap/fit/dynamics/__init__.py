"""Models of the next step: networks, losses, training, held-out scores."""
