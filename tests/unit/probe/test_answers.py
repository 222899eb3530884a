from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from proxygap.base.errors import InvalidExperiment, NonFiniteValue
from proxygap.base.language import Answers, Continuation, Enumeration, Generation, ItemSpec
from proxygap.base.seeds import generator
from proxygap.probe.answer_measurements import (
    answer_outcomes,
    proxy_gap,
    proxy_objectives,
    style_measurements,
    win_rate,
)
from proxygap.probe.answers import AnswerSample
from proxygap.probe.evaluator import AnswerEvaluator, log_probs
from proxygap.probe.kl import k2, k3, kl_measurements, kl_to_optimum

PROMPTS, ARMS = 3, 6


def values(measurements):
    return {measurement.key: measurement.value for measurement in measurements}


@dataclass(frozen=True)
class TableTask:
    """One token answers each prompt; gold is a table."""

    gold_PK: np.ndarray
    vocabulary: int = ARMS
    end_token: int | None = None
    name: str = "table"

    @property
    def item_spec(self):
        return ItemSpec(vocabulary=self.vocabulary, prompt_length=1, max_tokens=1)

    def prompt_tokens(self):
        return np.arange(len(self.gold_PK), dtype=np.int64)[:, None]

    def gold(self, answers):
        return self.gold_PK[answers.prompt_B, answers.token_BT[:, 0]]

    def styles(self, answers):
        return {"length": answers.length_B.astype(np.float64), "even": (answers.token_BT[:, 0] % 2 == 0) * 1.0}

    def enumeration(self):
        # unlike the promise of a task, nobody reads these numbers here: the reference policy says what is likely
        return Enumeration(np.full(self.gold_PK.shape, -math.log(self.gold_PK.shape[1])), self.gold_PK)


class SequenceTask:
    """Up to three tokens of 0..3, 3 ends; gold counts ones, and prompt 1 pays double."""

    name, end_token = "sequence", 3
    item_spec = ItemSpec(vocabulary=4, prompt_length=1, max_tokens=3)

    def prompt_tokens(self):
        return np.array([[0], [1]], dtype=np.int64)

    def gold(self, answers):
        ones_B = ((answers.token_BT == 1) & answers.mask_BT).sum(axis=1)
        return ones_B * (1.0 + answers.prompt_B)

    def styles(self, answers):
        return {"length": answers.length_B.astype(np.float64)}

    def enumeration(self):
        return None


class TablePolicy(torch.nn.Module):
    """Tokens are independent given the prompt: logits_PV."""

    def __init__(self, logits_PV, end_token=None):
        super().__init__()
        self.logits_PV = torch.nn.Parameter(torch.tensor(logits_PV, dtype=torch.float64))
        self.end_token = end_token

    def continuation(self, prompt_BL, token_BT):
        logits_BTV = self.logits_PV[prompt_BL[:, 0]][:, None].expand(-1, token_BT.shape[1], -1)
        return Continuation(logits_BTV, logits_BTV[..., :1])

    def generate(self, prompt_BL, max_tokens, *, generator, temperature=1.0):
        log_prob_BV = self.logits_PV[prompt_BL[:, 0]].log_softmax(dim=-1)
        drawn = torch.multinomial(log_prob_BV.exp(), max_tokens, replacement=True, generator=generator)
        length = torch.full((len(drawn),), max_tokens)
        if self.end_token is not None:
            ended = torch.cat([drawn == self.end_token, torch.ones(len(drawn), 1, dtype=torch.bool)], dim=1)
            length = (ended.int().argmax(dim=1) + 1).clamp(max=max_tokens)
        mask = torch.arange(max_tokens) < length[:, None]
        width = int(length.max())  # a model may stop as soon as all answers of a batch have ended
        log_prob_BT = log_prob_BV.gather(1, drawn) * mask
        return Generation((drawn * mask)[:, :width], length, log_prob_BT[:, :width])


def table(seed=0):
    rng = generator(seed, "test/table")
    gold, reference, policy = rng.standard_normal((3, PROMPTS, ARMS))
    return TableTask(5 + 2 * gold), TablePolicy(reference), TablePolicy(1.5 * policy)


def softmax(logits):
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def probabilities(policy):
    return softmax(policy.logits_PV.detach().numpy())


