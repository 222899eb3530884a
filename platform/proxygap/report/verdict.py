"""The answer in words, with its interval: the first line of a report.

Yes needs the whole interval of the pooled Spearman correlation above zero, no (the opposite) the whole interval below,
and either needs `FEWEST` pairs; all else is undecided, and the verdict says what would decide it. Where there is a
reference policy, the question is another: whether gold turns down along the distance from it. Where models were
attacked it is how much they lost, and for how much likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from proxygap.report.analysis import Analysis, Link, Loss, onset_step
from proxygap.report.records import Distance, IntervalLike

FEWEST = 8
"""Pairs below which no interval decides anything: a perfect order of few is too likely by chance."""
_WEAK = 0.3
_LABELS = {
    "held_out_log_likelihood": "held-out log-likelihood",
    "on_policy_log_likelihood": "on-policy log-likelihood",
    "held_out_mse": "held-out squared error",
    "on_policy_mse": "on-policy squared error",
    "k_step_error": "k-step error",
    "disagreement": "member disagreement",
    "value_estimate": "value estimate of the critics",
    "return": "return",
    "discounted_return": "discounted return",
}
_MODEL = {"held_out_log_likelihood", "on_policy_log_likelihood", "held_out_mse", "k_step_error"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer.

    Args:
        kind: yes, opposite, undecided or missing.
        sentence: one sentence with correlation, interval, seeds and evaluations.
        remarks: what limits it or would decide it, a sentence each.
    """

    kind: Literal["yes", "opposite", "undecided", "missing"]
    sentence: str
    remarks: tuple[str, ...]


def judge(analysis: Analysis) -> Verdict:
    """Say whether a better objective meant a better outcome, and how sure that is."""
    link, outcome = analysis.link, label(analysis.outcome)
    if analysis.input.distance is not None:
        return _turning(analysis, analysis.input.distance)
    if link is None:
        return Verdict("missing", _nothing(analysis), _remarks(analysis))
    if analysis.lost is not None:
        return _attacked(analysis, analysis.lost)
    it = link.pooled["spearman"]
    kind = _kind(it)
    evidence = f"Spearman {interval_text(it)} between {label(link.objective)} and {outcome} ({counts(link)})"
    sentence = {
        "yes": f"{subject(link)} went with a better {outcome} here: {evidence}.",
        "opposite": f"{subject(link)} went with a worse {outcome} here: {evidence}.",
        "undecided": f"This does not show whether {_lower(subject(link))} means a better {outcome}: {evidence}.",
        "missing": f"No verdict: there is no correlation of {label(link.objective)} and {outcome} ({it.reason}).",
    }[kind]
    deciding = _deciding(it) if kind == "undecided" else ()
    return Verdict(kind, sentence, (*deciding, *_remarks(analysis)))


def _turning(analysis: Analysis, distance: Distance) -> Verdict:
    """What further optimization of the proxy did to gold, along the distance from the reference."""
    knee, outcome = distance.knee, label(analysis.outcome)
    used = knee.proxy_rise.samples
    left_out = len(distance.aligned) - used
    remarks = list(_remarks(analysis))
    if left_out:
        remarks.append(f"{plural(left_out, 'seed')} with a non-finite number left out of the turning point.")
    if knee.found:
        rose = knee.proxy_rise.estimate > 0
        sentence = (
            f"Past {interval_text(knee.kl)} nats from the reference, optimizing the proxy further cost {outcome}: from "
            f"its peak to the end it fell by {interval_text(knee.drop)}, while the proxy "
            f"{'rose' if rose else 'changed'} by {interval_text(knee.proxy_rise)} ({plural(used, 'seed')})."
        )
        return Verdict("opposite", sentence, tuple(remarks))
    distances = [float(d) for curve in distance.curves.values() for d in curve.d_T if math.isfinite(d)]
    reach = f" up to {number_text(max(distances) ** 2)} nats from the reference" if distances else ""
    why = knee.reason if knee.reason.startswith("seeds: ") else f"{knee.reason}; {plural(used, 'seed')}"
    sentence = f"No turning point of {outcome} is shown{reach} ({why})."
    return Verdict("yes" if knee.rising else "undecided", sentence, tuple(remarks))


def _attacked(analysis: Analysis, lost: Loss) -> Verdict:
    """What attacked models lost: a correlation along the attack would only tell that it went on."""
    price = f"{interval_text(lost.likelihood)} nats of held-out log-likelihood ({plural(lost.returns.samples, 'seed')})"
    if lost.returns.known and lost.returns.low > 0:
        found = f"Attacked models lost {interval_text(lost.returns)} of return for {price}."
        return Verdict("opposite", found, _remarks(analysis))
    shown = f"It is not shown that attacked models lose return: {interval_text(lost.returns)}"
    return Verdict("undecided", f"{shown}, for {price}.", _remarks(analysis))


