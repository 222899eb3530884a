"""One readable file per loop: the RLlib Algorithm that composes the stages."""
