"""Table formats: the contract that every one fulfils, and CSV, Parquet, JSON, JSON lines and NumPy's arrays.

A format is chosen by its name, or by the ending of the file that is to be written:

    with choose_format(path, None, RowFormat).open(path, COLUMNS) as write:
        write(("a.wav", 0.0, 5.0, "robin", 0.93))
    rows = read_rows(path, recognised(path))

A new one is a class derived from `RowFormat` (predictions, neighbours), from `EmbeddingFormat` or from both, and a line
in `tymbal.plugins`, or an entry point of another package.
"""

from __future__ import annotations

import contextlib
import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.kaleidoscope import is_kaleidoscope
from tymbal.errors import SettingsError
from tymbal.files import parse_json, replace_file
from tymbal.inference.spool import CHUNK_BYTES
from tymbal.plugins import TABLE_FORMATS

__all__ = [
    "EMBEDDING",
    "RECORD_KEY",
    "Csv",
    "EmbeddingFormat",
    "Json",
    "JsonLines",
    "Kind",
    "Npy",
    "Parquet",
    "RowFormat",
    "TableFormat",
    "Write",
    "choose_format",
    "endings",
    "format_of",
    "formats",
    "has_kaleidoscope_columns",
    "read_rows",
    "recognised",
    "table_format",
    "vectors",
]

Kind = Literal["text", "seconds", "hertz", "score", "count"]
"""What is in a column; None is an empty cell of any."""

Row = Sequence[Any]
Write = Callable[[Row], None]

EMBEDDING = "embedding"
"""The column of embeddings, a list of a fixed number of float32."""

RECORD_KEY = b"tymbal"
"""Where the metadata of a Parquet file say what decided its embeddings."""

_DIGITS: dict[Kind, int] = {"seconds": 3, "hertz": 1, "score": 6}
_TYPES = {
    "text": pa.string(),
    "seconds": pa.float64(),
    "hertz": pa.float64(),
    "score": pa.float32(),
    "count": pa.int64(),
}
_ROWS = 1 << 15  # rows of a row group, which is what is held in memory
_HEADER = 128  # bytes; numpy leaves room for any number of rows


class TableFormat(ABC):
    """The properties that all formats declare.

    Attributes:
        name: Its name for `--format`.
        suffixes: Endings of its files, with the dot; the first is that of files which are named for the user.
        per_recording: Whether each recording has a file of its own, in a folder.
        detections_only: Whether it lists what was detected, and not every window.
        holds: Its contents, for messages.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    per_recording: ClassVar[bool] = False
    detections_only: ClassVar[bool] = False
    holds: ClassVar[str]

    def fits(self, path: Path) -> bool:
        """Whether a file has a name of this format."""
        return path.name.lower().endswith(self.suffixes)


class RowFormat(TableFormat):
    """A format of rows with named columns."""

    holds = "rows"

    @abstractmethod
    def open(self, path: Path, columns: Mapping[str, Kind]) -> AbstractContextManager[Write]:
        """Yields a function that writes a row; the file appears, whole, when the context ends without an error.

        Args:
            path: The file.
            columns: Names of the columns and what is in them.
        """

    @abstractmethod
    def read(self, path: Path) -> Iterator[Mapping[str, Any]]:
        """The rows of a file, by column.

        Raises:
            ValueError: It is broken; `read_rows` makes an error for users of this.
        """

    def recognises(self, path: Path) -> bool:
        """Whether an existing file is of this format; by its name, unless other formats share that."""
        return self.fits(path)


class EmbeddingFormat(TableFormat):
    """A format of embeddings, each with what it is of."""

    holds = "embeddings"

    @abstractmethod
    def open_embeddings(
        self, path: Path, schema: pa.Schema, record: Mapping[str, Any]
    ) -> AbstractContextManager[Callable[[pa.Table], None]]:
        """Yields a function that writes rows; the file appears, whole, when the context ends without an error.

        Args:
            path: The file.
            schema: Columns, among them `embedding`, a list of a fixed number of float32.
            record: Everything that decides the embeddings.
        """

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that are written."""
        return (path,)


Format = TypeVar("Format", bound=TableFormat)


def formats(kind: type[Format]) -> list[Format]:
    """All formats of a kind, Tymbal's first."""
    return [candidate for name in TABLE_FORMATS.names() if isinstance(candidate := TABLE_FORMATS.load(name)(), kind)]


def table_format(name: str, kind: type[Format]) -> Format:
    """The format of a name.

    Raises:
        SettingsError: The name is unknown, or the format holds something else.
    """
    chosen = TABLE_FORMATS.load(name)()
    if not isinstance(chosen, kind):
        known = ", ".join(candidate.name for candidate in formats(kind))
        raise SettingsError(f"format is {name!r}, which holds no {kind.holds}", advice=f"Set format to one of {known}.")
    return chosen