def label(name: str) -> str:
    """A name as it is read in a sentence."""
    return _LABELS.get(name, name.replace("_", " "))


def subject(link: Link) -> str:
    """What improved, at the start of a sentence."""
    if link.objective in _MODEL:
        return "A better dynamics model"
    return f"A {'lower' if link.lower_is_better else 'higher'} {label(link.objective)}"


def counts(link: Link) -> str:
    """Seeds and evaluations behind a link."""
    return f"{plural(len(link.pairs), 'seed')}, {plural(link.evaluations, 'evaluation')}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number_text(value: float) -> str:
    """A number as it is read: a real minus, enough digits; an en dash for one that does not exist."""
    if math.isnan(value):
        return "\u2013"
    size = abs(value)
    shown = f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}"
    if 0 < size < 0.01:
        shown = f"{value:.1g}"
    return shown.replace("-", "\u2212")


def interval_text(interval: IntervalLike) -> str:
    """``0.42 [0.11, 0.68]``; the estimate alone where there is no interval."""
    if not interval.known:
        return number_text(interval.estimate)
    return f"{number_text(interval.estimate)} [{number_text(interval.low)}, {number_text(interval.high)}]"


def correlation_text(it: IntervalLike) -> str:
    """As `interval_text`, but without the interval where there are too few pairs for it to mean anything."""
    if it.samples < FEWEST and not math.isnan(it.estimate):
        return f"{number_text(it.estimate)} (n = {it.samples}: too few)"
    return interval_text(it)


def _kind(it: IntervalLike) -> Literal["yes", "opposite", "undecided", "missing"]:
    if math.isnan(it.estimate):
        return "missing"
    if not it.known or it.samples < FEWEST or it.low <= 0 <= it.high:
        return "undecided"
    return "yes" if it.low > 0 else "opposite"


def _deciding(it: IntervalLike) -> tuple[str, ...]:
    """What would decide it: an interval shrinks with the root of the number of evaluations."""
    if not it.known:
        return ("The correlation has no interval; evaluate more often or run more seeds.",)
    if it.samples < FEWEST:
        return (f"A verdict needs at least {FEWEST} evaluations; evaluate more often or run longer.",)
    if max(abs(it.low), abs(it.high)) <= _WEAK:
        return (f"Any link is weak here: the interval lies within \u00b1{_WEAK}.",)
    reach = it.estimate - it.low if it.estimate > 0 else it.high - it.estimate
    factor = (reach / abs(it.estimate)) ** 2 if it.estimate else math.inf
    if factor > 50:
        return ("The estimate is so close to zero that more evaluations of this kind would hardly decide it.",)
    needed = math.ceil(factor * it.samples * 1.1)
    return (f"If the estimate holds, about {needed:,} evaluations instead of {it.samples} would decide it.",)


def _remarks(analysis: Analysis) -> tuple[str, ...]:
    records, link = analysis.input.seeds, analysis.link
    remarks = _turned_down(analysis)
    unfinished = [record for record in records if record.state != "finished"]
    if unfinished:
        states = ", ".join(f"seed {record.seed} {_state(record.state)}" for record in unfinished)
        remarks.append(f"{len(unfinished)} of {plural(len(records), 'seed')} did not finish ({states}).")
    if link is not None:
        if len(link.pairs) == 1:
            remarks.append("One seed says nothing about other seeds.")
        if dropped := link.pooled["spearman"].dropped:
            remarks.append(f"{plural(dropped, 'pair')} with a non-finite number left out.")
        if link.pooled["spearman"].reason and not math.isnan(link.pooled["spearman"].estimate):
            remarks.append(f"Caution: {link.pooled['spearman'].reason}.")
    return tuple(remarks)


def _turned_down(analysis: Analysis) -> list[str]:
    """A finding of its own: a correlation over a whole run is blind to a turn near its end."""
    found = [(seed, step) for seed in analysis.seeds if math.isfinite(step := onset_step(analysis.input, seed))]
    if not found or analysis.link is None:
        return []
    where = ", ".join(f"seed {seed} from step {step:,.0f}" for seed, step in found)
    who = f"In {len(found)} of {plural(len(analysis.link.pairs), 'seed')}"
    return [f"{who} the {label(analysis.outcome)} turned down while the objective still improved ({where})."]


def _state(state: str) -> str:
    return {"running": "is still running", "failed": "failed", "interrupted": "was interrupted"}.get(state, state)


def _nothing(analysis: Analysis) -> str:
    wanted = analysis.input.objective
    if analysis.input.measurements.empty:
        return "No verdict: nothing was measured."
    if wanted and wanted not in {link.objective for link in analysis.links}:
        return f"No verdict: the objective {label(wanted)} was never measured."
    if all(math.isnan(last) for last, _ in analysis.finals[0].per_seed.values()):
        return f"No verdict: the outcome {label(analysis.outcome)} was never measured."
    return f"No verdict: no objective was measured at the same steps as {label(analysis.outcome)}."


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]
