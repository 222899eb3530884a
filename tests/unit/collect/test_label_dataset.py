"""Labeled pairs survive parquet bit for bit, and whatever cannot be used is refused by file, row and column."""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxygap.base.errors import InvalidDataset, StorageError
from proxygap.base.language import ItemSpec, Preferences
from proxygap.collect.labels.dataset import read_preferences, read_provenance, write_preferences
from proxygap.collect.labels.settings import Labels

SPEC = ItemSpec(vocabulary=20, pad_token=0, prompt_length=3, max_tokens=5)
PROMPTS = np.array([[0, 0, 4], [0, 7, 7], [9, 8, 7]])
PROVENANCE = {"experiment": "ab12", "labels": "seed 3", "note": 'quotes " and ünïcode'}


def answers(rng, count):
    prompt_N = rng.integers(0, 3, count)
    length_N = rng.integers(1, 6, count)
    token_NT = rng.integers(1, 20, (count, 5)) * (np.arange(5) < length_N[:, None])
    return {"prompt": prompt_N, "prompt_token": PROMPTS[prompt_N], "token": token_NT, "length": length_N}


def labeled(chosen, rejected, seed=1):
    rng, count = np.random.default_rng(seed), len(next(iter(chosen.values())))
    rating_N = rng.standard_normal(count).astype(np.float32)
    return Preferences(
        chosen,
        rejected,
        tie_N=rng.random(count) < 0.2,
        strength_N=rng.integers(1, 4, count).astype(np.float32),
        annotator_N=rng.integers(0, 3, count),
        chosen_rating_N=rating_N,
        rejected_rating_N=np.where(rng.random(count) < 0.5, np.nan, rating_N - 1).astype(np.float32),
    )


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return labeled(answers(rng, 40), answers(rng, 40))


@pytest.fixture
def segments():
    rng = np.random.default_rng(0)
    return labeled(*({"feature": rng.standard_normal((30, 6, 4)).astype(np.float32)} for _ in range(2)))


@pytest.fixture
def file(data, tmp_path):
    path = tmp_path / "pairs.parquet"
    write_preferences(path, data, PROVENANCE)
    return path


def assert_same(found, data):
    for side in ("chosen", "rejected"):
        assert set(getattr(found, side)) == set(getattr(data, side))
        for name, column in getattr(data, side).items():
            assert np.array_equal(getattr(found, side)[name], column)
            assert getattr(found, side)[name].dtype == column.dtype
            assert getattr(found, side)[name].flags.writeable
    for name in ("tie_N", "strength_N", "annotator_N", "chosen_rating_N", "rejected_rating_N"):
        column = getattr(data, name)
        assert np.array_equal(getattr(found, name), column, equal_nan=column.dtype.kind == "f")
        assert getattr(found, name).dtype == column.dtype


def test_round_trip_is_exact(data, file):
    assert_same(read_preferences(file, SPEC), data)
    assert_same(read_preferences(file, SPEC, prompts=PROMPTS), data)
    assert read_provenance(file) == PROVENANCE


def test_segments_and_answers_with_features_round_trip(segments, data, tmp_path):
    write_preferences(tmp_path / "segments", segments, {})
    assert_same(read_preferences(tmp_path / "segments", ItemSpec(features=4)), segments)
    feature = np.arange(80, dtype=np.float32).reshape(40, 1, 2)
    both = Preferences(
        {**data.chosen, "feature": feature},
        {**data.rejected, "feature": -feature},
        data.tie_N,
        data.strength_N,
        data.annotator_N,
        data.chosen_rating_N,
        data.rejected_rating_N,
    )
    write_preferences(tmp_path / "both", both, {})
    spec = ItemSpec(vocabulary=20, prompt_length=3, max_tokens=5, features=2)
    assert_same(read_preferences(tmp_path / "both", spec), both)


def test_no_pairs_and_a_view_of_pairs(data, segments, tmp_path):
    for name, part in (("none", data[:0]), ("view", data[3:33:2])):
        write_preferences(tmp_path / name, part, {})
        assert_same(read_preferences(tmp_path / name, SPEC), part)
    write_preferences(tmp_path / "no segments", segments[:0], {})
    assert len(read_preferences(tmp_path / "no segments", ItemSpec(features=4))) == 0


def test_padding_is_not_written_and_widens_to_the_tasks_size(data, file):
    table = pq.read_table(file)
    assert table["chosen_token"].to_pylist()[4] == data.chosen["token"][4, : data.chosen["length"][4]].tolist()
    assert table.schema.field("chosen_token").type == pa.list_(pa.int64())
    wide = read_preferences(file, ItemSpec(vocabulary=20, pad_token=1, prompt_length=4, max_tokens=7))
    assert wide.chosen["token"].shape == (40, 7)
    assert (wide.chosen["token"][:, 5:] == 1).all()
    assert (wide.chosen["prompt_token"][:, 0] == 1).all()
    assert np.array_equal(wide.chosen["prompt_token"][:, 1:], data.chosen["prompt_token"])