def format_of(path: Path, kind: type[Format]) -> Format | None:
    """The format of one file for all recordings that the ending of a name tells; None where it tells none."""
    return next(
        (candidate for candidate in formats(kind) if not candidate.per_recording and candidate.fits(path)), None
    )


def endings(kind: type[Format]) -> str:
    """The endings of files for all recordings, for messages: `.csv, .parquet or .npy`."""
    *most, last = dict.fromkeys(each.suffixes[0] for each in formats(kind) if not each.per_recording)
    return f"{', '.join(most)} or {last}"


def choose_format(output: Path, name: str | None, kind: type[Format]) -> Format:
    """Chooses the format to write: the named one, or else that of the output's ending.

    Raises:
        SettingsError: The name or the ending is of no format, or the output is a folder, which cannot hold it.
    """
    chosen = format_of(output, kind) if name is None else table_format(name, kind)
    if chosen is None:
        others = " or ".join(
            f"--format {each.name}" for each in formats(kind) if each.detections_only or each.per_recording
        )
        say = f", or say {others}" if others else ""
        raise SettingsError(
            "the output's name does not tell its format", path=output, advice=f"End it in {endings(kind)}{say}."
        )
    if output.is_dir() and not chosen.per_recording:
        raise SettingsError(f"is a folder, and {chosen.name} is one table", path=output, advice="Name a file.")
    return chosen


def recognised(path: Path) -> RowFormat | None:
    """The format of an existing file of rows; None if no format recognises it.

    Raises:
        SettingsError: The file cannot be read.
    """
    try:
        return next((candidate for candidate in formats(RowFormat) if candidate.recognises(path)), None)
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path) from None


def read_rows(path: Path, kind: RowFormat) -> Iterator[Mapping[str, Any]]:
    """The rows of a table as they were written; in CSV all is text.

    A JSON array is read as a whole, all else piece by piece.

    Args:
        path: The file.
        kind: Its format.

    Raises:
        SettingsError: It is no such table, or broken; the message says where.
    """
    try:
        yield from kind.read(path)
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise SettingsError(
            f"the table cannot be read: {str(error).splitlines()[0]}", path=path, advice="Was it cut short?"
        ) from None
    except OSError as error:
        raise SettingsError(error.strerror or str(error), path=path) from None


