"""Tables of embeddings, written in pieces and read back, and the nearest neighbours in them."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.errors import SettingsError, StoreError
from tymbal.files import replace_file, write_json
from tymbal.inference.spool import CHUNK_BYTES
from tymbal.progress import Progress

__all__ = [
    "EmbeddingFormat",
    "embedding_format",
    "nearest_approximately",
    "nearest_exactly",
    "open_embeddings",
    "read_embeddings",
    "read_record",
    "rows_of",
    "rows_path",
    "vectors",
]

EmbeddingFormat = Literal["parquet", "csv", "npy"]

COLUMN = "embedding"
_FORMATS: dict[str, EmbeddingFormat] = {".parquet": "parquet", ".csv": "csv", ".npy": "npy"}
_KEY = b"tymbal"
_HEADER = 128  # bytes; numpy leaves room for any number of rows


def embedding_format(output: Path, chosen: EmbeddingFormat | None) -> EmbeddingFormat:
    """What is to be written: what was chosen, or what the ending tells.

    Raises:
        SettingsError: It tells nothing.
    """
    kind = chosen or _FORMATS.get(output.suffix.lower())
    if kind is None:
        raise SettingsError(
            "the output's name does not tell its format", path=output, advice="End it in .parquet, .csv or .npy."
        )
    if output.is_dir():
        raise SettingsError(f"is a folder, and {kind} is one file", path=output, advice="Name a file.")
    return kind


def rows_path(output: Path) -> Path:
    """Where it stands which row of an `.npy` file is what."""
    return output.with_name(f"{output.stem}.rows.csv")


@contextlib.contextmanager
def open_embeddings(
    path: Path, kind: EmbeddingFormat, schema: pa.Schema, record: Mapping[str, Any]
) -> Iterator[Callable[[pa.Table], None]]:
    """Yields a function that writes rows; the file appears, whole, when all are written.

    Args:
        path: The file.
        kind: Its format.
        schema: Columns, among them `embedding`, a list of a fixed number of float32.
        record: What decides the embeddings.
    """
    if kind == "parquet":
        described = schema.with_metadata({_KEY: json.dumps(record).encode()})
        with replace_file(path) as aside, pq.ParquetWriter(aside, described, compression="zstd") as writer:
            yield from _gathered(writer, described)
    elif kind == "csv":
        size = schema.field(COLUMN).type.list_size
        with _csv(path, [*_others(schema), *(f"{COLUMN}_{i}" for i in range(size))]) as writer:
            yield lambda rows: writer.writerows(
                [*cells, *(f"{value:.7g}" for value in vector)]
                for cells, vector in zip(_cells(rows), vectors(rows), strict=True)
            )
    else:
        with _npy(path, schema.field(COLUMN).type.list_size) as add, _csv(rows_path(path), _others(schema)) as writer:

            def write(rows: pa.Table) -> None:
                add(vectors(rows))
                writer.writerows(_cells(rows))

            yield write


def vectors(rows: pa.Table | pa.RecordBatch) -> NDArray[np.float32]:
    """The embeddings of a table, [rows, dimensions]."""
    column = rows.column(COLUMN)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: NDArray[np.float32] = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return values


def read_record(path: Path) -> dict[str, Any]:
    """What decided the embeddings of a Parquet file.

    Raises:
        StoreError: It does not exist, or `tymbal embed` did not write it.
    """
    advice = "Give a .parquet file of tymbal embed."
    if not path.is_file():
        raise StoreError("there is no such file of embeddings", path=path, advice=advice)
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        raise StoreError("this is no Parquet file", path=path, advice=advice) from None
    recorded = (schema.metadata or {}).get(_KEY)
    if recorded is None or COLUMN not in schema.names:
        raise StoreError("these are no embeddings of tymbal embed", path=path, advice=advice)
    record: dict[str, Any] = json.loads(recorded)
    return record


def read_embeddings(path: Path) -> Iterator[pa.RecordBatch]:
    """The embeddings of a Parquet file in pieces."""
    with pq.ParquetFile(path) as file:
        size = file.schema_arrow.field(COLUMN).type.list_size
        yield from file.iter_batches(batch_size=max(1, CHUNK_BYTES // (4 * size)), columns=[COLUMN])


def _gathered(writer: pq.ParquetWriter, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes many small tables as few row groups: a short recording has one row."""
    held: list[pa.Table] = []
    size = 0

    def flush() -> None:
        nonlocal size
        if held:
            writer.write_table(pa.concat_tables(held).cast(schema))
        held.clear()
        size = 0

    def write(rows: pa.Table) -> None:
        nonlocal size
        held.append(rows)
        size += rows.nbytes
        if size >= CHUNK_BYTES:
            flush()

    yield write
    flush()


def _others(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name != COLUMN]


def _cells(rows: pa.Table) -> Iterator[list[Any]]:
    columns = [rows.column(name).to_pylist() for name in _others(rows.schema)]
    for row in zip(*columns, strict=True):
        yield ["" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]


@contextlib.contextmanager
def _csv(path: Path, header: list[str]) -> Iterator[Any]:
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer


@contextlib.contextmanager
def _npy(path: Path, size: int) -> Iterator[Callable[[NDArray[np.float32]], None]]:
    count = 0
    with replace_file(path) as aside, aside.open("wb") as file:
        file.write(bytes(_HEADER))

        def add(values: NDArray[np.float32]) -> None:
            nonlocal count
            count += len(values)
            file.write(np.ascontiguousarray(values, "<f4").tobytes())

        yield add
        file.seek(0)
        shape = {"descr": "<f4", "fortran_order": False, "shape": (count, size)}
        np.lib.format.write_array_header_1_0(file, shape)
        if file.tell() != _HEADER:
            raise ValueError(f"numpy wrote a header of {file.tell()} bytes")


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
    try:
        from usearch.index import Index
    except ImportError:
        raise SettingsError(
            "approximate search needs usearch, which is not installed",
            advice="Install it (pip install 'tymbal[search]'), or search exactly: leave --approximate out.",
        ) from None
    saved, facts = path.with_name(f"{path.name}.usearch"), path.with_name(f"{path.name}.usearch.json")
    stamp = {"size": path.stat().st_size, "changed": path.stat().st_mtime_ns, "embeddings": read_record(path)}
    if not (saved.is_file() and facts.is_file() and json.loads(facts.read_text(encoding="utf-8")) == stamp):
        facts.unlink(missing_ok=True)
        _build(Index, path, saved, dimensions=len(query))
        write_json(facts, stamp)
    index = Index(ndim=len(query), metric="cos", dtype="f32")
    index.view(str(saved))
    matches = index.search(_unit(query), top)
    return np.asarray(matches.keys, np.int64), (1 - np.asarray(matches.distances)).astype(np.float32)


def rows_of(path: Path, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
    """What the rows of a file of embeddings are, in the order asked for; the embeddings themselves are not read."""
    columns = [name for name in pq.read_schema(path).names if name != COLUMN]
    by_row: dict[int, dict[str, Any]] = {}
    ordered = np.sort(rows)
    first = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=columns):
            inside = ordered[(ordered >= first) & (ordered < first + batch.num_rows)]
            if len(inside):
                by_row.update(zip(inside.tolist(), batch.take(pa.array(inside - first)).to_pylist(), strict=True))
            first += batch.num_rows
    return [by_row[row] for row in rows.tolist()]


def _build(kind: Any, path: Path, output: Path, *, dimensions: int) -> None:
    index = kind(ndim=dimensions, metric="cos", dtype="f32")
    first = 0
    with pq.ParquetFile(path) as file:
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
