"""Raise the judged reward: RLlib Learners and RLModules."""