class Csv(RowFormat, EmbeddingFormat):
    """Comma-separated values; seconds have three digits, scores six. An embedding is a column a dimension."""

    name = "csv"
    suffixes = (".csv",)

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens a file for rows, see `RowFormat`."""
        texts = [_TEXT[kind] for kind in columns.values()]
        with _csv(path, columns) as writer:
            yield lambda row: writer.writerow([to(value) for to, value in zip(texts, row, strict=True)])

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads rows of texts."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from csv.DictReader(file)

    def recognises(self, path: Path) -> bool:
        """Whether it is a file of this name that other formats do not know by its columns."""
        return self.fits(path) and not has_kaleidoscope_columns(path)

    @contextlib.contextmanager
    def open_embeddings(
        self,
        path: Path,
        schema: pa.Schema,
        record: Mapping[str, Any],  # noqa: ARG002 - no place for it
    ) -> Iterator[Callable[[pa.Table], None]]:
        """Opens a file for embeddings, see `EmbeddingFormat`."""
        size = schema.field(EMBEDDING).type.list_size
        with _csv(path, [*_others(schema), *(f"{EMBEDDING}_{i}" for i in range(size))]) as writer:
            yield lambda rows: writer.writerows(
                [*cells, *(f"{value:.7g}" for value in vector)]
                for cells, vector in zip(_cells(rows), vectors(rows), strict=True)
            )


_PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}


class Parquet(RowFormat, EmbeddingFormat):
    """Apache Parquet, compressed with zstd; numbers are stored unrounded."""

    name = "parquet"
    suffixes = (".parquet",)

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens a file for rows, see `RowFormat`."""
        schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
        rows: list[Row] = []
        with replace_file(path) as aside, pq.ParquetWriter(aside, schema, **_PARQUET) as writer:

            def flush() -> None:
                transposed = zip(*rows, strict=True) if rows else [() for _ in columns]
                arrays = [pa.array(list(values), field.type) for values, field in zip(transposed, schema, strict=True)]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
                rows.clear()

            def write(row: Row) -> None:
                rows.append(row)
                if len(rows) == _ROWS:
                    flush()

            yield write
            flush()

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads rows, a row group at a time."""
        with pq.ParquetFile(path, page_checksum_verification=True) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()

    @contextlib.contextmanager
    def open_embeddings(
        self, path: Path, schema: pa.Schema, record: Mapping[str, Any]
    ) -> Iterator[Callable[[pa.Table], None]]:
        """Opens a file for embeddings, see `EmbeddingFormat`; the record stands in its metadata."""
        described = schema.with_metadata({RECORD_KEY: json.dumps(record).encode()})
        buffered: list[pa.Table] = []
        size = 0
        with replace_file(path) as aside, pq.ParquetWriter(aside, described, **_PARQUET) as writer:

            def flush() -> None:
                nonlocal size
                if buffered:
                    writer.write_table(pa.concat_tables(buffered).cast(described))
                buffered.clear()
                size = 0

            def write(rows: pa.Table) -> None:
                # Many small tables become few row groups: a short recording has one row.
                nonlocal size
                buffered.append(rows)
                size += rows.nbytes
                if size >= CHUNK_BYTES:
                    flush()

            yield write
            flush()


class Json(RowFormat):
    """A JSON array with an object a line."""

    name = "json"
    suffixes = (".json",)

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens a file for rows, see `RowFormat`."""
        with _text(path) as file:
            between = "[\n"

            def write(row: Row) -> None:
                nonlocal between
                file.write(between + _json_line(columns, row))
                between = ",\n"

            yield write
            file.write("[]\n" if between == "[\n" else "\n]\n")

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads an array of objects, or a single one."""
        with path.open(encoding="utf-8-sig", newline="") as file:
            content = parse_json(file.read())
        for row in content if isinstance(content, list) else [content]:
            yield _mapping(row)


class JsonLines(RowFormat):
    """A JSON object a line."""

    name = "jsonl"
    suffixes = (".jsonl",)

    @contextlib.contextmanager
    def open(self, path: Path, columns: Mapping[str, Kind]) -> Iterator[Write]:
        """Opens a file for rows, see `RowFormat`."""
        with _text(path) as file:

            def write(row: Row) -> None:
                file.write(_json_line(columns, row) + "\n")

            yield write

    def read(self, path: Path) -> Iterator[dict[str, Any]]:
        """Reads objects, a line at a time."""
        line = 0
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                for text in file:
                    line += 1
                    if text.strip():
                        yield _mapping(parse_json(text))
            except ValueError as error:
                raise ValueError(f"line {line}: {error}" if line else str(error)) from None


class Npy(EmbeddingFormat):
    """NumPy's array of float32 [rows, dimensions], and beside it a CSV file that says which row is what."""

    name = "npy"
    suffixes = (".npy",)

    @contextlib.contextmanager
    def open_embeddings(
        self,
        path: Path,
        schema: pa.Schema,
        record: Mapping[str, Any],  # noqa: ARG002 - no place for it
    ) -> Iterator[Callable[[pa.Table], None]]:
        """Opens the files for embeddings, see `EmbeddingFormat`."""
        count = 0
        with replace_file(path) as aside, aside.open("wb") as file, _csv(self.files(path)[1], _others(schema)) as rest:
            file.write(bytes(_HEADER))

            def write(rows: pa.Table) -> None:
                nonlocal count
                count += rows.num_rows
                file.write(np.ascontiguousarray(vectors(rows), "<f4").tobytes())
                rest.writerows(_cells(rows))

            yield write
            file.seek(0)
            size = schema.field(EMBEDDING).type.list_size
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, size)})
            if file.tell() != _HEADER:
                raise ValueError(f"numpy wrote a header of {file.tell()} bytes")

    def files(self, path: Path) -> tuple[Path, ...]:
        """The array and the table of its rows."""
        return path, path.with_name(f"{path.stem}.rows.csv")


def has_kaleidoscope_columns(path: Path) -> bool:
    """Whether a text file begins with the columns of a Kaleidoscope table."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return is_kaleidoscope(next(csv.reader(file), []))
        except csv.Error:  # a line that no table has; whoever reads it as one says so
            return False


def vectors(rows: pa.Table | pa.RecordBatch) -> NDArray[np.float32]:
    """The embeddings of a table, [rows, dimensions]."""
    column = rows.column(EMBEDDING)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: NDArray[np.float32] = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return values


def _others(schema: pa.Schema) -> list[str]:
    return [name for name in schema.names if name != EMBEDDING]


def _cells(rows: pa.Table) -> Iterator[list[Any]]:
    columns = [rows.column(name).to_pylist() for name in _others(rows.schema)]
    for row in zip(*columns, strict=True):
        yield ["" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextlib.contextmanager
def _csv(path: Path, header: Iterable[str]) -> Iterator[Any]:
    with _text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        yield writer


def _json_line(columns: Mapping[str, Kind], row: Row) -> str:
    values = {
        name: value if value is None or kind not in _DIGITS else round(float(value), _DIGITS[kind])
        for (name, kind), value in zip(columns.items(), row, strict=True)
    }
    return json.dumps(values, ensure_ascii=False, allow_nan=False)


def _mapping(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError("a row is no object with names")  # noqa: TRY004 - as JSON's own mistakes
    return row


def _plain(value: Any) -> Any:
    return "" if value is None else value


_TEXT: dict[Kind, Callable[[Any], Any]] = {
    "text": _plain,
    "count": _plain,
    "seconds": lambda value: f"{value:.3f}",
    "hertz": lambda value: f"{value:.1f}",
    "score": lambda value: f"{value:.6f}",
}
