"""Tables of embeddings, read in pieces, and the nearest neighbours in them.

In Parquet `embedding` is a list of a fixed number of float32, and the model and how it pools stand in the metadata of
the schema under `tymbal`, so that a search embeds its example alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.errors import SettingsError, StoreError
from tymbal.files import parse_json, read_json, replace_file, write_json
from tymbal.inference.spool import CHUNK_BYTES
from tymbal.inference.tables import EMBEDDING, RECORD_KEY, vectors
from tymbal.progress import Progress

__all__ = [
    "index_of",
    "nearest_approximately",
    "nearest_exactly",
    "read_embeddings",
    "read_record",
    "read_rows",
    "rows_of",
    "stamp_of",
]


def read_record(path: Path) -> dict[str, Any]:
    """Reads the record in a Parquet file of embeddings: everything that decided their values.

    Raises:
        StoreError: It does not exist, or `tymbal embed` did not write it.
    """
    advice = "Give a .parquet file of tymbal embed."
    if not path.is_file():
        raise StoreError("there is no such file of embeddings", path=path, advice=advice)
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        raise StoreError("this is no Parquet file", path=path, advice=advice) from None
    recorded = (schema.metadata or {}).get(RECORD_KEY)
    if recorded is None or EMBEDDING not in schema.names:
        raise StoreError("these are no embeddings of tymbal embed", path=path, advice=advice)
    try:
        return dict(parse_json(recorded))
    except (TypeError, ValueError) as error:
        raise StoreError(f"is damaged: {error}", path=path, advice="Embed again.") from None


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file whose checksums are compared as it is read; those of earlier versions have none."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        what = str(error).splitlines()[0]
        raise StoreError(f"is damaged, or cannot be read: {what}", path=path, advice="Embed again.") from None


def read_embeddings(path: Path, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The embeddings of a Parquet file in pieces, with further columns beside them.

    Raises:
        StoreError: They are not what was written.
    """
    with _opened(path) as file:
        yield from _pieces(file, columns)


