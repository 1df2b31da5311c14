"""Tables of embeddings, written in pieces: Parquet, CSV, and `.npy` with its rows in a CSV beside it.

In Parquet `embedding` is a list of a fixed number of float32, and the model and how it pools stand in the metadata of
the schema under `tymbal`, so that a search embeds its example alike.
"""

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
from tymbal.files import replace_file
from tymbal.inference.pieces import PIECE

__all__ = [
    "EmbeddingFormat",
    "embedding_format",
    "open_embeddings",
    "read_embeddings",
    "read_record",
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
        told = schema.with_metadata({_KEY: json.dumps(record).encode()})
        with replace_file(path) as aside, pq.ParquetWriter(aside, told, compression="zstd") as writer:
            yield from _gathered(writer, told)
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
    found: NDArray[np.float32] = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return found


def read_record(path: Path) -> dict[str, Any]:
    """What decided the embeddings of a Parquet file.

    Raises:
        StoreError: It is not there, or no file of `tymbal embed`.
    """
    advice = "Give a .parquet file of tymbal embed."
    if not path.is_file():
        raise StoreError("there is no such file of embeddings", path=path, advice=advice)
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        raise StoreError("this is no Parquet file", path=path, advice=advice) from None
    told = (schema.metadata or {}).get(_KEY)
    if told is None or COLUMN not in schema.names:
        raise StoreError("these are no embeddings of tymbal embed", path=path, advice=advice)
    record: dict[str, Any] = json.loads(told)
    return record


def read_embeddings(path: Path) -> Iterator[pa.RecordBatch]:
    """The embeddings of a Parquet file in pieces."""
    with pq.ParquetFile(path) as file:
        size = file.schema_arrow.field(COLUMN).type.list_size
        yield from file.iter_batches(batch_size=max(1, PIECE // (4 * size)), columns=[COLUMN])


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
        if size >= PIECE:
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
