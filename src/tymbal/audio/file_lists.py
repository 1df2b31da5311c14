"""Lists of sound files as other people write them: CSV, TSV, Parquet, JSON, JSON lines and plain text, to rows.

A row is a mapping with Tymbal's own column names. Other names for the same thing are understood (`SYNONYMS`, compared
without case, spaces and units); columns that mean nothing here are ignored, and `Table.ignored` says which. Raven's
selection tables and Kaleidoscope's `id.csv` are lists of the parts of files that they name; a Parquet table may hold
the sounds themselves (`tymbal.audio.embedded`).

Several labels of a clip are a list (Parquet, JSON; in text as JSON or Python writes it), or have a separator between
them: `;`, or what the labels themselves show, and that is said.
"""

from __future__ import annotations

import ast
import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tymbal.audio.embedded import read_columns
from tymbal.audio.kaleidoscope import KaleidoscopeRows, is_kaleidoscope
from tymbal.errors import ManifestError
from tymbal.files import parse_json

__all__ = [
    "LABELS",
    "LABEL_COLUMNS",
    "SYNONYMS",
    "TABLE_SUFFIXES",
    "UNSURE",
    "Row",
    "Table",
    "labels_at",
    "names_of",
    "number",
    "read_label_names",
    "read_table",
    "table_classes",
    "text",
]

Row = Mapping[str, Any]
Synonyms = Mapping[str, tuple[str, ...]]

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


LABELS, LABEL_COLUMNS = "labels.csv", ("file", "start", "end", "low", "high", "label", "who", "when", "round")
"""The table that `tymbal label` writes into its folder, and its columns."""

UNSURE = "?"
"""The label in it of what a person was unsure of, which tells nothing."""


@dataclass(frozen=True)
class Table:
    """The rows of a list.

    Attributes:
        path: The file they come from.
        rows: One mapping a clip, by Tymbal's column names.
        columns: Tymbal's names of the columns that the list has.
        ignored: Names of columns that mean nothing here.
        label_separator: The separator between labels in one text.
        numbers: The number of each row as a person sees it; empty where they are numbered from 1.
        notes: Remarks for the user about how it was read.
    """

    path: Path
    rows: list[Row]
    columns: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    label_separator: str = ";"
    numbers: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """Rows with the numbers that a person sees: in a spreadsheet, the header is row 1."""
        return zip(self.numbers or range(1, len(self.rows) + 1), self.rows, strict=True)


def labels_at(path: str | os.PathLike[str]) -> Path | None:
    """The table of `tymbal label` that lies at a path, or in the folder there; None where there is none."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - False of what cannot be a path
    file = Path(path) / LABELS if is_folder else Path(path)
    if file.suffix.lower() != ".csv" or not file.is_file():
        return None
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        return file if opened.readline().strip() == ",".join(LABEL_COLUMNS) else None


def read_table(
    path: str | os.PathLike[str], *, label_separator: str | None = None, columns: Mapping[str, str] | None = None
) -> Table:
    """Reads a list of sound files, in the format that its suffix names.

    Args:
        path: The list.
        label_separator: What stands between labels in one text. None tells it from the labels.
        columns: What columns are called there, by Tymbal's names, where that differs from what is understood.

    Raises:
        ManifestError: The list does not exist, is not of that format, is empty, or names no files; or a cell is no
            text or number, or two columns have one meaning.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(suffix for suffix in _READERS if suffix)
        raise ManifestError("this is no list of sound files", path=path, advice=f"Give a folder, or a list as {known}.")
    try:
        table = reader(path, {**SYNONYMS, **{ours: (_plain(theirs),) for ours, theirs in (columns or {}).items()}})
    except OSError as error:
        raise ManifestError(
            error.strerror or str(error), path=path, advice="Check the path and its permissions."
        ) from None
    except UnicodeDecodeError:
        raise ManifestError("it is not UTF-8 text", path=path, advice="Save it as UTF-8.") from None
    missing = [theirs for ours, theirs in (columns or {}).items() if ours not in table.columns]
    if missing:
        raise ManifestError(
            f"it has no column {missing[0]}, which columns names",
            path=path,
            advice=f"It has: {', '.join((*table.columns, *table.ignored))}.",
        )
    if "file" not in table.columns:
        names = ", ".join((*table.columns, *table.ignored)) or "no columns at all"
        raise ManifestError(
            f"no column names the sound files; it has {names}",
            path=path,
            advice=f"Call that column file (understood too: {', '.join(SYNONYMS['file'][1:])}).",
        )
    if not table.rows:
        raise ManifestError("it lists no files", path=path, advice="Add a row for each file or clip.")
    return _separated(_in_text(table), label_separator)


