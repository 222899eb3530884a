"""Preferences with a known truth, and what every reward model must satisfy.

Shape legend: M members, B items, N pairs, L prompt tokens, T answer tokens, H steps, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.language import Float64, Items, ItemSpec, Preferences, rows_of, take
from proxygap.base.protocols import HostedModel, RewardModel, State


@dataclass(frozen=True, slots=True)
class LinearTruth:
    """Gold that is a sum over steps or tokens: what every architecture here can represent.

    ``weight`` holds one value per feature, or per token of the vocabulary. Items carry every column, so that any reward
    model can be fitted to them.
    """

    weight_F: Float64
    weight_V: Float64
    spec: ItemSpec

    @staticmethod
    def of(rng: np.random.Generator, *, features: int = 3, vocabulary: int = 12, max_tokens: int = 6) -> LinearTruth:
        """A truth drawn with ``rng``; token 0 is padding and worth nothing."""
        weight_V = rng.normal(size=vocabulary)
        weight_V[0] = 0.0
        spec = ItemSpec(vocabulary, 0, 2, max_tokens, features)
        return LinearTruth(rng.normal(size=features), weight_V, spec)

    def items(self, rng: np.random.Generator, rows: int, steps: int = 2) -> dict[str, NDArray[Any]]:
        """Random items: prompts of one or two tokens, answers of every length, standard normal features."""
        length_B = rng.integers(1, self.spec.max_tokens + 1, size=rows)
        token_BT = rng.integers(1, self.spec.vocabulary, size=(rows, self.spec.max_tokens))
        token_BT[np.arange(self.spec.max_tokens) >= length_B[:, None]] = 0
        prompt_token_BL = rng.integers(1, self.spec.vocabulary, size=(rows, 2))
        prompt_token_BL[rng.random(rows) < 0.5, 0] = 0
        return {
            "prompt": np.zeros(rows, np.int64),
            "prompt_token": prompt_token_BL,
            "token": token_BT,
            "length": length_B,
            "feature": rng.normal(size=(rows, steps, self.spec.features)).astype(np.float32),
        }

    def token_gold(self, items: Items) -> Float64:
        """Sum of the answer's token weights, (B,)."""
        return np.asarray(self.weight_V[items["token"]].sum(axis=1), np.float64)

    def feature_gold(self, items: Items) -> Float64:
        """Sum over steps of the weighted features, (B,)."""
        return np.asarray((items["feature"] @ self.weight_F).sum(axis=1), np.float64)

    def preferences(
        self,
        rng: np.random.Generator,
        pairs: int,
        gold: Callable[[Items], Float64],
        *,
        flips: float = 0.0,
        steps: int = 2,
    ) -> Preferences:
        """Pairs labeled by ``gold`` (one of the two above), a share of the labels flipped; ratings are gold itself.

        The best possible accuracy on such labels is 1 - ``flips``. Strength is 1 below the median gap and 2 above.
        """
        first, second = self.items(rng, pairs, steps), self.items(rng, pairs, steps)
        gap_N = gold(first) - gold(second)
        keep_N = (gap_N > 0) ^ (rng.random(pairs) < flips)
        chosen, rejected = _chosen(keep_N, first, second), _chosen(~keep_N, first, second)
        return Preferences(
            chosen,
            rejected,
            tie_N=np.zeros(pairs, np.bool_),
            strength_N=(1 + (np.abs(gap_N) > np.median(np.abs(gap_N)))).astype(np.float32),
            annotator_N=np.zeros(pairs, np.int64),
            chosen_rating_N=gold(chosen).astype(np.float32),
            rejected_rating_N=gold(rejected).astype(np.float32),
        )


def _chosen(keep_N: NDArray[np.bool_], first: Items, second: Items) -> dict[str, NDArray[Any]]:
    return {
        name: np.where(keep_N.reshape(-1, *[1] * (column.ndim - 1)), column, second[name])
        for name, column in first.items()
    }


def check_given_reward_model(build: Callable[[], RewardModel], items: Items) -> None:
    """The clauses that need no fit: shapes, purity, rows on their own, calibration, resume."""
    check_shapes(build(), items)
    check_score_is_pure(build(), items)
    check_rows_on_their_own(build(), items)
    check_calibration_resumes(build, items)


def check_reward_model(build: Callable[[], RewardModel], data: Preferences) -> None:
    """Every clause, on fresh models; ``build`` gives equal models each time."""
    check_given_reward_model(build, data.chosen)
    check_calibration(build(), data.chosen)
    check_fit(build(), data)
    check_fit_is_pure(build(), data)
    check_resume(build, data)


def check_shapes(model: RewardModel, items: Items) -> None:
    """(M, B) finite float32 without a gradient; no row is no error; the members are apart in the first axis."""
    for rows in (0, 1, 7):
        scores_MB = model.score(take(items, slice(0, rows)))
        assert scores_MB.shape == (model.members, rows)
        assert scores_MB.dtype == torch.float32
        assert not scores_MB.requires_grad
        assert bool(scores_MB.isfinite().all())


def check_score_is_pure(model: RewardModel, items: Items) -> None:
    """Scoring twice is scoring once; items, version and global generators stay as they were."""
    before = {name: column.copy() for name, column in items.items()}
    torch_state, numpy_state, version = torch.get_rng_state(), _numpy_state(), model.version
    assert torch.equal(model.score(items), model.score(items))
    assert model.version == version
    assert all(np.array_equal(column, items[name]) for name, column in before.items())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, _numpy_state())


