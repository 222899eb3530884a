"""Answers kept for a reader: prompt, answer, what the proxy and the gold reward say of it, member by member.

Shape legend: B answers, M members.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import rankdata

from proxygap.base.errors import StorageError
from proxygap.record.folder import storage_errors, write_atomically

Float = NDArray[np.floating]


def write_samples(
    path: Path,
    *,
    texts: Sequence[tuple[str, str]],
    proxy_B: Float,
    gold_B: Float,
    scores_MB: Float,
    styles: Mapping[str, Float],
) -> None:
    """Write answers as parquet, the worst disagreements first.

    Args:
        path: of the file, which is replaced.
        texts: (prompt, answer) of each row.
        proxy_B: judged reward.
        gold_B: gold reward.
        scores_MB: what each member says.
        styles: statistics of style by name, (B,) each; a column ``style_NAME`` each.

    ``rank_surplus`` is the rank by proxy minus the rank by gold, both from 0 to 1 and the mean of ties: 1 is best by
    proxy and worst by gold. It is NaN, and the row among the last, where a side is.

    Raises:
        StorageError: not writable.
    """
    surplus_B = _rank(proxy_B) - _rank(gold_B)
    order = np.argsort(-surplus_B, kind="stable")  # NaN goes last
    columns = {
        "prompt": [texts[row][0] for row in order],
        "answer": [texts[row][1] for row in order],
        "proxy_reward": np.asarray(proxy_B, np.float64)[order],
        "gold_reward": np.asarray(gold_B, np.float64)[order],
        "rank_surplus": surplus_B[order],
        "member_scores": [np.asarray(scores_MB[:, row], np.float64).tolist() for row in order],
        **{f"style_{name}": np.asarray(values, np.float64)[order] for name, values in styles.items()},
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_atomically(path, buffer.getvalue())


def read_samples(path: Path) -> list[dict[str, object]]:
    """Rows as they were written; none where the run has kept none. Raises StorageError for a damaged file."""
    if not path.exists():
        return []
    with storage_errors(path):
        try:
            rows: list[dict[str, object]] = pq.read_table(path).to_pylist()
        except pa.ArrowException as error:
            remedy = "Delete it: the report is made without its sample page"
            raise StorageError("not a sound parquet file", field=str(path), remedy=remedy) from error
    return rows


def _rank(values_B: Float) -> Float:
    """Ranks from 0 to 1 among the finite values; NaN elsewhere."""
    finite_B = np.where(np.isfinite(values_B), values_B, np.nan)
    ranked_B: Float = (rankdata(finite_B, nan_policy="omit") - 1) / max(1, int(np.isfinite(finite_B).sum()) - 1)
    return ranked_B
