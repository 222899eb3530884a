"""Best-of-n: the estimator against enumeration, the distribution against its definition, the KL against the report."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from proxygap.base.errors import InvalidExperiment
from proxygap.optimize.best_of_n import (
    best_of_n_distribution,
    best_of_n_estimates,
    best_of_n_kl,
    best_of_n_weights,
    kl_from_reference,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def enumerated(proxy: np.ndarray, value: np.ndarray, n: int) -> float:
    """The mean over all subsets of size n of the value of the best; ties share."""
    found = []
    for subset in itertools.combinations(range(len(proxy)), n):
        chosen = [i for i in subset if proxy[i] == proxy[list(subset)].max()]
        found.append(value[chosen].mean())
    return float(np.mean(found))


def test_estimates_equal_enumeration() -> None:
    proxy, value = rng().standard_normal((4, 9)), rng(1).standard_normal((4, 9))
    estimates = best_of_n_estimates(proxy, value, range(1, 10))
    for n, prompt in itertools.product(range(1, 10), range(4)):
        assert estimates[n - 1, prompt] == pytest.approx(enumerated(proxy[prompt], value[prompt], n), abs=1e-12)


def test_tied_samples_are_chosen_alike_often() -> None:
    proxy, value = rng().integers(0, 3, (6, 9)).astype(float), rng(1).standard_normal((6, 9))
    for n, row in itertools.product((1, 3, 5, 9), range(6)):
        expected = enumerated(proxy[row], value[row], n)
        assert best_of_n_estimates(proxy, value, [n])[0, row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("samples", [5, 60, 2000])
def test_weights_equal_exact_binomials(samples: int) -> None:
    n_values = [n for n in (1, 2, 5, 60, 777, 2000) if n <= samples]
    for n, weight in zip(n_values, best_of_n_weights(samples, n_values), strict=True):
        exact = [math.comb(i - 1, n - 1) / math.comb(samples, n) for i in (1, n, (n + samples) // 2, samples)]
        np.testing.assert_allclose(weight[[0, n - 1, (n + samples) // 2 - 1, samples - 1]], exact, rtol=1e-11, atol=0)
        assert (weight[: n - 1] == 0).all()


def test_weights_of_a_large_pool_sum_to_one() -> None:
    assert best_of_n_weights(100_000, [1, 64, 10_000, 100_000]).sum(axis=1) == pytest.approx(1.0, abs=1e-12)


def test_estimates_are_unbiased() -> None:
    reference = np.full(6, 1 / 6)
    proxy = gold = np.array([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])
    pools = rng(3).integers(0, 6, (40_000, 12))
    exact = best_of_n_distribution(np.log(reference)[None], proxy[None], [4])[0, 0] @ gold
    estimates = best_of_n_estimates(proxy[pools], gold[pools], [4])[0]
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(len(estimates))


def test_uniform_reference_gives_differences_of_powers_of_ranks() -> None:
    proxy = rng().permutation(50).astype(float)
    upper = (proxy + 1) / 50
    for n in (1, 3, 64):
        found = best_of_n_distribution(np.full((1, 50), -math.log(50)), proxy[None], [n])[0, 0]
        np.testing.assert_allclose(found, upper**n - (upper - 1 / 50) ** n, rtol=1e-10, atol=1e-300)


def test_distribution_equals_its_definition_with_ties_and_any_reference() -> None:
    reference = rng().dirichlet(np.ones(5), size=3)
    proxy = np.array([[2.0, 1.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    found = best_of_n_distribution(np.log(reference), proxy, [3])[0]
    for row in range(3):
        expected = np.zeros(5)
        for drawn in itertools.product(range(5), repeat=3):
            best = [i for i in drawn if proxy[row, i] == proxy[row, list(drawn)].max()]
            for i in best:
                expected[i] += reference[row, list(drawn)].prod() / len(best)
        np.testing.assert_allclose(found[row], expected, atol=1e-14)


def test_best_of_one_is_the_reference_and_sums_stay_one() -> None:
    reference = rng().dirichlet(np.full(1000, 0.02), size=4)  # many answers have almost no mass
    log_reference = np.log(np.maximum(reference, 1e-300))
    log_reference -= np.log(np.exp(log_reference).sum(axis=1, keepdims=True))
    proxy = rng(1).standard_normal((4, 1000))
    found = best_of_n_distribution(log_reference, proxy, [1, 16, 4096])
    np.testing.assert_allclose(found[0], np.exp(log_reference), rtol=1e-9, atol=1e-300)
    assert found.sum(axis=-1) == pytest.approx(1.0, abs=1e-12)


def test_impossible_answers_are_never_chosen() -> None:
    with np.errstate(divide="ignore"):
        log_reference = np.log(np.array([[0.0, 0.5, 0.5, 0.0]]))
    found = best_of_n_distribution(log_reference, np.array([[9.0, 1.0, 2.0, 0.0]]), [1, 4])
    np.testing.assert_allclose(found[:, 0], [[0, 0.5, 0.5, 0], [0, 1 / 16, 15 / 16, 0]], atol=1e-15)
    assert kl_from_reference(found, log_reference[None])[0, 0] == pytest.approx(0.0, abs=1e-15)


def test_kl_is_the_formula_for_many_answers_and_less_for_few() -> None:
    assert best_of_n_kl(64) == pytest.approx(3.1745, abs=1e-4)
    many, few = (np.full((1, size), -math.log(size)) for size in (4096, 8))
    kl_many = kl_from_reference(best_of_n_distribution(many, np.arange(4096.0)[None], [64])[0], many)
    kl_few = kl_from_reference(best_of_n_distribution(few, np.arange(8.0)[None], [64])[0], few)
    assert kl_many[0] == pytest.approx(3.1745, abs=1e-3)
    assert kl_few[0] == pytest.approx(2.078, abs=1e-3)
    assert kl_few[0] <= best_of_n_kl(64)


@pytest.mark.parametrize("n", [[0], [], [10]])
def test_an_n_that_the_pool_cannot_give_is_refused(n: list[int]) -> None:
    with pytest.raises(InvalidExperiment):
        best_of_n_estimates(np.zeros((1, 9)), np.zeros((1, 9)), n)
