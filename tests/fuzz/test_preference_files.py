"""Whatever a preference file holds, it is either read whole or refused with one clear `InvalidDataset`."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from proxygap.base.errors import InvalidDataset
from proxygap.base.language import ItemSpec, Preferences
from proxygap.collect.labels.dataset import read_preferences, write_preferences

EXAMPLES = int(os.environ.get("PROXYGAP_FUZZ", "0"))
"""Examples per test, new ones every time; by default the same few hundred, so that the tests repeat themselves."""
FUZZ = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
KEEP: dict[str, Any] = {"on_duplicate": "keep", "on_contradiction": "keep"}


@st.composite
def specs(draw: st.DrawFn) -> ItemSpec:
    """A task of answers, of segments, or of answers with features."""
    kind = draw(st.sampled_from(("answers", "segments", "both")))
    return ItemSpec(
        vocabulary=0 if kind == "segments" else draw(st.integers(1, 40)),
        prompt_length=0 if kind == "segments" else draw(st.integers(0, 4)),
        max_tokens=0 if kind == "segments" else draw(st.integers(1, 6)),
        features=0 if kind == "answers" else draw(st.integers(1, 3)),
    )


@st.composite
def preferences(draw: st.DrawFn, spec: ItemSpec) -> Preferences:
    """Any pairs that fit the task; numbers are drawn by a seeded generator, extremes by hypothesis."""
    count, steps = draw(st.integers(0, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    extreme = np.float32(draw(st.floats(width=32, allow_nan=False, allow_infinity=False)))

    def items() -> dict[str, Any]:
        found: dict[str, Any] = {}
        if spec.max_tokens:
            length_N = rng.integers(1, spec.max_tokens + 1, count)
            mask_NT = np.arange(spec.max_tokens) < length_N[:, None]
            found = {
                "prompt": rng.integers(0, 5, count),
                "prompt_token": rng.integers(0, spec.vocabulary, (count, spec.prompt_length)),
                "token": rng.integers(0, spec.vocabulary, mask_NT.shape) * mask_NT,
                "length": length_N,
            }
        if spec.features:
            feature_NHF = rng.standard_normal((count, steps if count else 1, spec.features)).astype(np.float32)
            found["feature"] = np.where(rng.random(feature_NHF.shape) < 0.1, extreme, feature_NHF)
        return found

    return Preferences(
        items(),
        items(),
        tie_N=rng.random(count) < 0.3,
        strength_N=np.abs(rng.standard_normal(count)).astype(np.float32) + np.float32(1e-3),
        annotator_N=rng.integers(0, 2**62, count),
        chosen_rating_N=np.full(count, extreme, np.float32),
        rejected_rating_N=np.full(count, np.nan, np.float32),
    )


def same(one: Preferences, other: Preferences) -> bool:
    """Equal in every bit, names and types included."""
    for side in ("chosen", "rejected"):
        mine, theirs = getattr(one, side), getattr(other, side)
        if mine.keys() != theirs.keys():
            return False
        if any(
            mine[name].tobytes() != theirs[name].tobytes() or mine[name].shape != theirs[name].shape for name in mine
        ):
            return False
    names = ("tie_N", "strength_N", "annotator_N", "chosen_rating_N", "rejected_rating_N")
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in names)


def outcome(path: Path, spec: ItemSpec) -> Preferences | None:
    """The pairs, or None after a refusal that owes its reader nothing; every other ending fails the test."""
    try:
        return read_preferences(path, spec, **KEEP)
    except InvalidDataset as error:
        check_clear(error, path)
        return None


def check_clear(error: InvalidDataset, path: Path) -> None:
    """What every refusal owes its reader: the file, the remedy, one line."""
    message = str(error)
    assert error.field.startswith(str(path))
    assert error.remedy
    assert error.remedy in message
    assert "\n" not in message
    assert len(message) < 1000


@FUZZ
@given(st.data())
def test_every_set_of_pairs_survives_bit_for_bit(data: st.DataObject) -> None:
    spec = data.draw(specs())
    pairs = data.draw(preferences(spec))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs"
        write_preferences(path, pairs, {"a": "b"})
        assert same(read_preferences(path, spec, **KEEP), pairs)


@FUZZ
@given(st.data())
def test_a_truncated_or_damaged_file_never_passes_as_other_data(data: st.DataObject) -> None:
    spec = data.draw(specs())
    pairs = data.draw(preferences(spec))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs"
        write_preferences(path, pairs, {"a": "b"})
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert outcome(path, spec) is None
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(damaged))
        found = outcome(path, spec)
        assert found is None or same(found, pairs)  # a byte that carries nothing


TOKENS = st.lists(st.integers(-2, 12), max_size=7)
CELLS = (
    TOKENS,
    st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=3),
    st.one_of(st.none(), TOKENS),
    st.lists(st.floats(-3, 30), max_size=4),
    st.lists(TOKENS, max_size=2),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.none(),
    st.fixed_dictionaries({"role": st.text(max_size=2)}),
    st.datetimes(),
)
NAMES = (
    "prompt",
    "chosen",
    "rejected",
    "tie",
    "strength",
    "annotator",
    "chosen_rating",
    "rejected_rating",
    "other",
    "",
)
USUAL = dict.fromkeys(NAMES, TOKENS) | {
    "tie": st.booleans(),
    "strength": st.floats(0, 5),
    "annotator": st.integers(-1, 3),
    "chosen_rating": st.floats(),
    "rejected_rating": st.floats(),
}


@FUZZ
@given(st.data())
def test_a_foreign_table_is_read_or_refused(data: st.DataObject) -> None:
    """Tables with the field's columns, some of them missing, of another type, or with odd values."""
    rows = data.draw(st.integers(0, 4))
    columns = {}
    for name in data.draw(st.sets(st.sampled_from(NAMES)).map(lambda more: more | {"prompt", "chosen", "rejected"})):
        cell = USUAL[name] if data.draw(st.integers(0, 3)) else data.draw(st.sampled_from(CELLS))
        try:
            columns[name] = pa.array([data.draw(cell) for _ in range(rows)])
        except (pa.ArrowException, OverflowError):
            assume(False)
    spec = ItemSpec(vocabulary=10, prompt_length=3, max_tokens=4)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs"
        pq.write_table(pa.table(columns), path)
        found = outcome(path, spec)
    if found is not None:
        assert len(found) == rows
        for items in (found.chosen, found.rejected):
            assert items["token"].shape == (rows, 4)
            assert ((items["token"] >= 0) & (items["token"] < 10)).all()
            assert ((items["length"] > 0) & (items["length"] <= 4)).all()
            assert ((items["prompt_token"] >= 0) & (items["prompt_token"] < 10)).all()
        assert np.isfinite(found.strength_N).all()


def test_the_foreign_tables_are_not_all_refused() -> None:
    """The test above would be empty if they were."""
    table = pa.table({"prompt": [[1]], "chosen": [[2, 3]], "rejected": [[4]], "annotator": [2]})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pairs"
        pq.write_table(table, path)
        found = outcome(path, ItemSpec(vocabulary=10, prompt_length=3, max_tokens=4))
    assert found is not None
    assert found.annotator_N.tolist() == [2]
