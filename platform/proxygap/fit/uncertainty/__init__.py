"""How wrong a dynamics model is, place by place: estimates that are learned or read off the ensemble."""