def _in_text(table: Table) -> Table:
    """The table with bytes decoded.

    Raises:
        ManifestError: A cell is a mapping, or a list where one value belongs.
    """
    kinds = {name: {type(row.get(name)) for row in table.rows} for name in table.columns}
    odd = {name for name, types in kinds.items() if types & {dict, list, tuple, bytes}}
    if not odd:
        return table
    rows: list[Row] = []
    for number, row in table.numbered():
        changed = {
            name: _cell(row.get(name), column=name, many=name == "label", row=number, path=table.path) for name in odd
        }
        rows.append({**row, **changed})
    return replace(table, rows=rows)


def _cell(value: Any, *, column: str, many: bool, row: int, path: Path) -> Any:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            value = "bytes that are no text"
    elif isinstance(value, list | tuple) and many:
        return [_cell(each, column=column, many=False, row=row, path=path) for each in value]
    elif isinstance(value, dict):
        value = f"a mapping of {', '.join(map(str, value))}"
    elif isinstance(value, list | tuple):
        value = "a list"
    else:
        return value
    raise ManifestError(f"{column} in row {row} is {value}", path=path, advice="Write text or a number there.")


def _separated(table: Table, separator: str | None) -> Table:
    """The table with the separator of its labels, and a remark where it is not the usual one."""
    if separator is not None:
        return replace(table, label_separator=separator)
    ours = {"hash", "id"} <= set(table.columns)
    if ours or "label" not in table.columns or table.label_separator != ";":
        return table
    cells = {cell for cell in (row.get("label") for row in table.rows) if isinstance(cell, str)}
    cells = {cell.strip() for cell in cells if not _as_list(cell)} - {""}
    if any(";" in cell for cell in cells):
        return table
    for candidate in "|,":
        several = sorted(cell for cell in cells if candidate in cell)
        if not several:
            continue
        parts = {part.strip() for cell in several for part in cell.split(candidate)} - {""}
        # A bar stands in no name; a comma does, unless what is beside it is a label by itself as well.
        if candidate == "|" or parts <= cells:
            note = f"{table.path.name}: {candidate!r} stands between labels, as in {several[0]!r}"
            return replace(table, label_separator=candidate, notes=(*table.notes, f"{note} (label_separator)"))
        note = f"{table.path.name}: labels with commas were taken whole, as {several[0]!r}: label_separator splits them"
        return replace(table, notes=(*table.notes, note))
    return table


def _as_list(cell: str) -> list[Any] | None:
    """The list that a text is, as JSON or Python writes one; None where it is none of labels."""
    cell = cell.strip()
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(each, str | int | float) for each in found):
            return found
    return None


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
    parts: Iterable[Any]
    if isinstance(value, list | tuple):
        parts = value
    else:
        cell = text(value) or ""
        found = _as_list(cell)
        parts = cell.split(separator) if found is None else found
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


def _table(
    path: Path, names: Iterable[str], rows: Iterable[Mapping[str, Any]], known: Synonyms = SYNONYMS, **more: Any
) -> Table:
    """Renames the columns of raw rows, by what is known of their names.

    Raises:
        ManifestError: Two columns have one meaning.
    """
    names = [name for name in names if name]
    rows = list(rows)
    plain: dict[str, str] = {}
    for name in names:
        if _plain(name) in plain and _is_known(name, known):
            raise _two_columns(path, plain[_plain(name)], name)
        plain.setdefault(_plain(name), name)
    matches: dict[str, str] = {}
    for column, synonyms in known.items():
        own = [plain[synonym] for synonym in synonyms if synonym in plain]
        for other in own[1:] if column == "label" or own[:1] != [plain.get(column)] else ():
            if any(text(row.get(own[0])) != text(row.get(other)) for row in rows):
                raise _two_columns(path, own[0], other)
        if own:
            matches[column] = own[0]
    renamed: list[Row] = [{column: row.get(name) for column, name in matches.items()} for row in rows]
    used = set(matches.values())
    return Table(path, renamed, tuple(matches), tuple(name for name in names if name not in used), **more)


def _two_columns(path: Path, one: str, other: str) -> ManifestError:
    return ManifestError(
        f"the columns {one!r} and {other!r} have one meaning and differ",
        path=path,
        advice="Rename or delete one of them.",
    )


