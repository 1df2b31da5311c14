"""Tables that are written row by row, and read back: CSV, Parquet, JSON (an array, an object a line) and JSON lines.

with open_table(path, "csv", COLUMNS) as write:
    write(("a.wav", 0.0, 5.0, "robin", 0.93))
rows = read_rows(path)
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tymbal.errors import SettingsError
from tymbal.files import replace_file

__all__ = ["TABLES", "Kind", "TableFormat", "open_table", "read_rows"]

Kind = Literal["text", "seconds", "score", "count"]
TableFormat = Literal["csv", "parquet", "json", "jsonl"]

TABLES: tuple[TableFormat, ...] = ("csv", "parquet", "json", "jsonl")

_TYPES = {"text": pa.string(), "seconds": pa.float64(), "score": pa.float32(), "count": pa.int64()}
_DIGITS = {"seconds": 3, "score": 6}
_ROWS = 1 << 15  # rows of a row group, which is what is held in memory

Row = Sequence[Any]


@contextlib.contextmanager
def open_table(path: Path, kind: TableFormat, columns: Mapping[str, Kind]) -> Iterator[Callable[[Row], None]]:
    """Yields a function that writes a row; the file appears, whole, when all are written.

    Seconds have three digits and scores six in text, and are floating point in Parquet. None is an empty cell.

    Args:
        path: The file.
        kind: Its format.
        columns: Names of the columns and what is in them.
    """
    with replace_file(path) as aside:
        if kind == "parquet":
            with _parquet(aside, columns) as write:
                yield write
        else:
            with aside.open("w", encoding="utf-8", newline="") as file:
                if kind == "csv":
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(columns)
                    texts = [_TEXT[what] for what in columns.values()]
                    yield lambda row: writer.writerow([to(one) for to, one in zip(texts, row, strict=True)])
                else:
                    yield from _json(file, columns, lines=kind == "jsonl")


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, of the format that its ending names, as they were written: in CSV all is text.

    A JSON array is read as a whole, all else piece by piece.

    Raises:
        SettingsError: It is no such table, or broken; the message says where.
    """
    kind = path.suffix.lower().removeprefix(".")
    line = 0
    try:
        if kind == "parquet":
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches():
                    yield from batch.to_pylist()
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == "csv":
                yield from csv.DictReader(file)
            elif kind == "jsonl":
                for text in file:
                    line += 1
                    if text.strip():
                        yield _mapping(json.loads(text))
            else:
                found = json.load(file)
                for row in found if isinstance(found, list) else [found]:
                    yield _mapping(row)
    except (ValueError, csv.Error, pa.ArrowException) as error:
        where = f"line {line}: " if line else ""
        raise SettingsError(
            f"the table cannot be read: {where}{str(error).splitlines()[0]}", path=path, advice="Was it cut short?"
        ) from None
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path) from None


def _mapping(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("a row is no object with names")  # noqa: TRY004 - as JSON's own mistakes
    return row


@contextlib.contextmanager
def _parquet(path: Path, columns: Mapping[str, Kind]) -> Iterator[Callable[[Row], None]]:
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    rows: list[Row] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:

        def flush() -> None:
            held = zip(*rows, strict=True) if rows else [() for _ in columns]
            arrays = [pa.array(list(values), field.type) for values, field in zip(held, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            rows.clear()

        def write(row: Row) -> None:
            rows.append(row)
            if len(rows) == _ROWS:
                flush()

        yield write
        flush()


def _json(file: Any, columns: Mapping[str, Kind], *, lines: bool) -> Iterator[Callable[[Row], None]]:
    between = "" if lines else "[\n"

    def write(row: Row) -> None:
        nonlocal between
        values = {
            name: one if one is None or kind not in _DIGITS else round(float(one), _DIGITS[kind])
            for (name, kind), one in zip(columns.items(), row, strict=True)
        }
        file.write(between + json.dumps(values, ensure_ascii=False, allow_nan=False))
        between = "\n" if lines else ",\n"

    yield write
    if lines:
        file.write(between)
    else:
        file.write("\n]\n" if between != "[\n" else "[]\n")


def _plain(value: Any) -> Any:
    return "" if value is None else value


_TEXT: dict[Kind, Callable[[Any], Any]] = {
    "text": _plain,
    "count": _plain,
    "seconds": lambda value: f"{value:.3f}",
    "score": lambda value: f"{value:.6f}",
}
