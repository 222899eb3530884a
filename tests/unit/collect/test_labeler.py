"""Simulated annotators err as often, and in the direction, that their settings say."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from proxygap.base.errors import CheckpointRefused, InvalidExperiment, NonFiniteValue
from proxygap.base.language import Preferences
from proxygap.base.protocols import Stateful
from proxygap.collect.labels.settings import Labels

N = 40_000


def pairs(count=N, seed=0, steps=1):
    """Items that carry their own number, and their gold rewards."""
    rng = np.random.default_rng(seed)
    first = {"token": np.arange(count)[:, None], "feature": rng.standard_normal((count, 1, 2)).astype(np.float32)}
    second = {"token": np.arange(count)[:, None] + count, "feature": first["feature"] + 1}
    return first, second, rng.standard_normal((count, steps)), rng.standard_normal((count, steps))


def first_won(found):
    return found.chosen["token"][:, 0] < len(found)


def label(settings, *arguments, seed=0):
    return Labels.model_validate(settings).labeler(seed).label(*(arguments or pairs()))


def test_a_rational_annotator_is_always_right_and_moves_whole_items():
    first, second, first_gold_NH, second_gold_NH = pairs(500)
    found = label({"temperature": 0.0}, first, second, first_gold_NH, second_gold_NH)
    won_N = first_gold_NH[:, 0] > second_gold_NH[:, 0]
    assert np.array_equal(first_won(found), won_N)
    for row in (0, 1, 2, 3, 4):
        better, worse = (first, second) if won_N[row] else (second, first)
        for name in ("token", "feature"):
            assert np.array_equal(found.chosen[name][row], better[name][row])
            assert np.array_equal(found.rejected[name][row], worse[name][row])
    assert not found.tie_N.any()
    assert (found.strength_N == 1).all()
    assert np.isnan(found.chosen_rating_N).all()
    assert (found.annotator_N == 0).all()
    dtypes = [getattr(found, name).dtype for name in ("tie_N", "strength_N", "annotator_N", "chosen_rating_N")]
    assert dtypes == [np.bool_, np.float32, np.int64, np.float32]
    assert found.chosen["token"].dtype == np.int64
    assert found.chosen["feature"].dtype == np.float32


@pytest.mark.parametrize("flip", [0.0, 0.1, 0.25, 0.4])
def test_flips_happen_as_often_as_told(flip):
    _, _, first_gold_NH, second_gold_NH = pairs()
    wrong = (first_won(label({"temperature": 0.0, "flip": flip})) != (first_gold_NH > second_gold_NH)[:, 0]).mean()
    assert wrong == pytest.approx(flip, abs=4 * (flip * (1 - flip) / N) ** 0.5)  # four standard errors


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("flip", [0.0, 0.25])
def test_preferences_are_bradley_terry_at_the_temperature(temperature, flip):
    """In every band of the gap, the share of wins is (1 - f) p + f (1 - p) with p = sigmoid(gap / temperature)."""
    _, _, first_gold_NH, second_gold_NH = pairs()
    gap_N = (first_gold_NH - second_gold_NH)[:, 0]
    won_N = first_won(label({"temperature": temperature, "flip": flip}))
    right_N = 1 / (1 + np.exp(-gap_N / temperature))
    expected_N = (1 - flip) * right_N + flip * (1 - right_N)
    for band in np.array_split(np.argsort(gap_N), 8):
        error = np.sqrt((expected_N[band] * (1 - expected_N[band])).sum()) / len(band)
        assert won_N[band].mean() == pytest.approx(expected_N[band].mean(), abs=4.5 * error + 1e-12)


def test_equal_items_are_a_fair_coin_without_ties_and_a_tie_with_them():
    first, second, gold_NH, _ = pairs()
    for temperature in (0.0, 1.0):
        won = first_won(label({"temperature": temperature}, first, second, gold_NH, gold_NH)).mean()
        assert won == pytest.approx(0.5, abs=0.01)
    tied = label({"tie_threshold": 1e-9}, first, second, gold_NH, gold_NH)
    assert tied.tie_N.all()
    assert first_won(tied).all()  # in a tie the first is called chosen


def test_ties_are_the_pairs_below_the_threshold_whatever_the_noise():
    _, _, first_gold_NH, second_gold_NH = pairs()
    close_N = np.abs(first_gold_NH - second_gold_NH)[:, 0] < 0.5
    found = label({"tie_threshold": 0.5, "flip": 0.4, "temperature": 2.0})
    assert np.array_equal(found.tie_N, close_N)
    assert first_won(found)[close_N].all()
    assert 0.2 < close_N.mean() < 0.4


def test_a_bias_moves_preferences_toward_the_style_by_just_so_much():
    """A unit of style is worth ``bias`` units of gold: with equal gold, P(longer wins) = sigmoid(bias)."""
    first, second, gold_NH, _ = pairs()
    longer_N, shorter_N = np.full(N, 7.0), np.full(N, 6.0)
    for bias in (-1.0, 0.0, 0.5, 2.0):
        won = first_won(label({"bias": bias}, first, second, gold_NH, gold_NH, longer_N, shorter_N)).mean()
        assert won == pytest.approx(1 / (1 + np.exp(-bias)), abs=0.012)


def test_annotators_have_biases_of_their_own():
    labeler = Labels(annotators=500, bias=2.0, bias_spread=0.5).labeler(3)
    assert labeler.biases.mean() == pytest.approx(2.0, abs=0.1)
    assert labeler.biases.std() == pytest.approx(0.5, abs=0.06)
    shared = Labels(annotators=500, bias=2.0).labeler(3)
    assert (shared.biases == 2.0).all()
    settings = Labels(temperature=0.0, annotators=2, bias_spread=3.0)
    first, second, gold_NH, _ = pairs(4000)
    judges = settings.labeler(1)
    found = judges.label(first, second, gold_NH, gold_NH, np.ones(4000), np.zeros(4000))
    for annotator in (0, 1):
        mine_N = found.annotator_N == annotator
        assert 1800 < mine_N.sum() < 2200
        assert (first_won(found)[mine_N] == (judges.biases[annotator] > 0)).all()


def test_every_annotator_gets_a_share():
    counts = np.bincount(label({"annotators": 5}).annotator_N)
    assert len(counts) == 5
    assert counts / N == pytest.approx(np.full(5, 0.2), abs=0.01)


def test_a_myopic_annotator_remembers_the_end():
    """Gold 1 at the first step against 0.6 at the last of four; at weight 0.8 the first is worth 0.8^3 = 0.512."""
    first, second = {"token": np.array([[0]])}, {"token": np.array([[1]])}
    early, late = np.array([[1.0, 0, 0, 0]]), np.array([[0, 0, 0, 0.6]])
    assert first_won(label({"temperature": 0.0}, first, second, early, late)).all()
    assert not first_won(label({"temperature": 0.0, "myopic": 0.8}, first, second, early, late)).any()
    rated = label({"temperature": 0.0, "myopic": 0.8, "ratings": True}, first, second, early, late)
    assert (rated.chosen_rating_N[0], rated.rejected_rating_N[0]) == pytest.approx((0.6, 0.512))


def test_myopic_weights_against_the_step_by_step_product():
    """B-Pref's own way (Lee et al. 2021): before each later step, all earlier ones are discounted once more."""
    first, second, first_gold_NH, second_gold_NH = pairs(200, steps=6)
    worth = []
    for gold_NH in (first_gold_NH.copy(), second_gold_NH.copy()):
        for step in range(1, 6):
            gold_NH[:, :step] *= 0.9
        worth.append(gold_NH.sum(1))
    found = label({"temperature": 0.0, "myopic": 0.9}, first, second, first_gold_NH, second_gold_NH)
    assert np.array_equal(first_won(found), worth[0] > worth[1])


