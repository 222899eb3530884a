"""Datasets are read and written by URI as by path: the same bits, the same hashes, the same refusals.

The S3-compatible server is moto's (see `tests.record.s3`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from proxygap.base.errors import InvalidDataset, InvalidExperiment, StorageError
from proxygap.base.filesystems import place_of
from proxygap.base.language import ItemSpec, Preferences
from proxygap.base.records import Transitions
from proxygap.collect.episodes import read_episodes, write_episodes
from proxygap.collect.labels.dataset import read_preferences, read_provenance, write_preferences
from proxygap.collect.tables import table_hash
from tests.record.s3 import SECRET, S3Server, root, s3

__all__ = ["root", "s3"]

SPEC = ItemSpec(vocabulary=9, pad_token=0, prompt_length=2, max_tokens=3)


def transitions(count: int = 50) -> Transitions:
    rng = np.random.default_rng(0)
    return Transitions(
        obs_BO=rng.standard_normal((count, 3), np.float32),
        action_BA=rng.uniform(-1, 1, (count, 1)).astype(np.float32),
        outcome_reward_B=rng.standard_normal(count, np.float32),
        next_obs_BO=rng.standard_normal((count, 3), np.float32),
        terminated_B=np.zeros(count, bool),
        truncated_B=np.zeros(count, bool),
        episode_B=np.zeros(count, np.int64),
        step_B=np.arange(count, dtype=np.int64),
        component_reward_BR=np.empty((count, 0), np.float32),
    )


def pairs() -> Preferences:
    prompt_L, token_NT = np.array([[1, 2]]), np.array([[3, 4, 5], [6, 7, 8]])
    sides = [
        {
            "prompt": np.zeros(2, np.int64),
            "prompt_token": np.repeat(prompt_L, 2, axis=0),
            "token": tokens,
            "length": np.full(2, 3),
        }
        for tokens in (token_NT, token_NT[:, ::-1].copy())
    ]
    none = np.full(2, np.nan, np.float32)
    return Preferences(
        *sides,
        tie_N=np.zeros(2, bool),
        strength_N=np.ones(2, np.float32),
        annotator_N=np.array([0, 1]),
        chosen_rating_N=none,
        rejected_rating_N=none,
    )


def test_what_is_written_by_uri_is_read_by_uri_and_by_path(root: str, tmp_path: Path) -> None:
    rows, labels = transitions(), pairs()
    episodes, preferences = (place_of(root).below("deep", name) for name in ("episodes.parquet", "pairs.parquet"))
    assert write_episodes(episodes.uri, rows, {"task": "x"}) == rows.content_hash
    found, provenance = read_episodes(episodes.uri)
    assert (found.content_hash, provenance) == (rows.content_hash, {"task": "x"})
    write_preferences(preferences.uri, labels, {"labels": "y"})
    assert read_provenance(preferences.uri) == {"labels": "y"}
    there = read_preferences(preferences.uri, SPEC)
    preferences.download(tmp_path / "pairs")
    episodes.download(tmp_path / "episodes")
    here = read_preferences(tmp_path / "pairs", SPEC)
    for side in ("chosen", "rejected"):
        for name, column in getattr(labels, side).items():
            assert np.array_equal(getattr(there, side)[name], column)
            assert np.array_equal(getattr(here, side)[name], column)
    assert read_episodes(tmp_path / "episodes")[0].content_hash == rows.content_hash
    written = hashlib.sha256((tmp_path / "pairs").read_bytes()).hexdigest()
    assert table_hash(preferences.uri) == table_hash(tmp_path / "pairs") == written


def test_damage_is_found_at_a_uri_as_on_a_disk(root: str) -> None:
    place = place_of(root).below("pairs.parquet")
    write_preferences(place.uri, pairs(), {})
    content = place.read()
    assert content is not None
    for damaged, told in ((content[:-9], "cannot be read as parquet"), (b"", "cannot be read as parquet")):
        place.write(damaged)
        with pytest.raises(InvalidDataset, match=told) as caught:
            read_preferences(place.uri, SPEC)
        assert caught.value.field == place.uri
        with pytest.raises(InvalidDataset, match=told):
            read_episodes(place.uri)
    write_episodes(place.uri, transitions(), {})
    with pytest.raises(InvalidDataset, match=r"column is missing|something else|metadata"):
        read_preferences(place.uri, SPEC)
    absent = place_of(root).below("absent.parquet").uri
    for read in (lambda: read_episodes(absent), lambda: read_preferences(absent, SPEC)):
        with pytest.raises(InvalidDataset, match="there is no such file"):
            read()


def test_uris_that_lead_nowhere_are_refused(s3: S3Server) -> None:
    for uri, error, told in (
        (f"s3://id:{SECRET}@bucket/x", InvalidExperiment, "does not carry credentials"),
        ("ftp://host/x", InvalidExperiment, "no filesystem takes ftp://"),
    ):
        with pytest.raises(error, match=told) as caught:
            read_episodes(uri)
        assert SECRET not in str(caught.value)
        with pytest.raises(error, match=told):
            read_preferences(uri, SPEC)
        with pytest.raises(error, match=told):
            write_episodes(uri, transitions(), {})
    with pytest.raises(StorageError, match=r"cannot write preferences.*Create the bucket"):
        write_preferences(s3.uri("x", bucket="elsewhere"), pairs(), {})
