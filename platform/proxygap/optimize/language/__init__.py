"""Optimize a language policy on rewards of whole answers: PPO, GRPO, RLOO and REINFORCE."""
