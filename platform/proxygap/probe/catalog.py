"""What can be measured, by name. Importing it loads nothing, so that experiments are checked against it at once."""

from __future__ import annotations

OUTCOMES_OF: dict[str, dict[str, str]] = {
    "control": {
        "return": "Mean undiscounted return of the evaluation episodes in the real environment.",
        "discounted_return": "Mean discounted return of the evaluation episodes in the real environment.",
        "episode_length": "Mean number of steps of the evaluation episodes in the real environment.",
    },
    "language": {
        "gold_reward": "Mean gold reward of the policy's answers, in standard deviations of the reference's answers.",
        "raw_gold_reward": "Mean gold reward of the policy's answers, in the task's own unit.",
        "win_rate": "Probability that the policy's answer has more gold than one of the reference (ties count half).",
    },
}
"""Per family of tasks: outcomes by name."""

FRONT_OUTCOMES: dict[str, str] = {
    "hypervolume": "Volume between the reference point and the vectors that the run's evaluations measured so far.",
    "expected_utility": "Mean, over even weights, of the best weighted sum among the vectors measured so far.",
    "igd_plus": "Mean shortfall of the vectors measured so far from the known front; lower is better.",
    "sparsity": "Mean squared gap between neighbors among the best vectors so far; 0 for one point, so no one's goal.",
}
"""Outcomes of all policies of a run together, for tasks of both families that pay several rewards apart."""

OUTCOMES: dict[str, str] = {name: line for outcomes in OUTCOMES_OF.values() for name, line in outcomes.items()}

_CRITIC = {"value_estimate": "Critics' estimate of the discounted return from the evaluation's start states."}

_PROXY = {
    "proxy_reward": "Mean judged reward of the policy's answers, without the KL penalty.",
    "proxy_member_mean": "Mean score of the members on the policy's answers.",
    "reward_accuracy": "Share of pairs of the reference's answers that the proxy orders as gold does.",
    "reward_accuracy_on_policy": "The same on pairs of the policy's own answers.",
    "benchmark/pairwise": "Share of benchmark items whose good answer scores above one bad answer.",
    "benchmark/ranked_first": "Share of benchmark items whose good answer scores above nine bad ones.",
}

_MODEL = {
    "held_out_log_likelihood": "Log-likelihood of held-out transitions under the model, nats per transition.",
    "on_policy_log_likelihood": "Log-likelihood of the newest evaluation episodes, which no model was fitted to.",
    "held_out_mse": "Squared error of the model on held-out transitions, in units of their variance.",
    "on_policy_mse": "The same on the newest evaluation episodes, which no model was fitted to.",
    "k_step_error": "Error of the longest open-loop prediction on the newest evaluation episodes.",
    "disagreement": "Spread of the members' mean predictions on the newest evaluation episodes.",
    "imagined_return": "Undiscounted return of the deterministic policy inside the model.",
    "expert_log_likelihood": "Log-likelihood of the transitions of the section expert, where there is one.",
    "expert_mse": "Squared error of the model on the transitions of the section expert, where there is one.",
}

OBJECTIVES: dict[str, dict[str, str]] = {
    "mbpo": {**_MODEL, **_CRITIC},
    "pets": {**_MODEL, "plan_return": "Return that the planner promises for its horizon from the evaluation's starts."},
    "sac": _CRITIC,
    "ppo": {
        **_CRITIC,
        "proxy_return": "Return of the evaluation episodes by the weights of the moment, for several rewards.",
    },
    "preference_control": {
        "proxy_return": "Return of the evaluation episodes by the learned reward.",
        "held_out_accuracy": "Share of held-out labels that the members predict.",
        **_CRITIC,
    },
    "language_rl": _PROXY,
    "best_of_n": _PROXY,
    "tilt": _PROXY,
    "model_population": {
        "held_out_log_likelihood": "Log-likelihood of held-out rows of the model's own data, nats per transition.",
        "held_out_mse": "Squared error of the model on held-out rows of its own data, in units of their variance.",
        "held_out_value_error": "The same in squared units of the return, by the value's gradient, where there is one.",
        **{
            f"{kind}_{score}": f"{line} data of kind {kind}, where the loop is given some to score models on."
            for kind in ("expert", "on_policy", "random", "grid", "file")
            for score, line in (
                ("log_likelihood", "Log-likelihood of"),
                ("mse", "Squared error of the model on"),
                ("value_error", "Squared error, weighted by the value's gradient, on"),
            )
        },
    },
    "adversarial_model": {
        "held_out_log_likelihood": "Mean over models: log-likelihood of rows that no fit and no search has seen.",
        "held_out_mse": "Mean over models: squared error on rows that no fit and no search has seen.",
    },
}
"""Per loop: objectives by name, the loop's own first."""
