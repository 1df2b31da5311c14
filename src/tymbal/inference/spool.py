"""The results so far: rows by item, in parts that are whole or absent, so that a stopped run continues.

An item is a recording, or a block of the clips of a store: it is done, or computed again as a whole.

    OUTPUT.unfinished/
      record.json      what the run was begun with
      00000.parquet    rows of some recordings, and what became of each of them

A part holds whole recordings and is closed some time after it was begun, or when the work is stopped; what was computed
for a recording that had not ended is computed again. Rows pass through in pieces: memory grows neither with the
recordings nor with their number.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.failures import Failure
from tymbal.config import diff
from tymbal.errors import SettingsError
from tymbal.files import (
    PARTIAL,
    checksum_of,
    locked,
    parse_json,
    read_json,
    replace_file,
    set_aside,
    verified,
    with_checksum,
    write_json,
)
from tymbal.progress import tell

__all__ = ["CHUNK_BYTES", "ITEM", "Item", "Outcome", "PartReader", "RowBuffer", "Spool"]

_SECONDS = 20.0  # after which a part is closed: the most that a kill can cost beside the current item
_KEY, _CHECKSUM_KEY, _RECORD_KEY = "tymbal", "tymbal_checksum", "tymbal_record"
_OPEN = 8


class Item(Protocol):
    """A unit of work, computed as a whole."""

    @property
    def key(self) -> str:
        """An identifier that no other item has; `file` of its outcome."""

    def stamp(self) -> tuple[int, int] | None:
        """By which a change is noticed; None for what cannot change."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of an item.

    Attributes:
        file: Its key: of a recording the path, as the user gave it.
        place: A recording's path relative to the user's folder.
        stamp: A recording's size and time of change; None for a missing file, and for blocks of clips.
        seconds: Seconds of sound that were looked at.
        windows: Windows in them, or clips of a block.
        began: When it was recorded, in ISO 8601, where its name or header tells.
        reason: Why it could not be read, or not to its end.
        advice: What to do about that.
        left_out: Rows of a block that could not be read.
    """

    file: str
    place: str
    stamp: tuple[int, int] | None
    seconds: float
    windows: int
    began: str | None = None
    reason: str | None = None
    advice: str = ""
    left_out: tuple[int, ...] = ()

    @property
    def is_final(self) -> bool:
        """Whether another attempt would have the same outcome; not where something was out of reach."""
        return not self.left_out and (self.failure is None or not self.failure.is_away)

    @property
    def failure(self) -> Failure | None:
        """The failure, if it is one."""
        return None if self.reason is None else Failure(self.file, self.reason, self.advice)


class Spool:
    """Rows by item; a context manager that holds the folder for one process.

    Args:
        output: The file to write in the end.
        schema: Columns of the rows.
        record: Everything that decides the rows: a run that was begun with something else is not continued.

    Raises:
        SettingsError: Another process is at work, or the unfinished run was begun with something else.
    """

    def __init__(self, output: Path, *, schema: pa.Schema, record: Mapping[str, Any]) -> None:
        absolute = output.absolute()
        self.folder = absolute.with_name(f"{absolute.name}.unfinished")
        self._output = output
        self._schema = schema.insert(0, pa.field(ITEM, pa.int32()))
        self._record = dict(record)
        self._inside = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._part = contextlib.ExitStack()
        self._buffer = RowBuffer(self._schema)
        self._outcomes: list[Outcome] = []
        self._opened = 0.0
        self._steady = True  # not in the middle of writing: if stopped now, the rows written so far are usable

    def __enter__(self) -> Self:
        busy = SettingsError(
            "another process is writing this output",
            path=self._output,
            advice="Wait until it is done, or choose another output.",
        )
        self._inside.enter_context(locked(self.folder, busy))
        try:
            self._continue_or_begin()
        except BaseException:
            self._inside.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._steady:
                self._close_part()
            else:
                self._part.__exit__(kind, error, trace)
        finally:
            self._inside.close()

    def _continue_or_begin(self) -> None:
        path = self.folder / "record.json"
        recorded = self._recorded(path)
        if recorded is not None:
            changes = diff(recorded, self._record)
            if changes:
                lines = "".join(f"\n    {line}" for line in changes)
                raise SettingsError(
                    f"the unfinished run was begun with something else:{lines}",
                    path=self.folder,
                    advice="Choose another output, or delete this folder to begin anew.",
                )
        else:
            write_json(path, with_checksum(self._record))
        for part in self._parts():
            self._check(part)
        for partial in self.folder.glob(f"*{PARTIAL}"):
            partial.unlink()

    def _recorded(self, path: Path) -> dict[str, Any] | None:
        """What the unfinished run was begun with; None where there is none, or where its record is damaged.

        Its parts say by a hash what they were begun with, too.
        """
        try:
            return verified(read_json(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            tell(f"{path} is damaged ({error}) and written again; {set_aside(path)} is as it was", warning=True)
            return None

    def _check(self, part: Path) -> None:
        """Reads a part to its end, and sets it aside if it is damaged or of another run: it is computed again."""
        try:
            with pq.ParquetFile(part, page_checksum_verification=True) as file:
                self._check_facts(file)
                for _ in file.iter_batches(batch_size=8192):
                    pass
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, RecursionError) as error:
            tell(f"{part} is damaged and computed again ({error}); {set_aside(part)} is as it was", warning=True)

    def _check_facts(self, file: pq.ParquetFile) -> None:
        if not file.schema_arrow.equals(self._schema):
            raise ValueError("it has other columns")
        _outcomes(file)
        begun = (file.metadata.metadata or {}).get(_RECORD_KEY.encode())  # none in parts of earlier versions
        if begun not in (None, checksum_of(self._record).encode()):
            raise ValueError("it is of another run")

    def remove(self) -> None:
        """Deletes the folder: the output is written. To be called outside of the context, where the lock is open."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def done(self, items: Sequence[Item]) -> set[str]:
        """Keys of those items that need not be computed again: they have not changed since."""
        return {outcome.file for outcome in self.outcomes(items) if outcome.is_final}

    def outcomes(self, items: Sequence[Item]) -> list[Outcome]:
        """The outcomes of those of these items that are done."""
        return [outcome for _, _, outcome in self._current(items)]

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Adds rows of the item that will end next: a column each, as the schema has them."""
        count = len(next(iter(rows.values())))
        columns = {ITEM: np.full(count, len(self._outcomes), np.int32), **rows}
        for start in range(0, count, self._buffer.most):
            part = {name: values[start : start + self._buffer.most] for name, values in columns.items()}
            if not self._buffer.append(part):
                self._write_buffer()
                self._buffer.append(part)

    def end(self, outcome: Outcome) -> None:
        """Records the outcome of the item whose rows were added."""
        if self._writer is None:
            self._open_part()
        self._outcomes.append(outcome)
        if time.monotonic() - self._opened >= _SECONDS:
            self._close_part()

    def read(self, items: Sequence[Item]) -> Iterator[tuple[Outcome, Iterator[pa.RecordBatch]]]:
        """The outcomes of these items and their rows, as they were added.

        They come in the order of the items. The rows of an item have to be consumed before the next item is requested.
        """
        readers: dict[Path, PartReader] = {}
        for part, number, outcome in self._current(items):
            if part not in readers or number < readers[part].behind:
                if len(readers) == _OPEN:
                    del readers[next(iter(readers))]
                readers[part] = PartReader(pq.ParquetFile(part), self._buffer.most)
            yield outcome, readers[part].rows_of(number)

    def _current(self, items: Sequence[Item]) -> list[tuple[Path, int, Outcome]]:
        """Part, number in it, and outcome of each item that has not changed since: the last outcome, in their order.

        What is away has not changed.
        """
        self._close_part()
        stamps = {item.key: item.stamp() for item in items}
        last = {
            outcome.file: (part, number, outcome)
            for part in self._parts()
            for number, outcome in enumerate(_outcomes(pq.ParquetFile(part)))
            if stamps.get(outcome.file, ()) in (outcome.stamp, None)
        }
        return [last[key] for key in stamps if key in last]

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _open_part(self) -> None:
        parts = self._parts()
        number = 1 + int(parts[-1].stem) if parts else 0
        aside = self._part.enter_context(replace_file(self.folder / f"{number:05d}.parquet"))
        writer = pq.ParquetWriter(aside, self._schema, compression="zstd", write_page_checksum=True)
        self._writer = self._part.enter_context(writer)
        self._opened = time.monotonic()

    def _write_buffer(self) -> None:
        if self._writer is None:
            self._open_part()
        if self._writer is not None:
            self._steady = False
            self._writer.write_table(self._buffer.flush())
            self._steady = True

    def _close_part(self) -> None:
        if self._writer is None:
            return
        self._write_buffer()
        self._steady = False
        outcomes = json.dumps([asdict(outcome) for outcome in self._outcomes])
        checksum, begun = str(zlib.crc32(outcomes.encode())), checksum_of(self._record)
        self._writer.add_key_value_metadata({_KEY: outcomes, _CHECKSUM_KEY: checksum, _RECORD_KEY: begun})
        self._part.close()
        self._writer, self._outcomes = None, []
        self._steady = True


def _outcomes(file: pq.ParquetFile) -> list[Outcome]:
    facts = file.metadata.metadata or {}
    content = facts[_KEY.encode()]
    if facts.get(_CHECKSUM_KEY.encode()) not in (None, str(zlib.crc32(content)).encode()):
        raise ValueError("its outcomes are not what was written")
    recorded = parse_json(content)
    return [
        Outcome(**{**one, "stamp": one["stamp"] and tuple(one["stamp"]), "left_out": tuple(one.get("left_out", ()))})
        for one in recorded
    ]


CHUNK_BYTES = 2**23
"""Bytes of rows that are written or read at once."""

ITEM = "recording"
"""The column that says to which item of a part a row belongs."""


class RowBuffer:
    """Rows in memory that is taken once: small pieces between the large ones of a batch would tear the heap apart.

    Args:
        schema: Columns: numbers, or lists of a fixed number of them.

    Attributes:
        most: Rows that it can hold.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        shapes = [
            (field.type.value_type, (field.type.list_size,))
            if pa.types.is_fixed_size_list(field.type)
            else (field.type, ())
            for field in schema
        ]
        width = sum(kind.bit_width // 8 * math.prod(shape) for kind, shape in shapes)
        self.most = max(1, CHUNK_BYTES // width)
        self._columns = [np.empty((self.most, *shape), kind.to_pandas_dtype()) for kind, shape in shapes]
        self._count = 0

    def append(self, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Appends rows, unless they are too many; returns whether it did."""
        behind = self._count + len(rows[ITEM])
        if behind > self.most:
            return False
        for name, column in zip(self._schema.names, self._columns, strict=True):
            column[self._count : behind] = rows[name]
        self._count = behind
        return True

    def flush(self) -> pa.Table:
        """Returns the appended rows, valid until the next append, and empties the buffer."""
        parts = [column[: self._count] for column in self._columns]
        self._count = 0
        arrays = [
            pa.array(part)
            if part.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
            for part in parts
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)


class PartReader:
    """The rows of a part, item by item, each batch read once.

    Args:
        file: The part.
        most: Rows of a batch at most.

    Attributes:
        behind: The item after the last one whose rows were requested; those before cannot be read any more.
    """

    def __init__(self, file: pq.ParquetFile, most: int) -> None:
        self.behind = 0
        self._batches = file.iter_batches(batch_size=min(most, 8192))
        self._batch: pa.RecordBatch | None = None

    def rows_of(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of an item; those of the items before are passed over."""
        self.behind = number + 1
        while True:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
            if self._batch is None:
                return
            numbers = self._batch.column(ITEM).to_numpy()
            first, behind = np.searchsorted(numbers, (number, number + 1))
            if behind > first:
                yield self._batch.slice(first, behind - first).drop_columns([ITEM])
            self._batch = self._batch.slice(behind)
            if self._batch.num_rows:
                return