def test_strengths_are_steps_of_the_gap():
    golds = np.array([[0.0], [0.49], [0.5], [1.2], [99.0], [0.1]])
    first, second = {"token": np.arange(6)[:, None]}, {"token": np.arange(6)[:, None] + 6}
    settings = {"temperature": 0.0, "strength_levels": 3, "strength_step": 0.5, "tie_threshold": 0.2}
    found = label(settings, first, second, golds, np.zeros((6, 1)))
    assert found.strength_N.tolist() == [1, 1, 2, 3, 3, 1]
    assert found.tie_N.tolist() == [True, False, False, False, False, True]


def test_ratings_follow_their_items_and_err_as_told():
    _, _, first_gold_NH, second_gold_NH = pairs()
    exact = label({"ratings": True, "flip": 0.3})
    won_N = first_won(exact)
    assert np.array_equal(
        exact.chosen_rating_N, np.where(won_N, first_gold_NH[:, 0], second_gold_NH[:, 0]).astype(np.float32)
    )
    assert np.array_equal(
        exact.rejected_rating_N, np.where(won_N, second_gold_NH[:, 0], first_gold_NH[:, 0]).astype(np.float32)
    )
    noisy = label({"ratings": True, "flip": 0.3, "rating_noise": 0.7})
    error_N = noisy.chosen_rating_N - exact.chosen_rating_N
    assert error_N.std() == pytest.approx(0.7, abs=0.02)
    assert error_N.mean() == pytest.approx(0.0, abs=0.02)
    assert abs(np.corrcoef(error_N, noisy.rejected_rating_N - exact.rejected_rating_N)[0, 1]) < 0.03


