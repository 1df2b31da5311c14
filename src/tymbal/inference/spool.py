"""What is known so far: rows by recording, in parts that are whole or absent, so that a stopped run continues."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.failures import Failure
from tymbal.audio.sources import Recording
from tymbal.config import diff
from tymbal.errors import SettingsError
from tymbal.files import PARTIAL, locked, replace_file, write_json

__all__ = ["PIECE", "RECORDING", "Outcome", "Pieces", "RowBuffer", "Spool", "writing"]

_SECONDS = 20.0  # after which a part is closed: what a kill can cost beside the recording at hand
_KEY = "tymbal"


@dataclass(frozen=True)
class Outcome:
    """What became of a recording.

    Attributes:
        file: Its path, as the user gave it.
        place: Its path from the folder that was given.
        stamp: Its size and time of change; None where there is no such file.
        seconds: Seconds of sound that were looked at.
        windows: Windows in them.
        began: When it was recorded, in ISO 8601, where its name or header tells.
        reason: Why it could not be read, or not to its end.
        advice: What to do about that.
    """

    file: str
    place: str
    stamp: tuple[int, int] | None
    seconds: float
    windows: int
    began: str | None = None
    reason: str | None = None
    advice: str = ""

    @property
    def failure(self) -> Failure | None:
        """The failure, if it is one."""
        return None if self.reason is None else Failure(self.file, self.reason, self.advice)


@contextlib.contextmanager
def writing(output: Path) -> Iterator[None]:
    """What cannot be read is an `AudioError` by now: within it, other errors of the system are about the output.

    Raises:
        SettingsError: The output cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"cannot be written: {error.strerror or error}",
            path=error.filename or output,
            advice="Look at its permissions and at the free space of the disk. Then run the same command again: it "
            "continues.",
        ) from error


class Spool:
    """Rows by recording; a context manager that holds the folder for one process.

    Args:
        output: What will be written in the end.
        schema: Columns of the rows.
        record: What decides the rows: a run that was begun with something else is not continued.

    Raises:
        SettingsError: Another process is at work, or the unfinished run was begun with something else.
    """

    def __init__(self, output: Path, *, schema: pa.Schema, record: Mapping[str, Any]) -> None:
        whole = output.absolute()
        self.folder = whole.with_name(f"{whole.name}.unfinished")
        self._output = output
        self._schema = schema.insert(0, pa.field(RECORDING, pa.int32()))
        self._record = dict(record)
        self._inside = contextlib.ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._part = contextlib.ExitStack()
        self._held = RowBuffer(self._schema)
        self._outcomes: list[Outcome] = []
        self._opened = 0.0
        self._steady = True  # not in the middle of writing: what is stopped now can be kept

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
        if path.is_file():
            changes = diff(json.loads(path.read_text(encoding="utf-8")), self._record)
            if changes:
                lines = "".join(f"\n    {line}" for line in changes)
                raise SettingsError(
                    f"the unfinished run was begun with something else:{lines}",
                    path=self.folder,
                    advice="Choose another output, or delete this folder to begin anew.",
                )
        else:
            write_json(path, self._record)
        for left in self.folder.glob(f"*{PARTIAL}"):
            left.unlink()

    def remove(self) -> None:
        """Deletes the folder: the output is written. To be called outside of the context, where the lock is open."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def done(self, recordings: Sequence[Recording]) -> set[Path]:
        """Paths of those recordings that need not be looked at again: they have not changed since."""
        return {Path(outcome.file) for outcome in self.outcomes(recordings)}

    def outcomes(self, recordings: Sequence[Recording]) -> list[Outcome]:
        """What became of these recordings, as far as they are done."""
        self._close_part()
        stamps = {str(recording.path): recording.stamp() for recording in recordings}
        return [
            outcome
            for part in self._parts()
            for outcome in _outcomes(pq.ParquetFile(part))
            if stamps.get(outcome.file, ()) == outcome.stamp
        ]

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Takes rows of the recording that will end next: a column each, as the schema has them."""
        count = len(next(iter(rows.values())))
        columns = {RECORDING: np.full(count, len(self._outcomes), np.int32), **rows}
        for start in range(0, count, self._held.most):
            part = {name: values[start : start + self._held.most] for name, values in columns.items()}
            if not self._held.take(part):
                self._write_held()
                self._held.take(part)

    def end(self, outcome: Outcome) -> None:
        """Notes what became of the recording whose rows were added."""
        if self._writer is None:
            self._open_part()
        self._outcomes.append(outcome)
        if time.monotonic() - self._opened >= _SECONDS:
            self._close_part()

    def read(self, recordings: Sequence[Recording]) -> Iterator[tuple[Outcome, Iterator[pa.RecordBatch]]]:
        """The outcomes of these recordings and their rows, as they were added.

        The rows of a recording have to be taken before the next one is asked for.
        """
        self._close_part()
        stamps = {str(recording.path): recording.stamp() for recording in recordings}
        for part in self._parts():
            file = pq.ParquetFile(part)
            pieces = Pieces(file, self._held.most)
            for number, outcome in enumerate(_outcomes(file)):
                if stamps.get(outcome.file, ()) == outcome.stamp:
                    yield outcome, pieces.of(number)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _open_part(self) -> None:
        parts = self._parts()
        number = 1 + int(parts[-1].stem) if parts else 0
        aside = self._part.enter_context(replace_file(self.folder / f"{number:05d}.parquet"))
        self._writer = self._part.enter_context(pq.ParquetWriter(aside, self._schema, compression="zstd"))
        self._opened = time.monotonic()

    def _write_held(self) -> None:
        if self._writer is None:
            self._open_part()
        if self._writer is not None:
            self._steady = False
            self._writer.write_table(self._held.give())
            self._steady = True

    def _close_part(self) -> None:
        if self._writer is None:
            return
        self._write_held()
        self._steady = False
        told = json.dumps([asdict(outcome) for outcome in self._outcomes])
        self._writer.add_key_value_metadata({_KEY: told})
        self._part.close()
        self._writer, self._outcomes = None, []
        self._steady = True


