"""Nearest neighbours among embeddings in a file, by cosine similarity: exact, or through an index that is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.errors import SettingsError
from tymbal.files import replace_file, write_json
from tymbal.inference.embeddings import COLUMN, read_embeddings, read_record, vectors
from tymbal.progress import Progress

__all__ = ["nearest_approximately", "nearest_exactly", "rows_of"]

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


def nearest_exactly(path: Path, query: NDArray[np.float32], top: int) -> Found:
    """Compares a query with every embedding of a file, which is read in pieces.

    Args:
        path: Parquet file of `tymbal embed`.
        query: [dimensions].
        top: How many are wanted.

    Returns:
        Row numbers, nearest first, and their cosine similarities.
    """
    wanted = _unit(query)
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for batch in read_embeddings(path):
        values = vectors(batch)
        length = np.linalg.norm(values, axis=1)
        found = (values @ wanted) / np.maximum(length, np.finfo(np.float32).tiny)
        rows = np.concatenate([rows, np.arange(first, first + len(found))])
        scores = np.concatenate([scores, found])
        best = np.argsort(-scores, kind="stable")[:top]
        rows, scores = rows[best], scores[best]
        first += len(found)
    return rows, scores


def nearest_approximately(path: Path, query: NDArray[np.float32], top: int) -> Found:
    """As `nearest_exactly`, through an index (HNSW, Malkov and Yashunin 2018) that is kept in `FILE.usearch`.

    It is made at the first search and again when the file has changed.

    Raises:
        SettingsError: The extra `search` is not installed.
    """
    try:
        from usearch.index import Index
    except ImportError:
        raise SettingsError(
            "approximate search needs usearch, which is not installed",
            advice="Install it (pip install 'tymbal[search]'), or search exactly: leave --approximate out.",
        ) from None
    kept, told = path.with_name(f"{path.name}.usearch"), path.with_name(f"{path.name}.usearch.json")
    stamp = {"size": path.stat().st_size, "changed": path.stat().st_mtime_ns, "embeddings": read_record(path)}
    if not (kept.is_file() and told.is_file() and json.loads(told.read_text(encoding="utf-8")) == stamp):
        told.unlink(missing_ok=True)
        _build(Index, path, kept, dimensions=len(query))
        write_json(told, stamp)
    index = Index(ndim=len(query), metric="cos", dtype="f32")
    index.view(str(kept))
    matches = index.search(_unit(query), top)
    return np.asarray(matches.keys, np.int64), (1 - np.asarray(matches.distances)).astype(np.float32)


def rows_of(path: Path, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """What the rows of a file of embeddings are, in the order asked for; the embeddings themselves are not read."""
    columns = [name for name in pq.read_schema(path).names if name != COLUMN]
    found: dict[int, dict[str, Any]] = {}
    wanted = np.sort(rows)
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            inside = wanted[(wanted >= first) & (wanted < first + batch.num_rows)]
            if len(inside):
                found.update(zip(inside.tolist(), batch.take(pa.array(inside - first)).to_pylist(), strict=True))
            first += batch.num_rows
    return [found[row] for row in rows.tolist()]


def _build(kind: Any, path: Path, kept: Path, *, dimensions: int) -> None:
    index = kind(ndim=dimensions, metric="cos", dtype="f32")
    first = 0
    with pq.ParquetFile(path) as file:
        count = file.metadata.num_rows
    with Progress(count, "Indexing", unit="embeddings") as progress:
        for batch in read_embeddings(path):
            index.add(np.arange(first, first + batch.num_rows), np.ascontiguousarray(vectors(batch)))
            first += batch.num_rows
            progress.advance(batch.num_rows)
    with replace_file(kept) as aside:
        index.save(str(aside))


def _unit(query: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(query)
    return (query / max(length, np.finfo(np.float32).tiny)).astype(np.float32)
