"""Sample pages on disk: the worst disagreements come first, and what was written is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxygap.base.errors import StorageError
from proxygap.record.samples import read_samples, write_samples

PROXY = np.array([1.0, 4.0, 2.0, 3.0], np.float32)
GOLD = np.array([0.5, -2.0, 0.0, 9.0])
SCORES = np.array([[1.0, 4.0, 2.0, 3.0], [0.5, 4.5, 1.0, 2.0]], np.float32)


def write(path: Path, proxy: Any = PROXY, gold: Any = GOLD) -> None:
    rows = len(proxy)
    texts = [(f"p{row}", f"answer {row}\n<b>&") for row in range(rows)]
    write_samples(
        path,
        texts=texts,
        proxy_B=np.asarray(proxy),
        gold_B=np.asarray(gold),
        scores_MB=SCORES[:, :1].repeat(rows, axis=1) if rows != 4 else SCORES,
        styles={"length": np.arange(rows)},
    )


def test_rows_are_whole_and_the_worst_disagreement_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "samples.parquet")
    rows = read_samples(tmp_path / "samples.parquet")
    # ranks by proxy 0 3 1 2 and by gold 2 0 1 3, over 3
    assert [row["prompt"] for row in rows] == ["p1", "p2", "p3", "p0"]
    assert [row["rank_surplus"] for row in rows] == pytest.approx([1, 0, -1 / 3, -2 / 3])
    assert rows[0] == {
        "prompt": "p1",
        "answer": "answer 1\n<b>&",
        "proxy_reward": 4.0,
        "gold_reward": -2.0,
        "rank_surplus": 1.0,
        "member_scores": [4.0, 4.5],
        "style_length": 1.0,
    }


def test_ties_share_a_rank_and_keep_their_order(tmp_path: Path) -> None:
    write(tmp_path / "s", proxy=[5.0, 5.0, 5.0], gold=[1.0, 2.0, 3.0])
    rows = read_samples(tmp_path / "s")
    assert [row["rank_surplus"] for row in rows] == [0.5, 0.0, -0.5]
    write(tmp_path / "s", proxy=[5.0, 5.0, 5.0], gold=[7.0, 7.0, 7.0])
    assert [row["prompt"] for row in read_samples(tmp_path / "s")] == ["p0", "p1", "p2"]


def test_a_number_that_is_not_finite_has_no_rank_and_takes_none(tmp_path: Path) -> None:
    write(tmp_path / "s", proxy=[math.nan, 1.0, 3.0, 2.0, math.inf], gold=[0.0, 4.0, 1.0, 2.0, 3.0])
    rows = read_samples(tmp_path / "s")
    assert [row["prompt"] for row in rows] == ["p2", "p3", "p1", "p0", "p4"]
    # finite proxies have ranks 0 2 1 over 2, gold of the same rows 4 1 2 over 4
    assert [row["rank_surplus"] for row in rows[:3]] == [0.75, 0.0, -1.0]
    assert all(math.isnan(row["rank_surplus"]) for row in rows[3:])  # type: ignore[arg-type]


def test_one_answer_disagrees_with_none(tmp_path: Path) -> None:
    write(tmp_path / "s", proxy=[5.0], gold=[-1.0])
    assert read_samples(tmp_path / "s")[0]["rank_surplus"] == 0.0


def test_a_run_that_kept_none_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path / "absent.parquet") == []


@pytest.mark.parametrize("content", [b"", b"not parquet at all", "truncated"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "samples.parquet"
    write(path)
    path.write_bytes(path.read_bytes()[:-40] if isinstance(content, str) else content)
    with pytest.raises(StorageError, match="not a sound parquet file") as caught:
        read_samples(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="absent"):
        write(tmp_path / "absent" / "samples.parquet")