def equal(one, other):
    return (
        all(np.array_equal(one.chosen[name], other.chosen[name]) for name in one.chosen)
        and all(np.array_equal(one.rejected[name], other.rejected[name]) for name in one.rejected)
        and np.array_equal(one.tie_N, other.tie_N)
        and np.array_equal(one.annotator_N, other.annotator_N)
        and np.array_equal(one.chosen_rating_N, other.chosen_rating_N, equal_nan=True)
    )


NOISY = {"flip": 0.2, "annotators": 3, "bias_spread": 1.0, "ratings": True, "rating_noise": 0.5}


def styled(count=100, seed=0):
    rng = np.random.default_rng(seed + 50)
    return (*pairs(count, seed), rng.standard_normal(count), rng.standard_normal(count))


def test_the_same_seed_labels_alike_and_another_does_not():
    assert equal(label(NOISY, *styled(), seed=4), label(NOISY, *styled(), seed=4))
    assert not equal(label(NOISY, *styled(), seed=4), label(NOISY, *styled(), seed=5))


def test_two_calls_give_the_labels_of_one():
    whole = Labels(**NOISY).labeler(0).label(*styled())
    labeler = Labels(**NOISY).labeler(0)
    first, second, *columns = styled()
    parts = [
        labeler.label(
            {name: column[rows] for name, column in first.items()},
            {name: column[rows] for name, column in second.items()},
            *(column[rows] for column in columns),
        )
        for rows in (slice(0, 37), slice(37, 37), slice(37, 100))
    ]
    assert equal(Preferences.concatenate(parts), whole)


def test_a_fault_changes_only_what_it_is_about():
    """The same seed with and without flips: the same annotators, and the flipped pairs are the only other labels."""
    honest, flipped = label({"annotators": 3}), label({"annotators": 3, "flip": 0.25})
    assert np.array_equal(honest.annotator_N, flipped.annotator_N)
    assert (first_won(honest) != first_won(flipped)).mean() == pytest.approx(0.25, abs=0.01)


def test_the_state_continues_bit_for_bit_through_json():
    one, other = Labels(**NOISY).labeler(0), Labels(**NOISY).labeler(99)
    assert isinstance(one, Stateful)
    one.label(*styled())
    state = one.state()
    structure = json.loads(json.dumps(state.structure))
    other.load_state(type(state)(state.arrays, structure))
    assert equal(one.label(*styled(seed=7)), other.label(*styled(seed=7)))
    assert json.loads(json.dumps(state.structure)) == structure  # labeling has not moved the copy
    assert np.array_equal(one.biases, other.biases)
    with pytest.raises(CheckpointRefused, match="3 annotators"):
        Labels(annotators=2).labeler(0).load_state(state)


def test_what_cannot_be_labeled():
    first, second, first_gold_NH, second_gold_NH = pairs(5)
    labeler = Labels(bias=1.0).labeler(0)
    with pytest.raises(InvalidExperiment, match="need a style statistic") as caught:
        labeler.label(first, second, first_gold_NH, second_gold_NH, np.zeros(5))
    assert caught.value.field == "second_style_N"
    for bad in (np.nan, np.inf):
        broken = second_gold_NH.copy()
        broken[3] = bad
        with pytest.raises(NonFiniteValue, match="item 3") as raised:
            Labels().labeler(0).label(first, second, first_gold_NH, broken)
        assert raised.value.field == "second_gold_NH"
    for shape in ((4, 1), (5,)):
        with pytest.raises(InvalidExperiment, match="one row for each of 5 items"):
            Labels().labeler(0).label(first, second, np.zeros(shape), second_gold_NH)


@pytest.mark.parametrize(
    "settings", [{"flip": 0.41}, {"flip": -0.1}, {"temperature": -1.0}, {"myopic": 0.0}, {"rating_noise": 1.0}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValidationError):
        Labels(**settings)