def test_exact_evaluation_equals_the_sums_over_the_table():
    task, reference, policy = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    sample, pi, ref = evaluator.evaluate(policy), probabilities(policy), probabilities(reference)
    assert evaluator.exact
    mean = (ref * task.gold_PK).sum() / PROMPTS
    sd = math.sqrt((ref * (task.gold_PK - mean) ** 2).sum() / PROMPTS)
    assert evaluator.gold_unit == (pytest.approx(mean, abs=1e-12), pytest.approx(sd, abs=1e-12))
    np.testing.assert_allclose(sample.weight_B.reshape(PROMPTS, ARMS), pi / PROMPTS, atol=1e-12)
    assert sample.kl == pytest.approx((pi * np.log(pi / ref)).sum() / PROMPTS, abs=1e-12)
    found = values(answer_outcomes(["gold_reward", "raw_gold_reward"], sample, evaluator.reference_sample()))
    raw = (pi * task.gold_PK).sum() / PROMPTS
    assert found["outcome/raw_gold_reward"] == pytest.approx(raw, abs=1e-12)
    assert found["outcome/gold_reward"] == pytest.approx((raw - mean) / sd, abs=1e-12)
    spread = math.sqrt((pi * (task.gold_PK - raw) ** 2).sum() / PROMPTS)
    assert found["outcome/raw_gold_reward_std"] == pytest.approx(spread, abs=1e-12)


def test_the_reference_has_mean_0_deviation_1_no_distance_and_wins_half():
    task, reference, _ = table()
    sample = AnswerEvaluator(task, reference, seed=0).reference_sample()
    found = values(answer_outcomes(["gold_reward", "win_rate"], sample, sample))
    assert found["outcome/gold_reward"] == pytest.approx(0, abs=1e-12)
    assert found["outcome/gold_reward_std"] == pytest.approx(1, abs=1e-12)
    assert found["outcome/win_rate"] == pytest.approx(0.5, abs=1e-12)
    assert sample.kl == 0


def test_win_rate_counts_all_pairs_of_answers_to_the_same_prompt_and_ties_half():
    task, reference, policy = table()
    task = TableTask(np.round(task.gold_PK))  # many ties
    evaluator = AnswerEvaluator(task, reference, seed=0)
    pi, ref = probabilities(policy), probabilities(reference)
    slow = 0.0
    for prompt, ours, theirs in itertools.product(range(PROMPTS), range(ARMS), range(ARMS)):
        difference = task.gold_PK[prompt, ours] - task.gold_PK[prompt, theirs]
        slow += pi[prompt, ours] * ref[prompt, theirs] * (0.5 + 0.5 * np.sign(difference)) / PROMPTS
    assert win_rate(evaluator.evaluate(policy), evaluator.reference_sample()) == pytest.approx(slow, abs=1e-12)
    no_prompt_2 = evaluator.reference_sample().weighted(np.repeat([0.5, 0.5, 0.0], ARMS) / ARMS)
    with pytest.raises(ValueError, match="no answer to prompt 2"):
        win_rate(evaluator.evaluate(policy), no_prompt_2)


def test_another_distribution_over_the_table_is_the_policy_that_has_it():
    task, reference, policy = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    direct = evaluator.evaluate(policy)
    tilted = evaluator.reference_sample().weighted(direct.weight_B)
    assert tilted.kl == pytest.approx(direct.kl, abs=1e-12)
    np.testing.assert_allclose(tilted.log_prob_B, direct.log_prob_B, atol=1e-9)
    first = np.zeros(PROMPTS * ARMS)
    first[::ARMS] = 1 / PROMPTS
    point = evaluator.reference_sample().weighted(first)
    assert point.kl == pytest.approx(-np.log(probabilities(reference)[:, 0]).mean(), abs=1e-12)
    assert values(proxy_objectives(point, point.gold_B, point.gold_B[None]))["model/entropy"] == pytest.approx(0)
    with pytest.raises(ValueError, match="never occurs"):
        point.weighted(direct.weight_B)


