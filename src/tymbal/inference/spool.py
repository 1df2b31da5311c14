"""What is known so far: rows by recording, in parts that are whole or absent, so that a stopped run continues.

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
from tymbal.config import diff
from tymbal.errors import SettingsError
from tymbal.files import PARTIAL, replace_file, write_json
from tymbal.inference.pieces import RECORDING, Held, Pieces
from tymbal.inference.recordings import Recording
from tymbal.locking import locked

__all__ = ["Outcome", "Spool", "writing"]

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
        self._held = Held(self._schema)
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
