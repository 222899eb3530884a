"""Checkpoints: equal or refused, never something in between."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from proxygap.base.clock import Clocks
from proxygap.base.config import canonical_hash, canonical_json
from proxygap.base.errors import CheckpointRefused, StorageError
from proxygap.base.protocols import State
from proxygap.base.seeds import generator, generator_state
from proxygap.record import checkpoint as checkpoint_module
from proxygap.record.checkpoint import CheckpointStore

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = ["bool", "float16", "float32", "float64", *INTEGERS]


def parts() -> dict[str, State]:
    rng = generator(0, "checkpoint test")
    arrays: dict[str, Any] = {f"dtype/{d}": rng.integers(0, 2, (3, 2)).astype(d) for d in DTYPES}
    arrays |= {
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 4), np.float32),
        "transposed": np.arange(12.0).reshape(3, 4).T,
        "strided": np.arange(10, dtype=np.int16)[::3],
        "big_endian": np.arange(4, dtype=">f8"),
        "odd": np.array([np.nan, np.inf, -0.0]),
    }
    structure = {
        "version": 3,
        "best": math.inf,
        "worst": -math.inf,
        "nested": [{"$float": "x", "$": None}, [True, "é"]],
        "numpy": np.int64(2**62),
        "rng": generator_state(rng),
    }
    return {"replay": State(arrays, structure), "policy": State({}, {"nan": math.nan})}


CLOCKS = Clocks(iteration=5, real_step=1234, model_update=7)


def assert_equal(found: dict[str, State], expected: dict[str, State]) -> None:
    assert found.keys() == expected.keys()
    for name, state in expected.items():
        assert repr(found[name].structure) == repr(state.structure).replace(repr(np.int64(2**62)), str(2**62))
        assert list(found[name].arrays) == list(state.arrays)
        for key, array in state.arrays.items():
            other = found[name].arrays[key]
            assert (other.shape, other.dtype) == (array.shape, array.dtype.newbyteorder("=")), key
            assert other.tobytes() == array.astype(other.dtype).tobytes(), key
            assert other.flags.writeable


def test_all_dtypes_shapes_and_structures_come_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    path = store.save(parts(), CLOCKS, "me")
    assert path.name == "step-0000001234"
    restored = CheckpointStore(tmp_path / "checkpoints", keep=2).load_newest("me")
    assert restored is not None
    assert_equal(restored.parts, parts())
    assert (restored.clocks, restored.refusals, restored.path) == (CLOCKS, (), path)


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path, keep=2).save(parts(), CLOCKS, "me")
    theirs = load_file(path / "replay.safetensors")
    for key, array in parts()["replay"].arrays.items():
        np.testing.assert_array_equal(theirs[key], array)


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "absent", keep=2).load_newest("me") is None


def small() -> dict[str, State]:
    return {"a": State({"x": np.arange(5, dtype=np.int64), "f": np.array([1.5])}, {"n": 1, "t": "text"})}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CheckpointStore(tmp_path_factory.mktemp("sound"), keep=2).save(small(), CLOCKS, "me")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flip_or_cut_is_refused_or_harmless(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "fuzz"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder / sound.name)
    file = data.draw(st.sampled_from(sorted((folder / sound.name).iterdir())))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    file.write_bytes(bytes(content))
    try:
        restored = CheckpointStore(folder, keep=2).load_newest("me")
    except CheckpointRefused as refused:
        named = str(refused)
    else:
        named = sound.name
        assert restored is not None
        assert_equal(restored.parts, small())
        assert restored.clocks == CLOCKS
    assert sound.name in named


def test_a_broken_checkpoint_gives_way_to_its_predecessor(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2, 3):
        newest = store.save({"a": State({"x": np.array(step)}, {})}, Clocks(real_step=step), "me")
    (newest / "a.safetensors").unlink()
    (tmp_path / "step-0000000002" / "manifest.json").write_bytes(b"")
    restored = store.load_newest("me")
    assert restored is not None
    assert int(restored.parts["a"].arrays["x"]) == 1
    assert [(r.name, r.reason) for r in restored.refusals] == [
        ("step-0000000003", "a.safetensors is missing"),
        ("step-0000000002", "its manifest is damaged (JSONDecodeError)"),
    ]


def test_foreign_and_newer_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(small(), Clocks(real_step=1), "somebody else")
    newer = store.save(small(), Clocks(real_step=2), "me") / "manifest.json"
    manifest = json.loads(newer.read_bytes()) | {"schema": 2}
    del manifest["sha256"]
    newer.write_text(canonical_json({**manifest, "sha256": canonical_hash(manifest)}))
    with pytest.raises(CheckpointRefused) as refused:
        store.load_newest("me")
    assert "step-0000000002: it has schema 2" in str(refused.value)
    assert "step-0000000001: it belongs to another run (somebody else)" in str(refused.value)


def test_retention_counts_only_sound_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    paths = [store.save(small(), Clocks(real_step=step), "me") for step in (1, 2)]
    (paths[1] / "a.safetensors").write_bytes(b"short")
    store.save(small(), Clocks(real_step=3), "me")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-000000000{n}" for n in (1, 2, 3)]
    store.save(small(), Clocks(real_step=4), "me")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000003", "step-0000000004"]


def test_a_refused_newer_checkpoint_does_not_displace_the_new_line(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20):
        broken = store.save(small(), Clocks(real_step=step), "me")
    content = bytearray((broken / "a.safetensors").read_bytes())
    content[-1] ^= 1
    (broken / "a.safetensors").write_bytes(bytes(content))
    for step in (15, 20):
        restored = store.load_newest("me")
        assert restored is not None
        assert restored.clocks.real_step == (10 if step == 15 else 15)
        newest = store.save(small(), Clocks(real_step=step), "me")
    assert newest.name == "step-0000000020.2"
    restored = store.load_newest("me")
    assert restored is not None
    assert restored.path == newest
    store.save(small(), Clocks(real_step=30), "me")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000020.2", "step-0000000030"]


def test_a_failed_save_leaves_the_old_ones_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(small(), CLOCKS, "me")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_tensors", full)
    with pytest.raises(StorageError, match="Free disk space"):
        store.save(small(), CLOCKS.tick(real_step=1), "me")
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001234"]


@pytest.mark.parametrize(
    ("state", "place"),
    [
        (State({"x": np.array(["text"])}, {}), "a/x"),
        (State({"__metadata__": np.array(1)}, {}), "a/__metadata__"),
        (State({}, {"inner": {1: 2}}), "a.inner"),
        (State({}, {"list": [1, {2}]}), r"a.list\[1\]"),
    ],
)
def test_what_cannot_be_represented_is_named(tmp_path: Path, state: State, place: str) -> None:
    with pytest.raises(StorageError, match=place):
        CheckpointStore(tmp_path, keep=2).save({"a": state}, CLOCKS, "me")
    assert list(tmp_path.iterdir()) == []


def test_a_part_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names its file"):
        CheckpointStore(tmp_path, keep=2).save({"../a": State({}, {})}, CLOCKS, "me")
