"""Sounds that are no files of their own: rows of a Parquet table, and what lies on the Hugging Face Hub.

Both have a path all the same, by which every verb opens, names and keeps them:

    data/train-00000-of-00002.parquet#17/call.ogg           the sound in row 17, which was called call.ogg
    …/datasets--owner--name/snapshots/COMMIT/data/a.wav     where a file of the Hub would lie if it was downloaded

Bytes are decoded by the same readers as files, so that the numbers are theirs. A table is read as its rows are asked
for, by the row group (on the Hub about a hundred rows); of the Hub only the bytes that are asked for are fetched, and
nothing is kept. Where a file of the Hub has been downloaded, it is read here.
"""

from __future__ import annotations

import io
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from tymbal.errors import StoreError
from tymbal.files import parse_json

__all__ = [
    "Columns",
    "audio_column",
    "has_sounds",
    "hub_address",
    "hub_file",
    "is_elsewhere",
    "open_bytes",
    "read_columns",
    "row_path",
    "size_of",
    "stamp_of",
]

_ROW = re.compile(r"(?P<table>.+\.parquet)#(?P<row>\d+)/(?P<name>[^/\\]*)", re.DOTALL | re.IGNORECASE)
_HUB = re.compile(
    r".*[/\\]datasets--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})[/\\](?P<file>.+)",
    re.DOTALL,
)
_ROWS = 4  # of a table that are taken out of their page at once
_PAGES = 1 << 20  # bytes
_TABLES = 4


def row_path(table: Path, row: int, name: str | None) -> str:
    """The path of the sound in a row of a table; its own name tells a decoder its kind, and a person what it is."""
    plain = re.split(r"[/\\]", name)[-1] if name else ""
    return f"{table}#{row}/{plain or 'sound'}"


@dataclass(frozen=True)
class Columns:
    """What a Parquet table says of its sounds.

    Attributes:
        columns: The columns that were read; `file` among them, where it holds the sounds themselves.
        ignored: Those that mean nothing here.
        rows: A mapping a row, by column.
    """

    columns: tuple[str, ...]
    ignored: tuple[str, ...]
    rows: list[dict[str, Any]]


def read_columns(path: Path, *, known: Callable[[str], bool], file: Callable[[str], bool]) -> Columns:
    """Reads what a Parquet table says of its sounds, without the sounds.

    Args:
        path: The table, here or on the Hub.
        known: Whether a column has a meaning.
        file: Whether a column names files; where the table holds sounds, other such columns say where these once were.

    Raises:
        OSError: It cannot be read.
        ArrowException: It is no Parquet file.
        StoreError: The Hub cannot be reached.
    """
    import pyarrow.parquet as pq

    with open_bytes(path) as opened:
        table = pq.ParquetFile(opened, buffer_size=_PAGES, pre_buffer=False)
        schema = table.schema_arrow
        features = _features(schema.metadata)
        sounds = audio_column(schema)
        outside = sounds is not None and not _holds_bytes(table, sounds)
        if sounds is None or outside:
            columns = [name for name in schema.names if known(name)]
            wanted = [f"{name}.path" if name == sounds else name for name in columns]
        else:
            columns = [name for name in schema.names if known(name) and not file(name)]
            wanted = [*columns, f"{sounds}.path"]
        rows: list[dict[str, Any]] = table.read(columns=wanted).to_pylist()
    classes = {name: named for name in columns if (named := _class_names(features.get(name)))}
    for number, row in enumerate(rows):
        for name, named in classes.items():
            row[name] = _class_of(row[name], named)
        if sounds in row:
            inside = (row.pop(sounds) or {}).get("path")
            row[sounds if outside else "file"] = inside if outside else row_path(path.absolute(), number, inside)
    ignored = tuple(name for name in schema.names if name not in columns and (outside or name != sounds))
    return Columns(tuple(columns if sounds is None or outside else [*columns, "file"]), ignored, rows)