def read_rows(
    path: Path, rows: NDArray[np.int64], columns: Sequence[str] = ()
) -> Iterator[tuple[NDArray[np.int64], pa.RecordBatch]]:
    """Some rows of a Parquet file of embeddings, in pieces: their numbers, and their embeddings and further columns.

    Only the groups of rows in which one of them lies are read.

    Args:
        path: The file.
        rows: Ascending numbers of rows.
        columns: Further columns.

    Raises:
        StoreError: They are not what was written.
    """
    with _opened(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        for group in np.unique(np.searchsorted(ends, rows, side="right")).tolist():
            first = int(ends[group]) - sizes[group]
            for batch in _pieces(file, columns, group):
                inside = rows[(rows >= first) & (rows < first + batch.num_rows)]
                if len(inside):
                    yield inside, batch if len(inside) == batch.num_rows else batch.take(pa.array(inside - first))
                first += batch.num_rows


def _pieces(file: pq.ParquetFile, columns: Sequence[str], group: int | None = None) -> Iterator[pa.RecordBatch]:
    size = max(1, CHUNK_BYTES // (4 * file.schema_arrow.field(EMBEDDING).type.list_size))
    groups = None if group is None else [group]
    yield from file.iter_batches(batch_size=size, row_groups=groups, columns=[*columns, EMBEDDING])


Neighbours = tuple[NDArray[np.int64], NDArray[np.float32]]


def nearest_exactly(path: Path, query: NDArray[np.float32], top: int) -> Neighbours:
    """Compares a query with every embedding of a file, which is read in pieces.

    Args:
        path: Parquet file of `tymbal embed`.
        query: [dimensions].
        top: How many to find.

    Returns:
        Row numbers, nearest first, and their cosine similarities.
    """
    direction = _unit(query)
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    first = 0
    for batch in read_embeddings(path):
        values = vectors(batch)
        length = np.linalg.norm(values, axis=1)
        cosines = (values @ direction) / np.maximum(length, np.finfo(np.float32).tiny)
        rows = np.concatenate([rows, np.arange(first, first + len(cosines))])
        scores = np.concatenate([scores, cosines])
        best = np.argsort(-scores, kind="stable")[:top]
        rows, scores = rows[best], scores[best]
        first += len(cosines)
    return rows, scores


def nearest_approximately(path: Path, query: NDArray[np.float32], top: int) -> Neighbours:
    """As `nearest_exactly`, through an index (HNSW, Malkov and Yashunin 2018) saved in `FILE.usearch`.

    It is made at the first search and again when the file has changed.

    Raises:
        SettingsError: The extra `search` is not installed.
    """
    index = index_of(path)
    matches = index.search(_unit(query), top)
    return np.asarray(matches.keys, np.int64), (1 - np.asarray(matches.distances)).astype(np.float32)


def index_of(path: Path) -> Any:
    """The index of a file of embeddings, as it lies on the disk; made where it is not there, or the file has changed.

    It holds them in 16 bits: half the memory and two thirds of the time of 32, and of 10,000 windows of 1,024 numbers
    the same 50 nearest.

    Raises:
        SettingsError: The extra `search` is not installed.
        StoreError: The embeddings cannot be read.
    """
    try:
        from usearch.index import Index
    except ImportError:
        raise SettingsError(
            "approximate search needs usearch, which is not installed",
            advice="Install it (pip install 'tymbal[search]'), or search exactly: leave --approximate out.",
        ) from None
    saved, facts = path.with_name(f"{path.name}.usearch"), path.with_name(f"{path.name}.usearch.json")
    stamp = {**stamp_of(path), "numbers": "f16"}
    with _opened(path) as file:
        dimensions = file.schema_arrow.field(EMBEDDING).type.list_size
    index = Index(ndim=dimensions, metric="cos", dtype="f16")
    if not (saved.is_file() and _is(facts, stamp)):
        facts.unlink(missing_ok=True)
        _build(index, path, saved)
        write_json(facts, stamp)
    index.view(str(saved))
    return index


def stamp_of(path: Path) -> dict[str, Any]:
    """What tells whether a file of embeddings is still the one that something was made of."""
    about = path.stat()
    return {"size": about.st_size, "changed": about.st_mtime_ns, "embeddings": read_record(path)}


def _is(path: Path, value: Any) -> bool:
    """Whether a JSON file holds a value."""
    try:
        return bool(read_json(path) == value)
    except (OSError, ValueError):
        return False


def rows_of(path: Path, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Describes the rows of a file of embeddings, in the requested order, without reading the embeddings themselves."""
    columns = [name for name in pq.read_schema(path).names if name != EMBEDDING]
    by_row: dict[int, dict[str, Any]] = {}
    ordered = np.sort(rows)
    first = 0
    with _opened(path) as file:
        for batch in file.iter_batches(columns=columns):
            inside = ordered[(ordered >= first) & (ordered < first + batch.num_rows)]
            if len(inside):
                by_row.update(zip(inside.tolist(), batch.take(pa.array(inside - first)).to_pylist(), strict=True))
            first += batch.num_rows
    return [by_row[row] for row in rows.tolist()]


def _build(index: Any, path: Path, output: Path) -> None:
    first = 0
    with _opened(path) as file:
        count = file.metadata.num_rows
    with Progress(count, "Indexing", unit="embeddings") as progress:
        for batch in read_embeddings(path):
            index.add(np.arange(first, first + batch.num_rows), np.ascontiguousarray(vectors(batch)))
            first += batch.num_rows
            progress.advance(batch.num_rows)
    with replace_file(output) as aside:
        index.save(str(aside))


def _unit(query: NDArray[np.float32]) -> NDArray[np.float32]:
    length = np.linalg.norm(query)
    return (query / max(length, np.finfo(np.float32).tiny)).astype(np.float32)