def check_rows_on_their_own(model: RewardModel, items: Items) -> None:
    """An item's score does not depend on the others: any order, any company, more rows than a chunk."""
    order_B = np.roll(np.arange(rows_of(items))[::-1], 3)
    scores_MB = model.score(items)
    torch.testing.assert_close(model.score(take(items, order_B)), scores_MB[:, order_B.copy()], rtol=1e-4, atol=1e-5)
    many_B = np.arange(2500) % rows_of(items)
    torch.testing.assert_close(model.score(take(items, many_B)), scores_MB[:, many_B], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.score(take(items, slice(2, 3))), scores_MB[:, 2:3], rtol=1e-4, atol=1e-5)


def check_calibration(model: RewardModel, items: Items) -> None:
    """Mean 0 and deviation 1 (over B) for each member; the order of scores stays; a version is counted; repeatable."""
    before, version = model.score(items), model.version
    model.calibrate(items)
    after_MB = model.score(items)
    assert model.version == version + 1
    torch.testing.assert_close(after_MB.mean(dim=1), torch.zeros(model.members), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(after_MB.std(dim=1, correction=0), torch.ones(model.members), rtol=1e-4, atol=0.0)
    again = [float(np.corrcoef(one, other)[0, 1]) for one, other in zip(before.cpu(), after_MB.cpu(), strict=True)]
    assert min(again) > 0.999
    model.calibrate(items)
    torch.testing.assert_close(model.score(items), after_MB, rtol=1e-3, atol=1e-4)


def check_calibration_resumes(build: Callable[[], RewardModel], items: Items) -> None:
    """A calibrated model's state, in a fresh model, scores the same bits."""
    model, resumed = build(), build()
    model.calibrate(items)
    resumed.load_state(model.state())
    assert resumed.version == model.version
    assert torch.equal(resumed.score(items), model.score(items))


def check_fit(model: RewardModel, data: Preferences) -> None:
    """A fit counts one version, changes the scores, and reports one entry per member."""
    version, before = model.version, model.score(data.chosen)
    report = model.fit(data)
    assert model.version == report.version == version + 1
    assert bool((model.score(data.chosen) != before).any(dim=1).all())
    for per_member in (report.epochs_M, report.held_out_accuracy_M, report.held_out_loss_M):
        assert len(per_member) == model.members
    assert all(0.0 <= accuracy <= 1.0 for accuracy in report.held_out_accuracy_M)
    assert report.updates > 0
    assert report.training_rows + report.held_out_rows <= len(data)


def check_fit_is_pure(model: RewardModel, data: Preferences) -> None:
    """A fit leaves data and global generators as they were."""
    before, labels = {name: column.copy() for name, column in data.rejected.items()}, data.strength_N.copy()
    torch_state, numpy_state = torch.get_rng_state(), _numpy_state()
    model.fit(data)
    assert all(np.array_equal(column, data.rejected[name]) for name, column in before.items())
    assert np.array_equal(labels, data.strength_N)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, _numpy_state())


def check_resume(build: Callable[[], RewardModel], data: Preferences) -> None:
    """Fit, calibrate, state, fit equals state into a fresh model, fit: bit for bit; and a state is a copy."""
    model, resumed = build(), build()
    longer = Preferences.concatenate([data, data[::2]])
    model.fit(data)
    model.calibrate(data.chosen)
    state = model.state()
    kept = {name: array.copy() for name, array in state.arrays.items()}
    model.fit(longer)
    assert all(np.array_equal(array, state.arrays[name]) for name, array in kept.items())
    resumed.load_state(state)
    _check_same(resumed.state(), state)
    resumed.fit(longer)
    _check_same(resumed.state(), model.state())
    assert torch.equal(resumed.score(data.rejected), model.score(data.rejected))


class HostedRewardModel(RewardModel, HostedModel, Protocol):
    """A reward model that a host can serve."""


def check_hosted_reward_model(
    build: Callable[[], HostedRewardModel], packed: Mapping[str, NDArray[Any]], items: Items
) -> None:
    """``score`` (rows first, batchable) beside ``fit`` and ``calibrate`` (updates): calls equal to the methods.

    ``packed`` are the arrays of the preferences to fit.
    """
    hosted, plain = build(), build()
    assert hosted.batchable("score")
    assert not hosted.batchable("fit")
    assert not hosted.batchable("calibrate")
    report = hosted.call("fit", packed, {})
    plain.call("fit", packed, {})
    hosted.call("calibrate", items, {})
    plain.call("calibrate", items, {})
    _check_same(hosted.state(), plain.state())
    score_BM = hosted.call("score", items, {})["score"]
    assert score_BM.shape == (rows_of(items), plain.members)
    assert np.array_equal(score_BM.T, plain.score(items).numpy())
    assert len(report["held_out_accuracy_M"]) == plain.members
    try:
        hosted.call("forget", {}, {})
    except KeyError:
        return
    raise AssertionError("an unknown method must be refused with a KeyError")


def _check_same(one: State, other: State) -> None:
    assert one.structure == other.structure
    assert one.arrays.keys() == other.arrays.keys()
    assert all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())


def _numpy_state() -> NDArray[Any]:
    return np.asarray(np.random.get_state()[1]).copy()  # type: ignore[index]  # noqa: NPY002