def test_drawn_rows_come_by_weight():
    task, reference, policy = table()
    sample = AnswerEvaluator(task, reference, seed=0).evaluate(policy)
    share = np.bincount(sample.drawn(generator(0, "test/draws"), 100_000), minlength=len(sample)) / 100_000
    np.testing.assert_allclose(share, sample.weight_B, atol=0.006)


def test_weights_must_be_a_distribution():
    task, reference, _ = table()
    sample = AnswerEvaluator(task, reference, seed=0).reference_sample()
    for wrong_B in (2 * sample.weight_B, sample.weight_B - 1):
        with pytest.raises(ValueError, match="sum to 1"):
            sample.weighted(wrong_B, 0.0)


def sequence():
    reference = TablePolicy([[0.0, -1.0, 0.0, 0.5], [0.5, 0.0, 0.0, 0.0]], end_token=3)
    policy = TablePolicy([[0.0, 1.0, 0.0, 0.5], [0.0, 1.0, 0.0, -1.0]], end_token=3)
    return SequenceTask(), reference, policy


def every_answer(policy, prompt):
    """All answers with their probability, written out."""
    log_p = np.log(probabilities(policy)[prompt])
    for tokens in itertools.product(range(4), repeat=3):
        length = tokens.index(3) + 1 if 3 in tokens else 3
        if all(token == 0 for token in tokens[length:]):
            yield tokens, length, float(log_p[list(tokens[:length])].sum())


def sequence_truth(task, reference, policy):
    """KL, and mean raw gold under policy and reference, by enumeration."""
    kl = gold = 0.0
    for prompt in range(2):
        log_ratio = np.log(probabilities(policy)[prompt]) - np.log(probabilities(reference)[prompt])
        for tokens, length, log_p in every_answer(policy, prompt):
            answer = Answers(
                np.array([prompt]), np.array([tokens]), np.array([length]), np.zeros((1, 3), dtype=np.float32)
            )
            kl += math.exp(log_p) * log_ratio[list(tokens[:length])].sum() / 2
            gold += math.exp(log_p) * task.gold(answer)[0] / 2
    return kl, gold


def test_samples_estimate_what_enumeration_gives():
    task, reference, policy = sequence()
    evaluator = AnswerEvaluator(task, reference, seed=0, answers_per_prompt=4000)
    sample = evaluator.evaluate(policy)
    kl, gold = sequence_truth(task, reference, policy)
    error = lambda column: 4 * column.std() / math.sqrt(len(column))  # noqa: E731
    assert not evaluator.exact
    assert sample.kl_estimator == "k1"
    assert sample.kl == pytest.approx(kl, abs=error(sample.log_ratio_B))
    assert sample.raw_gold_B.mean() == pytest.approx(gold, abs=error(sample.raw_gold_B))
    found = values(kl_measurements(sample))
    assert found["model/kl_k1"] == sample.kl
    assert found["model/kl_k3"] == pytest.approx(kl, abs=error(k3(sample.log_ratio_B)))
    assert found["model/sqrt_kl"] == math.sqrt(sample.kl)
    entropy = -sum(math.exp(lp) * lp for p in range(2) for _, _, lp in every_answer(policy, p)) / 2
    measured = values(proxy_objectives(sample, sample.gold_B, sample.gold_B[None]))["model/entropy"]
    assert measured == pytest.approx(entropy, abs=error(sample.log_prob_B))


def test_every_evaluation_draws_the_same_random_numbers():
    task, reference, policy = sequence()
    evaluator = AnswerEvaluator(task, reference, seed=0, answers_per_prompt=20)
    first, _, again = (
        evaluator.evaluate(policy),
        evaluator.evaluate(reference),
        evaluator.evaluate(copy.deepcopy(policy)),
    )
    np.testing.assert_array_equal(first.answers.token_BT, again.answers.token_BT)
    np.testing.assert_array_equal(first.log_prob_B, again.log_prob_B)
    reference_again = evaluator.evaluate(reference)
    np.testing.assert_array_equal(reference_again.gold_B, evaluator.reference_sample().gold_B)
    assert reference_again.kl == pytest.approx(0, abs=1e-7)
    assert win_rate(reference_again, evaluator.reference_sample()) == pytest.approx(0.5)
    other = AnswerEvaluator(task, reference, seed=1, answers_per_prompt=20).evaluate(policy)
    assert (other.answers.token_BT != first.answers.token_BT).any()


