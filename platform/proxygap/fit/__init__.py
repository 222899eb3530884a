"""Models learn from data: dynamics ensembles now, reward models next to them."""
