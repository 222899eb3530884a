"""Items and preferences at the door: checked, and packed into flat arrays for a host.

Shape legend: B items, N pairs, L prompt tokens, T answer tokens, H steps, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxygap.base.errors import InvalidDataset, NonFiniteValue
from proxygap.base.language import Items, ItemSpec, Preferences
from proxygap.base.protocols import Arrays

_PLAIN = ("tie_N", "strength_N", "annotator_N", "chosen_rating_N", "rejected_rating_N")


def column(items: Items, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """One column; None in ``shape`` is any size. Raises InvalidDataset where it is missing or shaped otherwise."""
    if name not in items:
        raise InvalidDataset(
            "the items lack a column that this reward model reads",
            field=f"items.{name}",
            value=sorted(items),
            remedy="pick a reward model that fits the task: mlp_reward reads features, transformer_reward tokens",
        )
    array = items[name]
    if array.ndim != len(shape) or any(size not in (None, here) for size, here in zip(shape, array.shape, strict=True)):
        raise InvalidDataset(f"the column should have shape {shape}", field=f"items.{name}", value=array.shape)
    return array


def token_columns(items: Items, spec: ItemSpec) -> dict[str, torch.Tensor]:
    """``token`` (B, L + T) from prompt to padding, ``last`` (B,) its last real column, ``first`` (B,) its first one.

    Answers may come with fewer columns than the task allows; what stands behind an answer's length is not read.

    Raises:
        InvalidDataset: a token beyond the vocabulary, an empty answer or one longer than its row; names column and row.
    """
    prompt_BL = column(items, "prompt_token", (None, spec.prompt_length))
    token_BT = column(items, "token", (len(prompt_BL), None))
    length_B = column(items, "length", (len(prompt_BL),))
    given = min(token_BT.shape[1], spec.max_tokens)
    real_BT = np.arange(token_BT.shape[1]) < length_B[:, None]
    for name, bad in (
        ("prompt_token", ((prompt_BL < 0) | (prompt_BL >= spec.vocabulary)).any(axis=1)),
        ("token", (((token_BT < 0) | (token_BT >= spec.vocabulary)) & real_BT).any(axis=1)),
        ("length", (length_B < 1) | (length_B > given)),
    ):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            allowed = f"1..{given}" if name == "length" else f"tokens 0..{spec.vocabulary - 1}"
            raise InvalidDataset(
                f"row {row} is outside {allowed}",
                field=f"items.{name}",
                value=items[name][row].tolist(),
                remedy="drop the row, or give the task's settings the sizes of the data",
            )
    first_B = np.logical_and.accumulate(prompt_BL == spec.pad_token, axis=1).sum(axis=1)
    answer_BT = np.full((len(prompt_BL), spec.max_tokens), spec.pad_token, np.int64)
    answer_BT[:, :given] = np.where(real_BT, token_BT, spec.pad_token)[:, :given]
    return {
        "token": torch.tensor(np.concatenate([prompt_BL, answer_BT], axis=1), dtype=torch.int64),
        "last": torch.tensor(spec.prompt_length + length_B - 1, dtype=torch.int64),
        "first": torch.tensor(first_B, dtype=torch.int64),
    }


def feature_column(items: Items, spec: ItemSpec) -> torch.Tensor:
    """``feature`` (B, H, F), finite.

    Raises:
        NonFiniteValue: a feature is NaN or infinite; names the row.
    """
    feature_BHF = column(items, "feature", (None, None, spec.features))
    bad_B = ~np.isfinite(feature_BHF).all(axis=(1, 2))
    if bad_B.any():
        raise NonFiniteValue(
            "the features of an item hold NaN or infinity",
            field="items.feature",
            value=f"row {int(np.flatnonzero(bad_B)[0])}",
            remedy="check what produced them",
        )
    return torch.tensor(feature_BHF, dtype=torch.float32)


def check_pairs(data: Preferences, *, needs_ratings: bool) -> None:
    """Refuse preferences that no member can learn from.

    Raises:
        InvalidDataset: no pairs, a strength that is negative or not finite, an infinite rating, or no rating at all
            where the loss needs one.
    """
    if len(data) == 0:
        raise InvalidDataset("there are no pairs to fit", field="preferences", remedy="collect labels first")
    wrong = ~np.isfinite(data.strength_N) | (data.strength_N < 0)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidDataset(
            f"the strength of pair {row} must be finite and not negative",
            field="preferences.strength",
            value=float(data.strength_N[row]),
        )
    ratings_N2 = np.stack([data.chosen_rating_N, data.rejected_rating_N], axis=1)
    if np.isinf(ratings_N2).any():
        row = int(np.flatnonzero(np.isinf(ratings_N2).any(axis=1))[0])
        raise InvalidDataset(f"a rating of pair {row} is infinite", field="preferences.rating", value=row)
    if needs_ratings and np.isnan(ratings_N2).all():
        raise InvalidDataset(
            "the loss needs ratings and no item has one",
            field="preferences.rating",
            remedy="use labels that rate, or the loss bradley_terry",
        )


def preference_arrays(data: Preferences) -> Arrays:
    """Pairs as flat arrays, all with pairs first: ``chosen.<column>``, ``rejected.<column>`` and the plain columns."""
    sides = {"chosen": data.chosen, "rejected": data.rejected}
    packed = {f"{side}.{name}": np.asarray(array) for side, items in sides.items() for name, array in items.items()}
    return packed | {name: np.asarray(getattr(data, name)) for name in _PLAIN}


def preferences_of(arrays: Mapping[str, NDArray[Any]]) -> Preferences:
    """The pairs that `preference_arrays` packed."""
    chosen, rejected = (
        {name.removeprefix(side): array for name, array in arrays.items() if name.startswith(side)}
        for side in ("chosen.", "rejected.")
    )
    return Preferences(chosen, rejected, **{name: arrays[name] for name in _PLAIN})