def _is_known(name: str, known: Synonyms) -> bool:
    return any(_plain(name) in synonyms for synonyms in known.values())


def _plain(name: str) -> str:
    """`Begin Time (s)` as `begin_time`."""
    name = name.strip().lower().removesuffix("(s)").strip()
    return name.replace(" ", "_").replace("-", "_")


def _read_csv(path: Path, known: Synonyms, delimiter: str | None = None) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        start = next((line for line in file if line.strip()), "")
        file.seek(0)
        # Counted rather than sniffed: csv.Sniffer takes letters for separators in a file of one column.
        reader = csv.reader(file, delimiter=delimiter or max(",;\t", key=start.count))
        try:
            # Empty rows count: a spreadsheet shows them.
            cells = [(number, row) for number, row in enumerate(reader, 1) if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise ManifestError(f"line {reader.line_num} is no CSV ({error})", path=path) from None
    names = cells[0][1] if cells else []
    for number, row in cells[1:]:
        if any(cell.strip() for cell in row[len(names) :]):
            raise ManifestError(
                f"row {number} has {len(row)} cells, and the header {len(names)}",
                path=path,
                advice="Put quotation marks around a cell with a separator in it.",
            )
    rows = [dict(zip(reversed(names), reversed(_padded(row, len(names))), strict=True)) for _, row in cells[1:]]
    numbers = tuple(number for number, _ in cells[1:])
    if tuple(names) == LABEL_COLUMNS:
        return _answers(path, rows)
    if names[:1] == ["Selection"]:
        return _raven(path, names, list(zip(numbers, rows, strict=True)))
    if is_kaleidoscope(names):
        return _kaleidoscope(path, names, list(zip(numbers, rows, strict=True)))
    return _table(path, names, rows, known, numbers=numbers)


_RECORDINGS = 5


def _answers(path: Path, rows: list[dict[str, str]]) -> Table:
    """What people answered: clips without a label hold nothing, those of which somebody was unsure are no clips.

    Clips of one recording stay on one side of a split where there are recordings enough.
    """
    sure = [(number, row) for number, row in enumerate(rows, 2) if row["label"] != UNSURE]
    columns: tuple[str, ...] = ("file", "start", "end", "label")
    clips: list[Row] = [{name: row[name] for name in columns} for _, row in sure]
    if len({row["file"] for _, row in sure}) >= _RECORDINGS:
        columns = (*columns, "group")
        clips = [{**row, "group": row["file"]} for row in clips]
    left_out = len(rows) - len(sure)
    notes = (f"{path.name}: {left_out:,} clips are unsure, and left out",) if left_out else ()
    numbers = tuple(number for number, _ in sure)
    return Table(path, clips, columns, label_separator="\n", numbers=numbers, notes=notes)


def _padded(row: list[str], length: int) -> list[str]:
    return [*row[:length], *[""] * (length - len(row))]


_RAVEN_LABELS = ("Label", "Common Name", "Species", "Annotation")


def _raven(path: Path, names: list[str], rows: list[tuple[int, dict[str, str]]]) -> Table:
    """Raven's selection table: parts of the files that it names; a spectrogram's row stands for all its views."""
    label = next((name for name in _RAVEN_LABELS if name in names), None)
    files = [name for name in ("Begin Path", "Begin File") if name in names]
    if not files:
        raise ManifestError(
            "it is a Raven selection table that does not say of which sound files",
            path=path,
            advice="Add the measurements Begin File and File Offset in Raven, or write a list with the column file.",
        )
    rows = [(number, row) for number, row in rows if not row.get("View", "").startswith("Waveform")] or rows
    parts: list[Row] = []
    for index, row in rows:
        begin, end = (
            number(row.get(name), column=name, row=index, path=path) for name in ("Begin Time (s)", "End Time (s)")
        )
        start = number(row.get("File Offset (s)"), column="File Offset (s)", row=index, path=path)
        start = begin if start is None else start
        known = [row[name] for name in files if row[name]]
        file = next((name for name in known if (path.parent / name).exists()), known[-1] if known else None)
        stop = None if start is None or begin is None or end is None else round(start + end - begin, 6)
        parts.append({"file": file, "start": start, "end": stop, "label": row[label] if label else None})
    columns = ("file", "start", "end", *(["label"] if label else []))
    return Table(path, parts, columns, numbers=tuple(index for index, _ in rows))


def _kaleidoscope(path: Path, names: list[str], rows: list[tuple[int, dict[str, str]]]) -> Table:
    """Kaleidoscope's table; what a program said is taken for labels only where no person said anything."""
    reader = KaleidoscopeRows(names, path.parent)
    by_hand = any(reader.manual(row) for _, row in rows)
    parts: list[Row] = []
    for index, row in rows:
        try:
            part = reader.part(row)
        except ValueError as error:
            raise ManifestError(
                f"row {index}: {error}", path=path, advice="Is it a table that Kaleidoscope wrote?"
            ) from None
        label = reader.manual(row) if by_hand else part.label
        parts.append({"file": part.file, "start": part.start, "end": part.end, "label": label})
    notes = []
    if by_hand:
        unsaid = sum(not part["label"] for part in parts)
        notes.append(f"{path.name}: labels are those of MANUAL ID; {unsaid:,} of {len(parts):,} rows have none")
    elif reader.has_labels:
        notes.append(f"{path.name}: no row has a MANUAL ID; labels are what a program said (AUTO ID)")
    if any(reader.channel(row) not in ("", "0") for _, row in rows):
        notes.append(f"{path.name}: CHANNEL is not looked at: channels are averaged")
    columns = ("file", "start", "end", *(["label"] if reader.has_labels else []))
    return Table(path, parts, columns, numbers=tuple(index for index, _ in rows), notes=tuple(notes))


def _read_parquet(path: Path, known: Synonyms) -> Table:
    import pyarrow as pa

    try:
        read = read_columns(
            path, known=lambda name: _is_known(name, known), file=lambda name: _plain(name) in known["file"]
        )
    except pa.ArrowException as error:
        raise ManifestError(f"it is no Parquet file ({error})", path=path, advice="Write it again.") from None
    table = _table(path, read.columns, read.rows, known)
    return replace(table, ignored=(*table.ignored, *read.ignored))


def _read_json(path: Path, known: Synonyms) -> Table:
    content = _parse(path.read_text(encoding="utf-8-sig"), path)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        # SSAST's {"data": [{"wav", "labels"}]}, whose labels are mids with commas between them.
        return _objects(path, content["data"], known, label_separator=",")
    if isinstance(content, list):
        return _objects(path, content, known)
    raise ManifestError(
        "it is neither a list of objects nor SSAST's {'data': […]}",
        path=path,
        advice='Example: [{"file": "a.wav", "label": "rain"}]',
    )


def _read_json_lines(path: Path, known: Synonyms) -> Table:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    numbers = tuple(number for number, line in enumerate(lines, 1) if line.strip())
    return _objects(path, [_parse(lines[number - 1], path, number) for number in numbers], known, numbers=numbers)


def _parse(content: str, path: Path, line: int | None = None) -> Any:
    try:
        return parse_json(content)
    except json.JSONDecodeError as error:
        raise ManifestError(f"line {line or error.lineno} is no JSON ({error.msg})", path=path) from None
    except ValueError as error:  # nested too deeply, or a number of thousands of digits
        raise ManifestError(f"cannot be read: {error}", path=path) from None


def _objects(path: Path, rows: list[Any], known: Synonyms, **more: Any) -> Table:
    for index, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ManifestError(f"entry {index} is no object", path=path, advice='Example: {"file": "a.wav"}')
    if any(isinstance(row.get("annotations"), list) for row in rows):
        rows, more = [event for row in rows for event in _events(row)], {}
    names = dict.fromkeys(name for row in rows for name in row)
    return _table(path, names, rows, known, **more)


def _events(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The annotations of a recording as BEANS lists them (`st`, `ed`, `label`), a row each; one row without any."""
    events = [event for event in row["annotations"] or () if isinstance(event, dict)]
    rest = {name: value for name, value in row.items() if name not in ("annotations", "length")}
    for event in events:
        yield {**rest, "start": event.get("st"), "end": event.get("ed"), "label": event.get("label")}
    if not events:
        yield {**rest, "start": None, "end": None, "label": None}


def _read_lines(path: Path, known: Synonyms) -> Table:
    with path.open(encoding="utf-8-sig") as file:
        if file.readline().startswith("Selection\t"):
            return _read_csv(path, known, "\t")
    return Table(path, [{"file": line} for line in _lines(path)], ("file",))


def _lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


_READERS: dict[str, Callable[[Path, Synonyms], Table]] = {
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