def _outcomes(file: pq.ParquetFile) -> list[Outcome]:
    told = json.loads((file.metadata.metadata or {})[_KEY.encode()])
    return [Outcome(**{**one, "stamp": one["stamp"] and tuple(one["stamp"])}) for one in told]


PIECE = 2**23
"""Bytes of a piece."""

RECORDING = "recording"
"""The column that tells to which recording of a part a row belongs."""


class RowBuffer:
    """Rows in memory that is taken once: small pieces between the large ones of a batch would tear the heap apart.

    Args:
        schema: Columns: numbers, or lists of a fixed number of them.

    Attributes:
        most: Rows that there is room for.
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
        self.most = max(1, PIECE // width)
        self._columns = [np.empty((self.most, *shape), kind.to_pandas_dtype()) for kind, shape in shapes]
        self._count = 0

    def take(self, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Takes rows, if there is room for them."""
        behind = self._count + len(rows[RECORDING])
        if behind > self.most:
            return False
        for name, column in zip(self._schema.names, self._columns, strict=True):
            column[self._count : behind] = rows[name]
        self._count = behind
        return True

    def give(self) -> pa.Table:
        """What is held; it has to be used before more is taken."""
        parts = [column[: self._count] for column in self._columns]
        self._count = 0
        arrays = [
            pa.array(part)
            if part.ndim == 1
            else pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), part.shape[1])
            for part in parts
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)


class Pieces:
    """The rows of a part, recording by recording, each piece read once.

    Args:
        file: The part.
        most: Rows of a piece.
    """

    def __init__(self, file: pq.ParquetFile, most: int) -> None:
        self._batches = file.iter_batches(batch_size=min(most, 8192))
        self._batch: pa.RecordBatch | None = None

    def of(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows of a recording; those of the recordings before are passed over."""
        while True:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
            if self._batch is None:
                return
            numbers = self._batch.column(RECORDING).to_numpy()
            first, behind = np.searchsorted(numbers, (number, number + 1))
            if behind > first:
                yield self._batch.slice(first, behind - first).drop_columns([RECORDING])
            self._batch = self._batch.slice(behind)
            if self._batch.num_rows:
                return