def audio_column(schema: Any) -> str | None:
    """The column of an Arrow schema that holds sounds: a struct with `bytes`, no picture; None without one."""
    import pyarrow as pa

    features = _features(schema.metadata)
    for field in schema:
        kind = (features.get(field.name) or {}).get("_type") if isinstance(features.get(field.name), dict) else None
        if kind in (None, "Audio") and pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    return None


def has_sounds(path: Path) -> bool:
    """Whether a file is a Parquet table that holds sounds themselves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_bytes(path) as opened:
            table = pq.ParquetFile(opened)
            column = audio_column(table.schema_arrow)
            return column is not None and _holds_bytes(table, column)
    except pa.ArrowException:
        return False


def _holds_bytes(table: Any, column: str) -> bool:
    """Whether any row has bytes, as the table counts them; paths alone are those of files."""
    leaf = next(n for n in range(len(table.schema)) if table.schema.column(n).path == f"{column}.bytes")
    for number in range(table.num_row_groups):
        statistics = table.metadata.row_group(number).column(leaf).statistics
        if statistics is None or not statistics.has_null_count:
            return True
        if statistics.null_count < table.metadata.row_group(number).num_rows:
            return True
    return False


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What `datasets` says of the columns beside an Arrow schema."""
    try:
        features = parse_json((metadata or {})[b"huggingface"].decode())["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str] | None:
    """Names of the classes that numbers of a column, or of lists in it, stand for."""
    while isinstance(feature, list) and feature:
        feature = feature[0]
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    return [str(name) for name in names] if isinstance(names, list) else _class_names(feature.get("feature"))


def _class_of(value: Any, names: list[str]) -> Any:
    """Numbers of classes as names; -1 is none."""
    if isinstance(value, list):
        return [name for each in value if (name := _class_of(each, names)) is not None]
    if isinstance(value, int) and not isinstance(value, bool):
        return names[value] if 0 <= value < len(names) else None
    return value


def hub_file(path: Path) -> str | None:
    """The address of a file of the Hub that is not here, as `huggingface_hub` has it; None of any other path."""
    text = str(path)
    match = _HUB.fullmatch(text) if "datasets--" in text else None
    if match is None or path.exists():
        return None
    file = match["file"].replace("\\", "/")
    return f"datasets/{match['owner']}/{match['name']}@{match['commit']}/{file}"


def hub_address(path: Path) -> str | None:
    """The address of the file of the Hub that a path is, or is a row of; None of what lies here."""
    row = _of_row(path)
    return hub_file(path if row is None else row[0])


def is_elsewhere(path: Path) -> bool:
    """Whether a path is that of a row of a table, or of a file of the Hub that is not here."""
    return _of_row(path) is not None or hub_file(path) is not None


def open_bytes(path: Path) -> BinaryIO:
    """Opens what a path stands for: a file, a row of a table, a file of the Hub.

    Raises:
        OSError: There is no such thing, or it cannot be read.
        StoreError: The Hub cannot be reached.
    """
    row = _of_row(path)
    if row is not None:
        sound = io.BytesIO(_bytes_of(*row))
        sound.name = str(path)  # FFmpeg guesses by the suffix, too
        return sound
    address = hub_file(path)
    return path.open("rb", buffering=0) if address is None else _opened_hub(address)


def size_of(path: Path) -> int:
    """Bytes of what a path stands for.

    Raises:
        OSError: There is no such thing.
        StoreError: The Hub cannot be reached.
    """
    row = _of_row(path)
    if row is not None:
        return len(_bytes_of(*row))
    address = hub_file(path)
    return path.stat().st_size if address is None else int(_hub_size(address))


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of change of the file that a path stands for; 0 and 0 of the Hub's, None where there is none."""
    row = _of_row(path)
    file = path if row is None else row[0]
    try:
        facts = file.stat()
    except (OSError, ValueError):
        return (0, 0) if hub_file(file) else None  # a commit never changes
    return facts.st_size, facts.st_mtime_ns


def _of_row(path: Path) -> tuple[Path, int] | None:
    text = str(path)
    match = _ROW.fullmatch(text) if ".parquet#" in text.lower() else None
    return None if match is None else (Path(match["table"]), int(match["row"]))


class _Table:
    """Reads sounds of a table, forwards: a row behind the last one is found without beginning anew.

    Args:
        path: The table.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.lock = threading.Lock()
        self._file = open_bytes(path)
        self._table = pq.ParquetFile(self._file, buffer_size=_PAGES, pre_buffer=False)
        column = audio_column(self._table.schema_arrow)
        if column is None:
            raise OSError(None, "no column of it holds sounds")
        self._column = column
        counts = (self._table.metadata.row_group(n).num_rows for n in range(self._table.num_row_groups))
        self._firsts = [0, *accumulate(counts)]
        self._rows: Iterator[tuple[int, bytes | None]] = iter(())
        self._group = self._next = -1

    def sound(self, row: int) -> bytes | None:
        """The bytes of a row; None where it has none."""
        if not 0 <= row < self._firsts[-1]:
            raise FileNotFoundError(2, "the table has no such row")
        group = bisect_right(self._firsts, row) - 1
        if group != self._group or row < self._next:
            self._group, self._rows = group, self._read(group)
        for number, sound in self._rows:
            self._next = number + 1
            if number == row:
                return sound
        raise OSError(None, "the table ends before its header says")

    def _read(self, group: int) -> Iterator[tuple[int, bytes | None]]:
        number = self._firsts[group]
        columns = [f"{self._column}.bytes"]
        for batch in self._table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=columns):
            for cell in batch.column(0):
                value = cell.as_py()
                yield number, None if value is None else value["bytes"]
                number += 1


_open_tables: OrderedDict[tuple[str, tuple[int, int] | None], _Table] = OrderedDict()
_guard = threading.Lock()


@lru_cache(maxsize=2)
def _kept(path: str, stamp: tuple[int, int] | None, row: int) -> bytes:
    """A sound, kept for a moment: what is examined, decoded and hashed is opened several times."""
    import pyarrow as pa

    key = (path, stamp)
    try:
        with _guard:
            table = _open_tables.pop(key, None) or _Table(Path(path))
            _open_tables[key] = table
            while len(_open_tables) > _TABLES:
                _open_tables.popitem(last=False)
        with table.lock:
            sound = table.sound(row)
    except pa.ArrowException as error:
        raise OSError(None, f"the table cannot be read ({str(error).splitlines()[0]})") from None
    if sound is None:
        raise FileNotFoundError(2, "the row has no sound in it")
    return sound


def _bytes_of(table: Path, row: int) -> bytes:
    return _kept(str(table), stamp_of(table), row)


def _opened_hub(address: str) -> BinaryIO:
    """Opens a file of the Hub, of which only what is read is fetched."""
    from huggingface_hub import HfFileSystem

    opened = _asked(address, lambda: HfFileSystem().open(address, "rb", block_size=_PAGES))
    return io.BufferedReader(_HubFile(opened, address), _PAGES)


class _HubFile(io.RawIOBase):
    """An open file of the Hub, whose errors say what to do."""

    def __init__(self, opened: Any, address: str) -> None:
        self._opened, self._address = opened, address
        self.name = address

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        part = _asked(self._address, lambda: self._opened.read(len(view)))
        view[: len(part)] = part
        return len(part)


@lru_cache(maxsize=1 << 14)
def _hub_size(address: str) -> int:
    from huggingface_hub import HfFileSystem

    return int(_asked(address, lambda: HfFileSystem().info(address))["size"])


def _asked(address: str, ask: Any) -> Any:
    """What the Hub answers.

    Raises:
        FileNotFoundError: It has no such file.
        StoreError: It cannot be reached: what was begun goes on later, and nothing counts as damaged.
    """
    from huggingface_hub import errors

    of_client: type[Exception] = vars(errors)["HTTPError"]
    try:
        return ask()
    except FileNotFoundError:
        raise
    except (of_client, OSError, ValueError, RuntimeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise StoreError(
            f"the Hugging Face Hub gave no answer about hf://{address} ({said})",
            advice="Look after the network, then run the same command again: it continues.",
        ) from error
