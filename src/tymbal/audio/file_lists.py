"""Lists of sound files as other people write them: CSV, TSV, Parquet, JSON, JSON lines and plain text, to rows.

A row is a mapping with Tymbal's own column names. Other names for the same thing are understood (`SYNONYMS`, compared
without case, spaces and units); columns that mean nothing here are ignored, and `Table.ignored` says which.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tymbal.errors import ManifestError

__all__ = [
    "SYNONYMS",
    "TABLE_SUFFIXES",
    "Row",
    "Table",
    "names_of",
    "number",
    "read_label_names",
    "read_table",
    "table_classes",
    "text",
]

Row = Mapping[str, Any]

SYNONYMS: dict[str, tuple[str, ...]] = {
    "file": ("file", "file_name", "filename", "path", "file_path", "filepath", "wav", "audio", "audio_file"),
    "start": ("start", "start_time", "begin", "begin_time", "onset"),
    "end": ("end", "end_time", "stop", "stop_time"),
    "label": ("label", "labels", "class", "class_name", "category", "species", "annotation"),
    "group": ("group", "group_id", "recording", "recording_id", "speaker", "speaker_id"),
    "split": ("split", "subset", "partition", "set"),
    "duration": ("duration",),
    "sample_rate": ("sample_rate", "sampling_rate"),
    "channels": ("channels",),
    "hash": ("hash",),
    "id": ("id",),
}
"""What a column may be called, in order of preference. Times are in seconds."""


@dataclass(frozen=True)
class Table:
    """The rows of a list.

    Attributes:
        path: The file they come from.
        rows: One mapping a clip, by Tymbal's column names.
        columns: Tymbal's names of the columns that the list has.
        ignored: Names of columns that mean nothing here.
        label_separator: The separator between labels in one text.
    """

    path: Path
    rows: list[Row]
    columns: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    label_separator: str = ";"


def read_table(path: str | os.PathLike[str]) -> Table:
    """Reads a list of sound files, in the format that its suffix names.

    Raises:
        ManifestError: The list does not exist, is not of that format, is empty, or names no files.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise ManifestError("this is no list of sound files", path=path, advice=f"Give a folder, or a list as {known}.")
    try:
        table = reader(path)
    except OSError as error:
        raise ManifestError(
            error.strerror or str(error), path=path, advice="Check the path and its permissions."
        ) from None
    except UnicodeDecodeError:
        raise ManifestError("it is not UTF-8 text", path=path, advice="Save it as UTF-8.") from None
    if "file" not in table.columns:
        names = ", ".join((*table.columns, *table.ignored)) or "no columns at all"
        raise ManifestError(
            f"no column names the sound files; it has {names}",
            path=path,
            advice=f"Call that column file (understood too: {', '.join(SYNONYMS['file'][1:])}).",
        )
    if not table.rows:
        raise ManifestError("it lists no files", path=path, advice="Add a row for each file or clip.")
    return table


def text(value: Any) -> str | None:
    """A cell as text; None where it is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def number(value: Any, *, column: str, row: int, path: Path) -> float | None:
    """A cell as a number; None where it is empty.

    Raises:
        ManifestError: It is something else.
    """
    cell = text(value)
    if cell is None:
        return None
    try:
        result = float(cell)
    except ValueError:
        result = math.nan
    if not math.isfinite(result):
        raise ManifestError(
            f"{column} in row {row} is {cell!r}, which is not a number",
            path=path,
            advice="Times are seconds with a decimal point.",
        )
    return result


def names_of(value: Any, separator: str) -> tuple[str, ...]:
    """The labels in a cell: a list, or one text in which a separator stands between them."""
    parts: Iterable[Any] = value if isinstance(value, list | tuple) else (text(value) or "").split(separator)
    return tuple(dict.fromkeys(name for name in map(text, parts) if name is not None))


def read_label_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the `index,mid,display_name` table of SSAST and AudioSet: display names by mid, in the order of `index`.

    Raises:
        ManifestError: It is unreadable or lacks a column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ManifestError(error.strerror or str(error), path=path, advice="Check label_csv.") from None
    if not rows or not {"mid", "display_name"} <= rows[0].keys():
        raise ManifestError("it lacks the columns mid and display_name", path=path, advice="Check label_csv.")
    if all((row.get("index") or "").strip().isdigit() for row in rows):
        rows.sort(key=lambda row: int(row["index"]))
    return {row["mid"].strip(): row["display_name"].strip() for row in rows}


def table_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of all classes of a label table, in its order: display names, or mids where names occur twice."""
    names = read_label_names(path)
    return tuple(names.values()) if len(set(names.values())) == len(names) else tuple(names)


def _table(path: Path, names: Iterable[str], rows: Iterable[Mapping[str, Any]], **more: str) -> Table:
    """Renames the columns of raw rows."""
    names = [name for name in names if name]
    plain = {_plain(name): name for name in reversed(names)}
    matches: dict[str, str] = {}
    for column, synonyms in SYNONYMS.items():
        match = next((plain[synonym] for synonym in synonyms if synonym in plain), None)
        if match is not None:
            matches[column] = match
    renamed: list[Row] = [{column: row.get(name) for column, name in matches.items()} for row in rows]
    used = set(matches.values())
    return Table(path, renamed, tuple(matches), tuple(name for name in names if name not in used), **more)


def _plain(name: str) -> str:
    """`Begin Time (s)` as `begin_time`."""
    name = name.strip().lower().removesuffix("(s)").strip()
    return name.replace(" ", "_").replace("-", "_")


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        start = file.readline()
        file.seek(0)
        # Counted rather than sniffed: csv.Sniffer takes letters for separators in a file of one column.
        delimiter = max(",;\t", key=start.count)
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            names, rows = list(reader.fieldnames or ()), list(reader)
        except csv.Error as error:
            raise ManifestError(f"line {reader.line_num} is no CSV ({error})", path=path) from None
    return _table(path, names, rows)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FileNotFoundError(2, os.strerror(2))
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ManifestError(f"it is no Parquet file ({error})", path=path, advice="Write it again.") from None
    return _table(path, table.column_names, table.to_pylist())


def _read_json(path: Path) -> Table:
    content = _parse(path.read_text(encoding="utf-8-sig"), path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        # SSAST's {"data": [{"wav", "labels"}]}, whose labels are mids with commas between them.
        return _objects(path, content["data"], label_separator=",")
    if isinstance(content, list):
        return _objects(path, content)
    raise ManifestError(
        "it is neither a list of objects nor SSAST's {'data': […]}",
        path=path,
        advice='Example: [{"file": "a.wav", "label": "rain"}]',
    )


def _read_json_lines(path: Path) -> Table:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return _objects(path, [_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()])


def _parse(content: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ManifestError(f"line {line or error.lineno} is no JSON ({error.msg})", path=path) from None


def _objects(path: Path, rows: list[Any], **more: str) -> Table:
    for index, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ManifestError(f"entry {index} is no object", path=path, advice='Example: {"file": "a.wav"}')
    names = dict.fromkeys(name for row in rows for name in row)
    return _table(path, names, rows, **more)


def _read_lines(path: Path) -> Table:
    return Table(path, [{"file": line} for line in _lines(path)], ("file",))


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".txt": _read_lines,
    ".lst": _read_lines,
    ".list": _read_lines,
    "": _read_lines,
}

TABLE_SUFFIXES = tuple(suffix for suffix in _READERS if suffix)
"""Suffixes of lists that can be read."""
