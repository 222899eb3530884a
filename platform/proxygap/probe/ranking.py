"""Does a policy rank answers as it was taught to? Ranking accuracy, its ideal, and when a preference loss flips a pair.

Source: Chen et al. 2024, "Preference learning algorithms do not learn preference rankings" (numbered statements were
not checked against the paper; the closed forms are derived here and tested on tables).

Shape legend: N pairs of a chosen and a rejected answer to the same prompt.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from proxygap.base.language import Float64
from proxygap.base.measurement import Direction, Measurement, Side


def ranking_accuracy(chosen_log_prob_N: Float64, rejected_log_prob_N: Float64) -> float:
    """Share of pairs with pi(chosen) >= pi(rejected), from log-probabilities of whole answers, nats."""
    return float((chosen_log_prob_N >= rejected_log_prob_N).mean())


def normalized_ranking_accuracy(
    chosen_log_prob_N: Float64,
    rejected_log_prob_N: Float64,
    chosen_length_N: NDArray[np.int64],
    rejected_length_N: NDArray[np.int64],
) -> float:
    """Ranking accuracy of log-probabilities per token: without it, long answers rank low for their length alone."""
    return ranking_accuracy(chosen_log_prob_N / chosen_length_N, rejected_log_prob_N / rejected_length_N)


def ideal_log_ratio(
    chosen_reference_N: Float64, rejected_reference_N: Float64, proportion_N: Float64, beta: float
) -> Float64:
    """Log pi*(chosen) - log pi*(rejected) at the exact optimum of the KL-regularized objective.

    pi*(w) / pi*(l) = pi_ref(w) / pi_ref(l) * (a / (1 - a))^(1 / beta), because the optimum's reward gap is the logit of
    the label proportion under Bradley-Terry.

    Args:
        chosen_reference_N: log-probability under the reference.
        rejected_reference_N: likewise.
        proportion_N: a, the share of annotators who prefer chosen; 1 makes every ideal rank right.
        beta: weight of the KL penalty, above 0.
    """
    return chosen_reference_N - rejected_reference_N + special.logit(proportion_N) / beta


def idealized_ranking_accuracy(
    chosen_reference_N: Float64, rejected_reference_N: Float64, proportion_N: Float64, beta: float
) -> float:
    """Ranking accuracy of the exact optimum: what perfect optimization could reach (`ideal_log_ratio`)."""
    return float((ideal_log_ratio(chosen_reference_N, rejected_reference_N, proportion_N, beta) >= 0).mean())


def difficulty(chosen_reference_N: Float64, rejected_reference_N: Float64) -> Float64:
    """Per pair c = log pi_ref(rejected) - log pi_ref(chosen), nats: above 0, the reference ranks the pair wrong."""
    return rejected_reference_N - chosen_reference_N


def flip_threshold(chosen_reference_N: Float64, rejected_reference_N: Float64, beta: float) -> Float64:
    """The DPO loss at or below which a pair is ranked right: -log sigmoid(beta c), c the `difficulty`.

    With h the log-ratio gap to the reference, loss = -log sigmoid(beta h), and log pi(w) - log pi(l) = h - c; both
    sides of "h >= c" go through the same falling function.
    """
    return -special.log_expit(beta * difficulty(chosen_reference_N, rejected_reference_N))


def dpo_loss(
    chosen_log_prob_N: Float64,
    rejected_log_prob_N: Float64,
    chosen_reference_N: Float64,
    rejected_reference_N: Float64,
    beta: float,
) -> Float64:
    """DPO's loss of each pair, nats (Rafailov et al. 2023, Eq. 7), for the rule of `flip_threshold`."""
    gap_N = (chosen_log_prob_N - chosen_reference_N) - (rejected_log_prob_N - rejected_reference_N)
    return -special.log_expit(beta * gap_N)


def ranking_measurements(
    chosen_log_prob_N: Float64,
    rejected_log_prob_N: Float64,
    chosen_reference_N: Float64,
    rejected_reference_N: Float64,
    *,
    proportion_N: Float64 | float,
    beta: float,
) -> tuple[Measurement, ...]:
    """``model/ranking_accuracy``, ``_reference``, ``_idealized``, and ``gap/alignment_gap`` (idealized minus reached).

    Also ``model/ranking_flipped``: of the pairs that the reference ranks wrong, the share that the policy ranks right.
    Nothing for no pairs. ``proportion_N`` and ``beta`` as in `ideal_log_ratio`.
    """
    if len(chosen_log_prob_N) == 0:
        return ()
    reached = ranking_accuracy(chosen_log_prob_N, rejected_log_prob_N)
    proportions_N = np.broadcast_to(np.asarray(proportion_N, np.float64), chosen_log_prob_N.shape)
    ideal = idealized_ranking_accuracy(chosen_reference_N, rejected_reference_N, proportions_N, beta)
    wrong_N = chosen_reference_N < rejected_reference_N
    found = {
        "ranking_accuracy": reached,
        "ranking_accuracy_reference": ranking_accuracy(chosen_reference_N, rejected_reference_N),
        "ranking_accuracy_idealized": ideal,
    }
    measured = [Measurement(name, value, Side.MODEL, "", Direction.HIGHER) for name, value in found.items()]
    if wrong_N.any():
        flipped = float((chosen_log_prob_N >= rejected_log_prob_N)[wrong_N].mean())
        measured.append(Measurement("ranking_flipped", flipped, Side.MODEL, "", Direction.HIGHER))
    return (*measured, Measurement("alignment_gap", ideal - reached, Side.GAP, "", Direction.LOWER))
