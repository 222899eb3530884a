"""What can be measured, by name. Importing it loads nothing, so that experiments are checked against it at once."""

from __future__ import annotations

OUTCOMES: dict[str, str] = {
    "return": "Mean undiscounted return of the evaluation episodes in the real environment.",
    "discounted_return": "Mean discounted return of the evaluation episodes in the real environment.",
    "episode_length": "Mean number of steps of the evaluation episodes in the real environment.",
}

_CRITIC = {"value_estimate": "Critics' estimate of the discounted return from the evaluation's start states."}

OBJECTIVES: dict[str, dict[str, str]] = {
    "mbpo": {
        "held_out_log_likelihood": "Log-likelihood of held-out transitions under the model, nats per transition.",
        "on_policy_log_likelihood": "Log-likelihood of the newest evaluation episodes, which no model was fitted to.",
        "held_out_mse": "Squared error of the model on held-out transitions, in units of their variance.",
        "on_policy_mse": "The same on the newest evaluation episodes, which no model was fitted to.",
        "k_step_error": "Error of the longest open-loop prediction on the newest evaluation episodes.",
        "disagreement": "Spread of the members' mean predictions on the newest evaluation episodes.",
        "imagined_return": "Undiscounted return of the deterministic policy inside the model.",
        **_CRITIC,
    },
    "sac": _CRITIC,
}
"""Per loop: objectives by name, the loop's own first."""
