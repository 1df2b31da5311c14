"""The first look at every `.pt` file, many at once, and the record of it that makes the next start quick.

The record is a Parquet table: a row a listed file, with what `examine` found, or the reason why the file is left out. A
file whose size and time of change are those of the record is not read again.

A training run must not change its clips in the middle: step 1,000 after a restart is to be the step 1,000 that was
planned. So a run that goes on takes its record as it stands (`settled`). What became of a file since then is found when
its turn comes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tymbal.audio.failures import Failure
from tymbal.errors import StoreError
from tymbal.files import replace_file
from tymbal.progress import Progress
from tymbal.store.pt.pt_file import Examined, Place, examine
from tymbal.store.pt.pt_list import PtFile

__all__ = ["Record", "look", "moments_of", "reasons"]

_AT_ONCE = 32
_MANY = 512
_KEY = b"tymbal"


class Record(NamedTuple):
    """What is known of a file.

    Attributes:
        id: The clip.
        path: The file.
        size: Its bytes; -1 where it could not be used.
        modified: Time of its last change, in ns.
        frames: Frames in the file, padding included.
        offset: As in `Place`.
        dtype: As in `Place`.
        frame_step: As in `Place`.
        mel_step: As in `Place`.
        real: Frames of real sound.
        mean: Mean of the values of real frames.
        m2: Sum of their squared distances from the mean.
        reason: Why it is left out; empty where it is not.
        advice: What to do about that.
    """

    id: str
    path: str
    size: int = -1
    modified: int = 0
    frames: int = 0
    offset: int = -1
    dtype: str = ""
    frame_step: int = 0
    mel_step: int = 0
    real: int = 0
    mean: float = 0.0
    m2: float = 0.0
    reason: str = ""
    advice: str = ""

    @property
    def place(self) -> Place:
        """Where the spectrogram lies."""
        return Place(self.size, self.modified, self.frames, self.offset, self.dtype, self.frame_step, self.mel_step)

    @property
    def failure(self) -> Failure:
        """Why the file is left out."""
        return Failure(self.path, self.reason, self.advice)

    @classmethod
    def of(cls, file: PtFile, found: Examined) -> Record:
        """The record of a file that can be used."""
        return cls(file.id, file.path, *found.place, found.real, found.mean, found.m2)


def look(
    files: Sequence[PtFile],
    *,
    mels: int,
    layout: str,
    record: Path | None = None,
    settled: bool = False,
    threads: int | None = None,
) -> list[Record]:
    """Looks at all files, at those that a record knows only for their size and time of change.

    Args:
        files: The files.
        mels: Mel bins that they have.
        layout: See `pt_file.load_spectrogram`.
        record: Where the record is, and is written. None keeps none.
        settled: Take the record as it stands, whatever became of the files.
        threads: Files that are read at the same time. None is four a core, for the waiting is for the disk.

    Returns:
        What is known of each file, in order.

    Raises:
        StoreError: With `settled`, the record is of other files.
    """
    kind = f"{mels} {layout}"
    known = [] if record is None else _read(record, kind)
    if settled and known:
        return _moved(known, files, record)
    by_path = {one.path: one for one in known}
    records = [by_path.get(file.path) for file in files]
    threads = threads or min(32, 4 * (os.cpu_count() or 1))
    pairs = list(zip(files, records, strict=True))
    groups = [pairs[start : start + _AT_ONCE] for start in range(0, len(pairs), _AT_ONCE)]
    found: list[Record] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress(
            len(files), "Looking at .pt files", unit="files", quiet=True if len(files) < _MANY else None
        ) as progress,
    ):
        for group in pool.map(lambda pairs: [_one(file, old, mels, layout) for file, old in pairs], groups):
            found += group
            progress.advance(len(group), failed=sum(bool(one.reason) for one in group))
    if record is not None and found != known:
        _write(record, found, kind)
    return found


def reasons(records: Sequence[Record]) -> str:
    """How many files are left out for which kind of reason: `3 missing, 2 unreadable`."""
    kinds = Counter(one.reason.partition(":")[0] for one in records if one.reason)
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())


def moments_of(records: Sequence[Record], mels: int) -> tuple[float, float]:
    """Mean and standard deviation of all values of real frames; see `features.statistics` for the formula."""
    counts = np.array([one.real for one in records], np.float64) * mels
    means = np.array([one.mean for one in records])
    total = counts.sum()
    mean = float(counts @ means / total)
    m2 = sum(one.m2 for one in records) + float(counts @ np.square(means - mean))
    return mean, float(np.sqrt(m2 / total))


def _one(file: PtFile, old: Record | None, mels: int, layout: str) -> Record:
    if old is not None and not old.reason and _unchanged(old):
        return old._replace(id=file.id)
    try:
        return Record.of(file, examine(file.path, mels=mels, layout=layout))
    except StoreError as error:
        return Record(file.id, file.path, reason=error.what, advice=error.advice or "")


def _unchanged(old: Record) -> bool:
    try:
        status = os.stat(old.path)  # noqa: PTH116 - a hundred thousand of them
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (old.size, old.modified)


def _moved(known: list[Record], files: Sequence[PtFile], record: Path | None) -> list[Record]:
    """The record with the places at which the same files lie now."""
    if [one.id for one in known] != [file.id for file in files]:
        raise StoreError(
            f"the run was begun with {len(known):,} other .pt files than the {len(files):,} that are listed now",
            path=record,
            advice="Give the same list to continue it, or choose another output folder.",
        )
    return [one._replace(path=file.path) for one, file in zip(known, files, strict=True)]


def _read(path: Path, kind: str) -> list[Record]:
    """A record; nothing where there is none, or it was made with other settings."""
    if not path.is_file():
        return []
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return []
    if (table.schema.metadata or {}).get(_KEY) != kind.encode() or table.column_names != _SCHEMA.names:
        return []
    return [Record(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]


def _write(path: Path, records: Sequence[Record], kind: str) -> None:
    table = pa.table([list(column) for column in zip(*records, strict=True)], schema=_SCHEMA)
    with replace_file(path) as aside:
        pq.write_table(table.replace_schema_metadata({_KEY: kind.encode()}), aside)


_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in get_type_hints(Record).items()])