def test_log_probs_of_given_answers_are_those_of_their_real_tokens():
    _, reference, _ = sequence()
    log_p = np.log(probabilities(reference))
    answers = Answers(
        np.array([0, 1, 1]),
        np.array([[1, 3, 2], [2, 2, 2], [3, 1, 1]]),
        np.array([2, 3, 1]),
        np.zeros((3, 3), dtype=np.float32),
    )
    expected = [log_p[0, 1] + log_p[0, 3], 3 * log_p[1, 2], log_p[1, 3]]
    np.testing.assert_allclose(log_probs(reference, np.array([[0], [1]]), answers), expected, atol=1e-12)


def test_a_selection_among_samples_needs_its_kl_given():
    task, reference, _ = sequence()
    sample = AnswerEvaluator(task, reference, seed=0, answers_per_prompt=8).reference_sample()
    chosen = np.where(np.arange(16) < 4, 0.25, 0.0)
    with pytest.raises(ValueError, match="give it"):
        sample.weighted(chosen)
    best = sample.weighted(chosen, math.log(4) - 0.75, "best_of_n")
    found = values(proxy_objectives(best, best.gold_B, best.gold_B[None]))
    assert found["model/kl_best_of_n"] == math.log(4) - 0.75
    assert "model/kl_k3" not in found
    assert "model/entropy" not in found
    assert found["objective/proxy_reward"] == pytest.approx(best.gold_B[:4].mean())


def test_k3_on_the_whole_table_is_the_kl():
    task, reference, policy = table()
    sample = AnswerEvaluator(task, reference, seed=0).evaluate(policy)
    found = values(kl_measurements(sample))
    assert found["model/kl_k3"] == pytest.approx(found["model/kl_exact"], abs=1e-12)
    np.testing.assert_allclose(k2(np.array([-2.0, 1.0])), [2.0, 0.5])


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_distance_to_the_optimum_is_what_the_regularized_objective_lacks(beta):
    task, reference, policy = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    sample = evaluator.evaluate(policy)
    reward_B = generator(1, "test/reward").standard_normal(len(sample))
    ref = probabilities(reference)
    z_P = (ref * np.exp(reward_B.reshape(PROMPTS, ARMS) / beta)).sum(axis=1)
    objective = sample.weight_B @ reward_B - beta * sample.kl
    lacking = kl_to_optimum(sample, reward_B, beta).value
    assert objective == pytest.approx(beta * np.log(z_P).mean() - beta * lacking, abs=1e-9)
    optimum_PK = ref * np.exp(reward_B.reshape(PROMPTS, ARMS) / beta) / z_P[:, None]
    at_optimum = evaluator.reference_sample().weighted(optimum_PK.ravel() / PROMPTS)
    assert kl_to_optimum(at_optimum, reward_B, beta).value == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="above 0"):
        kl_to_optimum(sample, reward_B, 0.0)


def test_proxy_measurements_equal_sums_over_the_table():
    task, reference, policy = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    sample, base = evaluator.evaluate(policy), evaluator.reference_sample()
    scores = generator(2, "test/scores").standard_normal((4, len(sample)))
    judged = scores.min(axis=0)
    found = values(proxy_objectives(sample, judged, scores))
    assert found["objective/proxy_reward"] == pytest.approx(sample.weight_B @ judged)
    assert found["objective/proxy_member_mean"] == pytest.approx(sample.weight_B @ scores.mean(axis=0))
    assert found["model/member_std"] == pytest.approx(sample.weight_B @ scores.std(axis=0, ddof=1))
    pi = probabilities(policy)
    assert found["model/entropy"] == pytest.approx(-(pi * np.log(pi)).sum() / PROMPTS)
    gap = values(proxy_gap(sample, judged, scores, base, judged, scores))
    mean = base.weight_B @ judged
    sd = math.sqrt(base.weight_B @ (judged - mean) ** 2)
    assert gap["gap/proxy_minus_gold"] == pytest.approx(
        (sample.weight_B @ judged - mean) / sd - sample.weight_B @ sample.gold_B
    )
    spread = base.weight_B @ scores.std(axis=0, ddof=1)
    assert gap["gap/member_std_ratio"] == pytest.approx(found["model/member_std"] / spread)


