"""Proximal policy optimization for continuous actions: settings, networks, advantages, Learner."""
