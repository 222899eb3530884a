"""Out-of-sample errors of a fixed dataset: every transition is held out once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from proxygap.base.protocols import DynamicsModel
from proxygap.base.records import Transitions
from proxygap.base.seeds import generator
from proxygap.fit.uncertainty.deup import Deup


def observe_folds(
    estimate: Deup, build: Callable[[], DynamicsModel], data: Transitions, *, folds: int, seed: int
) -> None:
    """Let ``estimate`` remember the error on each row of a model that was fitted without the row's fold.

    (Lahlou et al. 2023, algorithm 1, "fixed training set".) Rows are dealt to folds at random, so neighboring steps of
    an episode may be in different ones. A `fit` of the estimate then uses these errors for the model of all data.

    Args:
        estimate: what is to learn.
        build: gives a fresh model each time.
        data: all rows.
        folds: models fitted, at least 2.
        seed: deals the rows.

    Raises:
        ValueError: fewer than two folds, or more of them than rows.
    """
    if not 2 <= folds <= len(data):
        raise ValueError(f"{len(data)} rows cannot be dealt to {folds} folds; there are at least 2")
    fold_N = generator(seed, "uncertainty/folds").permutation(np.arange(len(data)) % folds)
    for fold in range(folds):
        model, rest = build(), data[np.flatnonzero(fold_N != fold)]
        model.fit(rest, 0)
        estimate.describe(model, rest)
        estimate.observe(model, data[np.flatnonzero(fold_N == fold)])