def test_gold_as_its_own_proxy_leaves_no_gap():
    task, reference, policy = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    sample, base = evaluator.evaluate(policy), evaluator.reference_sample()
    # another scale, and a constant per prompt, change nothing
    proxy = 3 * sample.raw_gold_B + 100 * sample.prompt_B
    gap = values(proxy_gap(sample, proxy, proxy[None], base, proxy, proxy[None]))
    for suffix in ("", "_reference"):
        assert gap[f"gap/proxy_gold_spearman{suffix}"] == pytest.approx(1)
        assert gap[f"gap/epic_distance{suffix}"] == pytest.approx(0, abs=1e-6)
    plain = values(
        proxy_gap(sample, sample.raw_gold_B, sample.raw_gold_B[None], base, base.raw_gold_B, base.gold_B[None])
    )
    assert plain["gap/proxy_minus_gold"] == pytest.approx(0, abs=1e-9)
    assert "gap/member_std_ratio" not in plain
    opposite = values(proxy_gap(sample, -proxy, -proxy[None], base, -proxy, -proxy[None]))
    assert opposite["gap/proxy_gold_spearman"] == pytest.approx(-1)
    assert opposite["gap/epic_distance"] == pytest.approx(1)


def test_styles_are_means_under_the_policy():
    task, reference, policy = table()
    sample = AnswerEvaluator(task, reference, seed=0).evaluate(policy)
    found = values(style_measurements(task, sample))
    assert found == {
        "model/style/length": pytest.approx(1.0),
        "model/style/even": pytest.approx(probabilities(policy)[:, ::2].sum() / PROMPTS),
    }


def test_nan_scores_name_the_member():
    task, reference, _ = table()
    sample = AnswerEvaluator(task, reference, seed=0).reference_sample()
    scores = np.zeros((3, len(sample)))
    scores[2, 4] = np.nan
    with pytest.raises(NonFiniteValue, match=r"member 2.*answer 4"):
        proxy_objectives(sample, np.zeros(len(sample)), scores)
    with pytest.raises(ValueError, match="17 values for 18 answers"):
        proxy_objectives(sample, np.zeros(17), np.zeros((1, 17)))


def test_bad_tasks_and_policies_are_refused():
    task, reference, policy = table()
    with pytest.raises(InvalidExperiment, match="same for every answer"):
        AnswerEvaluator(TableTask(np.ones((PROMPTS, ARMS))), reference, seed=0)
    holed = task.gold_PK.copy()
    holed[1, 2] = np.nan
    with pytest.raises(NonFiniteValue, match="answer 8"):
        AnswerEvaluator(TableTask(holed), reference, seed=0)
    evaluator = AnswerEvaluator(task, reference, seed=0)
    wide = TablePolicy(np.zeros((PROMPTS, ARMS + 2)))
    with pytest.raises(InvalidExperiment, match="none of the 6 answers"):
        evaluator.evaluate(wide)
    masked = np.zeros((PROMPTS, ARMS + 2))
    masked[:, ARMS:] = -np.inf
    assert evaluator.evaluate(TablePolicy(masked)).weight_B == pytest.approx(1 / (PROMPTS * ARMS))
    with torch.no_grad():
        policy.logits_PV[0, 0] = math.nan
    with pytest.raises(NonFiniteValue):
        evaluator.evaluate(policy)
    with pytest.raises(InvalidExperiment, match="gold_reward, raw_gold_reward, win_rate"):
        answer_outcomes(["gold"], evaluator.reference_sample(), evaluator.reference_sample())


def test_a_policy_that_excludes_answers_has_finite_numbers():
    task, reference, _ = table()
    evaluator = AnswerEvaluator(task, reference, seed=0)
    logits = np.full((PROMPTS, ARMS), -np.inf)
    logits[:, :2] = 0
    sample = evaluator.evaluate(TablePolicy(logits))
    found = values((*proxy_objectives(sample, sample.gold_B, sample.gold_B[None]), *kl_measurements(sample)))
    assert all(math.isfinite(value) for value in found.values())
    assert found["model/entropy"] == pytest.approx(math.log(2))
    assert isinstance(sample, AnswerSample)