def test_the_hash_is_that_of_the_content(data, tmp_path):
    one = write_preferences(tmp_path / "a", data, {})
    assert one == write_preferences(tmp_path / "b", data, {"other": "provenance"})
    assert one != write_preferences(tmp_path / "c", data[:39], {})
    moved = Preferences(data.rejected, data.chosen, **{f: getattr(data, f) for f in FIELDS})
    assert one != write_preferences(tmp_path / "d", moved, {})


FIELDS = ("tie_N", "strength_N", "annotator_N", "chosen_rating_N", "rejected_rating_N")


def plain(path, rows, **columns):
    """A file as the field writes it: prompt, chosen, rejected."""
    table = pa.table(
        {name: [row[place] for row in rows] for place, name in enumerate(("prompt", "chosen", "rejected"))}
    )
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column))
    pq.write_table(table, path)
    return path


ROWS = [([4], [1, 2], [3]), ([7, 7], [5], [6, 6, 6]), ([9, 8, 7], [1], [2])]


def test_plain_columns_of_tokens(tmp_path):
    found = read_preferences(plain(tmp_path / "p", ROWS), SPEC, prompts=PROMPTS)
    assert found.chosen["prompt"].tolist() == found.rejected["prompt"].tolist() == [0, 1, 2]
    assert found.chosen["prompt_token"].tolist() == PROMPTS.tolist()
    assert found.chosen["token"].tolist() == [[1, 2, 0, 0, 0], [5, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert found.rejected["length"].tolist() == [1, 3, 1]
    assert (found.tie_N.tolist(), found.strength_N.tolist(), found.annotator_N.tolist()) == (
        3 * [False],
        3 * [1],
        3 * [0],
    )
    assert np.isnan(found.chosen_rating_N).all()
    assert "prompt" not in read_preferences(tmp_path / "p", SPEC).chosen
    assert read_provenance(tmp_path / "p") == {}


def test_plain_columns_may_be_narrower_and_have_labels_beside_them(tmp_path):
    path = plain(tmp_path / "p", ROWS, annotator=[0, 4, 2], strength=[1.0, 3.0, 2.0], tie=[False, True, False])
    narrow = pq.read_table(path)
    for place, name in enumerate(("prompt", "chosen", "rejected")):
        narrow = narrow.set_column(place, name, narrow[name].cast(pa.large_list(pa.int16())))
    narrow = narrow.set_column(3, "annotator", narrow["annotator"].cast(pa.uint8()))
    pq.write_table(narrow, path)
    found = read_preferences(path, SPEC)
    assert found.annotator_N.tolist() == [0, 4, 2]
    assert found.strength_N.tolist() == [1, 3, 2]
    assert found.tie_N.tolist() == [False, True, False]
    assert found.rejected["token"][1].tolist() == [6, 6, 6, 0, 0]


def test_plain_columns_of_text(tmp_path):
    path = plain(tmp_path / "p", [("d", "ab", "c"), ("gg", "e", "fff")])
    found = read_preferences(path, SPEC, tokenize=lambda text: [ord(letter) - 96 for letter in text], prompts=PROMPTS)
    assert found.chosen["prompt"].tolist() == [0, 1]
    assert found.chosen["token"].tolist() == [[1, 2, 0, 0, 0], [5, 0, 0, 0, 0]]
    with pytest.raises(InvalidDataset, match="no tokenizer was given"):
        read_preferences(path, SPEC)


@pytest.mark.parametrize(
    ("rows", "columns", "place", "told"),
    [
        ([*ROWS, ([4], [], [3])], {}, "row 3, column chosen", "no tokens"),
        ([*ROWS, ([4], [3], [])], {}, "row 3, column rejected", "no tokens"),
        ([*ROWS, ([4], [3, 20], [3])], {}, "row 3, column chosen", "vocabulary are 0 to 19"),
        ([*ROWS, ([4], [3], [1, 2, -1])], {}, "row 3, column rejected", "vocabulary are 0 to 19"),
        ([*ROWS, ([21], [3], [1])], {}, "row 3, column prompt", "vocabulary are 0 to 19"),
        ([*ROWS, ([4], [1] * 6, [1])], {}, "row 3, column chosen", "answers may have, 5"),
        ([*ROWS, ([4] * 4, [1], [2])], {}, "row 3, column prompt", "prompts may have, 3"),
        ([*ROWS, ([5], [1], [2])], {}, "row 3, column prompt", "not one of the task's 3 prompts"),
        ([*ROWS, (None, [1], [2])], {}, "row 3, column prompt", "gaps"),
        ([*ROWS, ([4], [1, None], [2])], {}, "column chosen", "gaps"),
        (ROWS, {"annotator": [0, -1, 0]}, "row 1, column annotator", "count from 0"),
        (ROWS, {"annotator": [0.0, 0.5, 0.0]}, "column annotator", "is double, not int64"),
        (ROWS, {"annotator": ["me", "you", "me"]}, "column annotator", "is string, not int64"),
        (ROWS, {"strength": [1.0, 1.0, 0.0]}, "row 2, column strength", "positive"),
        (ROWS, {"strength": [1.0, np.nan, 1.0]}, "row 1, column strength", "positive"),
        (ROWS, {"tie": [0, 1, 0]}, "column tie", "is int64, not bool"),
        (ROWS, {"chosen_rating": [0.0, np.inf, 0.0]}, "row 1, column chosen_rating", "infinite"),
        ([(4, 1, 2)], {}, "column prompt", "is int64, not list"),
        ([([4], [1.5], [2.0])], {}, "column chosen", "is list<element: double>, not list"),
        ([*ROWS, ROWS[1]], {}, "row 3, column annotator", "the pair of row 1 again, labeled alike"),
        ([*ROWS, ([7, 7], [6, 6, 6], [5])], {}, "row 3, column annotator", "row 1 again, labeled otherwise"),
        ([*ROWS, ROWS[1]], {"tie": [False, True, False, False]}, "row 3, column annotator", "labeled otherwise"),
        ([*ROWS, ([4], [3], [3])], {}, "row 3, column annotator", "preferred to itself"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(rows, columns, place, told, tmp_path):
    path = plain(tmp_path / "p", rows, **columns)
    with pytest.raises(InvalidDataset, match=told) as caught:
        read_preferences(path, SPEC, prompts=PROMPTS)
    assert caught.value.field == f"{path}, {place}"
    assert caught.value.remedy
    assert str(path) in str(caught.value)


def test_a_column_that_is_missing_is_named(tmp_path):
    path = plain(tmp_path / "p", ROWS)
    pq.write_table(pq.read_table(path).drop_columns(["chosen"]), path)
    with pytest.raises(InvalidDataset, match="missing among prompt, rejected") as caught:
        read_preferences(path, SPEC)
    assert caught.value.field.endswith("column chosen")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InvalidDataset, match="missing"):
        read_preferences(path, SPEC)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda f: f.__setitem__((7, 2, 1), np.nan), "row 7, column chosen_feature = nan: a feature is not finite"),
        (lambda f: f.__setitem__((9, 0, 0), -np.inf), "row 9, column chosen_feature = -inf: a feature is not finite"),
    ],
)
def test_features_that_are_no_numbers_are_named(change, told, segments, tmp_path):
    change(segments.chosen["feature"])
    write_preferences(tmp_path / "s", segments, {})
    with pytest.raises(InvalidDataset, match=re.escape(told)):
        read_preferences(tmp_path / "s", ItemSpec(features=4))


def test_a_file_for_another_task_is_refused(segments, data, file, tmp_path):
    write_preferences(tmp_path / "s", segments, {})
    for path, spec, told in (
        (tmp_path / "s", ItemSpec(features=3), "where the task has 3"),
        (tmp_path / "s", SPEC, "missing among"),
        (file, ItemSpec(features=4), "missing among"),
        (file, ItemSpec(vocabulary=10, prompt_length=3, max_tokens=5), "0 to 9"),
    ):
        with pytest.raises(InvalidDataset, match=told):
            read_preferences(path, spec)
    with pytest.raises(InvalidDataset, match="prompt of that number is another"):
        read_preferences(file, SPEC, prompts=PROMPTS[::-1])
    with pytest.raises(InvalidDataset, match="prompt of that number is another"):
        read_preferences(file, SPEC, prompts=PROMPTS[:1])
    with pytest.raises(InvalidDataset, match="plain columns can only hold"):
        read_preferences(plain(tmp_path / "p", ROWS), ItemSpec(features=4))
    unequal = labeled({"feature": np.zeros((3, 2, 4), np.float32)}, {"feature": np.ones((3, 5, 4), np.float32)})
    write_preferences(tmp_path / "u", unequal, {})
    with pytest.raises(InvalidDataset, match="differ in length"):
        read_preferences(tmp_path / "u", ItemSpec(features=4))


def test_repeats_can_be_kept_and_annotators_may_disagree(tmp_path):
    rows = [*ROWS, ROWS[1], ([7, 7], [6, 6, 6], [5]), ([4], [3], [3])]
    path = plain(tmp_path / "p", rows)
    assert len(read_preferences(path, SPEC, on_duplicate="keep", on_contradiction="keep")) == 6
    with pytest.raises(InvalidDataset, match="labeled alike"):
        read_preferences(path, SPEC, on_contradiction="keep")
    with pytest.raises(InvalidDataset, match="labeled otherwise"):
        read_preferences(path, SPEC, on_duplicate="keep")
    apart = plain(tmp_path / "q", rows[:-1], annotator=[0, 0, 0, 1, 2])
    assert len(read_preferences(apart, SPEC)) == 5
    tied = plain(tmp_path / "t", [([4], [3], [3])], tie=[True])
    assert read_preferences(tied, SPEC).tie_N.all()


def test_the_same_answer_to_another_prompt_is_another_item(tmp_path):
    path = plain(tmp_path / "p", [([4], [1], [2]), ([7, 7], [2], [1]), ([4], [1, 1], [2])])
    assert len(read_preferences(path, SPEC)) == 3


def test_a_truncated_file_is_refused(file):
    whole = file.read_bytes()
    for length in [0, 1, 4, 100, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        for read in (lambda: read_preferences(file, SPEC), lambda: read_provenance(file)):
            with pytest.raises(InvalidDataset, match="cannot be read as parquet") as caught:
                read()
            assert str(file) in str(caught.value)


def _column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values(table[name]))


ALTERED = [
    (_column("annotator", lambda column: pa.array(np.zeros(len(column), np.int64))), "content hash"),
    (_column("strength", lambda column: column.cast(pa.float64())), "content hash"),
    (_column("tie", lambda column: pa.array([None, *column.to_pylist()[1:]], pa.bool_())), "content hash"),
    (_column("tie", lambda column: pa.array([{"a": 1}] * len(column))), "content hash"),
    (_column("tie", lambda column: pa.array(["x"] * len(column))), "content hash"),
    (lambda table: table.drop_columns(["chosen_token"]), "content hash"),
    (lambda table: table.slice(0, 10), "content hash"),
    (lambda table: table.replace_schema_metadata(None), "column is missing"),
    (lambda table: with_fact(table, b"provenance", b'{"labels": "human"}'), "metadata was altered"),
    (lambda table: with_fact(table, b"version", b"9"), "schema version 9"),
    (lambda table: with_fact(table, b"kind", b"episodes"), "something else than preferences"),
    (lambda table: with_fact(table, b"seal", b"\xff\xfe"), "metadata was altered"),
]


@pytest.mark.parametrize(("change", "told"), ALTERED, ids=range(len(ALTERED)))
def test_an_altered_or_foreign_file_is_refused(file, change, told):
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(InvalidDataset, match=told) as caught:
        read_preferences(file, SPEC)
    assert str(file) in caught.value.field
    assert caught.value.remedy


def with_fact(table, key, value):
    return table.replace_schema_metadata({**table.schema.metadata, b"proxygap." + key: value})


def test_what_is_not_a_file_is_refused(data, tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InvalidDataset, match="cannot be read"):
            read_preferences(path, SPEC)
    with pytest.raises(StorageError, match="cannot write preferences"):
        write_preferences(tmp_path / "no" / "folder", data, {})


def test_a_failed_write_leaves_the_old_file_and_no_draft(file, data, monkeypatch):
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_preferences(file, data[:5], {})
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_a_labeler_gives_is_read_back_with_its_annotators(tmp_path):
    """Few enumerable answers and noisy annotators: repeats and self-contradictions are meant, and must be asked for."""
    rng = np.random.default_rng(3)
    sides = [
        {
            "prompt": np.zeros(300, np.int64),
            "prompt_token": np.full((300, 1), 2),
            "token": rng.integers(0, 4, (300, 1)),
            "length": np.ones(300, np.int64),
        }
        for _ in range(2)
    ]
    golds = [items["token"].astype(float) for items in sides]
    settings = Labels(annotators=4, flip=0.25, tie_threshold=0.5, strength_levels=3, ratings=True, rating_noise=1.0)
    found = settings.labeler(0).label(*sides, *golds)
    assert set(found.strength_N.tolist()) == {1.0, 2.0, 3.0}
    write_preferences(tmp_path / "p", found, {})
    spec = ItemSpec(vocabulary=4, prompt_length=1, max_tokens=1)
    assert_same(read_preferences(tmp_path / "p", spec, on_duplicate="keep", on_contradiction="keep"), found)
    with pytest.raises(InvalidDataset, match=r"on_(duplicate|contradiction)='keep'"):
        read_preferences(tmp_path / "p", spec)
