"""Opening SSAST's precomputed spectrograms, a `.pt` file each, as a store that can be trained from directly.

    store = open_pt("train.json", validation="val.json", target_length=1024, mean=-4.27, std=4.57)

Every file is looked at once, many at the same time. What is missing, unreadable or of the wrong shape is left out,
counted in one warning, and named in `failures.csv`; the rest is the store.

Results are kept in a record, so that the next start is quick: a Parquet table with a row per listed file, holding
what `examine` returned or the reason why the file is left out. A file whose size and time of change are those of the
record is not read again.

A training run must not change its clips in the middle: step 1,000 after a restart is to be the step 1,000 that was
planned. So a run that goes on takes its record as it stands (`as_recorded`). A file that has changed since then fails
when its turn comes.
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

from tymbal.audio.failures import Failure, write_failures
from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.files import replace_file
from tymbal.progress import Progress, tell
from tymbal.settings import PtSettings
from tymbal.store.packed.format import INDEX_SCHEMA
from tymbal.store.pt.pt_file import Examined, Place, examine
from tymbal.store.pt.pt_list import Header, PtFile, PtListing, list_pt
from tymbal.store.pt.pt_store import Content, PtStore

__all__ = ["Record", "look", "moments_of", "open_pt", "open_with", "reasons"]

_MELS = 128
_LONGEST = 1024
_ROUND = 16
_NAMED = 3
_PADDING = {"silence": LOG_FLOOR, "zeros": 0.0, None: None}
_AT_ONCE = 32
_MANY = 512
_KEY = b"tymbal"


def open_pt(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: str | os.PathLike[str] | None = None,
    data_val_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.0,
    label_csv: str | os.PathLike[str] | None = None,
    label_separator: str | None = None,
    target_length: int | None = None,
    mel_bins: int | None = None,
    layout: str = "auto",
    mean: float | None = None,
    std: float | None = None,
    padding: float | None = 0.0,
    failures_to: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    as_recorded: bool = False,
) -> PtStore:
    """Opens the `.pt` files of a list or a folder as a store.

    Args:
        source: SSAST's JSON list or another table of clips; or a folder of `.pt` files.
        data_dir: Folder of the list's files. None looks beside the list, see `tymbal.store.pt.pt_list`.
        validation: List, or folder, of the clips to validate on.
        data_val_dir: Folder of their files. None looks in `data_dir`, then beside the list.
        validation_fraction: Fraction of the clips that is drawn for validation where nothing says which.
        label_csv: SSAST's `index,mid,display_name` table; the store's labels have its order.
        label_separator: What stands between labels in one text of a list. None tells it from the labels.
        target_length: Frames of a spectrogram. None is the longest file's, at most 1024, rounded up to a multiple of
            16.
        mel_bins: Mel bins of the files. None is 128.
        layout: `frames-mels`, `mels-frames`, or `auto` to tell by the number of mel bins.
        mean: Mean of the log-mel values. None computes it, over real frames.
        std: Their standard deviation. None computes it, over real frames.
        padding: Log-mel value behind the end of short spectrograms: 0 by default, as SSAST pads. None is silence.
        failures_to: Where to write `failures.csv`. None writes none.
        record: File of the record of all files, so that the next start is quick. None keeps none.
        as_recorded: Take the record as it stands: the clips of a run that goes on are those that it was begun with.

    Raises:
        ManifestError: A list cannot be read, or has two entries with one stem.
        StoreError: The source is missing or empty, or not one file can be used.
    """
    listing = list_pt(
        source,
        data_dir=data_dir,
        validation=validation,
        data_val_dir=data_val_dir,
        label_csv=label_csv,
        label_separator=label_separator,
        validation_fraction=validation_fraction,
    )
    header = listing.header
    mels = mel_bins or header.mels or _MELS
    layout = header.layout if layout == "auto" else layout
    records = look(
        listing.files,
        mels=mels,
        layout=layout,
        record=None if record is None else Path(record),
        as_recorded=as_recorded,
    )
    to = None if failures_to is None else Path(failures_to)
    _warn_of_failures(listing, records, to, as_recorded=as_recorded)
    good = [(file, entry) for file, entry in zip(listing.files, records, strict=True) if not entry.reason]
    frames = target_length or header.frames or _common_length([entry for _, entry in good])
    computed_mean, computed_std = _statistics(header, [entry for _, entry in good], len(records), mels)
    if padding is None:
        padding = LOG_FLOOR if header.padding is None else header.padding
    return PtStore(
        Content(
            path=listing.path,
            index=_index(good, frames),
            paths=[entry.path for _, entry in good],
            places=[entry.place for _, entry in good],
            frames=frames,
            mels=mels,
            mean=computed_mean if mean is None else mean,
            std=computed_std if std is None else std,
            padding=padding,
            layout=layout,
            features=header.features,
            label_names=listing.label_names,
            failures=tuple(entry.failure for entry in records if entry.reason),
            failures_to=to,
        )
    )


def open_with(
    source: str | os.PathLike[str],
    settings: PtSettings,
    *,
    failures_to: Path | None = None,
    record: Path | None = None,
    as_recorded: bool = False,
) -> PtStore:
    """As `open_pt`, with the settings of a verb."""
    return open_pt(
        source,
        data_dir=settings.data_dir,
        validation=settings.data_val,
        data_val_dir=settings.data_val_dir,
        validation_fraction=settings.validation,
        label_csv=settings.label_csv,
        label_separator=settings.label_separator,
        target_length=settings.frames,
        mel_bins=settings.mel_bins,
        layout=settings.layout,
        mean=settings.dataset_mean,
        std=settings.dataset_std,
        padding=_PADDING[settings.padding],
        failures_to=failures_to,
        record=record,
        as_recorded=as_recorded,
    )


def _warn_of_failures(listing: PtListing, records: Sequence[Record], to: Path | None, *, as_recorded: bool) -> None:
    """Lists the files left out in one warning and in a file; raises if no file is left."""
    failures = [entry.failure for entry in records if entry.reason]
    # A run that goes on keeps the failures listed since it was begun.
    if to is not None and not (as_recorded and to.is_file()):
        write_failures(to, failures)
    if not failures:
        return
    some = "".join(f"\n    {failure.file}: {failure.reason}" for failure in failures[:_NAMED])
    if len(failures) == len(records):
        raise StoreError(
            f"not one of its {len(records):,} .pt files can be used ({reasons(records)}){some}",
            path=listing.path,
            advice=failures[0].advice or None,
        )
    where = f"see {to}" if to is not None else f"as{some}"
    tell(
        f"{listing.path}: {len(failures):,} of {len(records):,} .pt files are left out ({reasons(records)}), {where}",
        warning=True,
    )


def _common_length(records: Sequence[Record]) -> int:
    longest = max(entry.frames for entry in records)
    frames = -(-min(longest, _LONGEST) // _ROUND) * _ROUND
    if longest > frames:
        cut = sum(entry.real > frames for entry in records)
        tell(f"{cut:,} files are longer than {frames} frames and are cut: frames changes that", warning=True)
    return frames


def _statistics(header: Header, records: Sequence[Record], listed: int, mels: int) -> tuple[float, float]:
    """Mean and standard deviation: those of the converted store if all of its files are present, else computed."""
    if header.mean is not None and header.std is not None and len(records) == listed:
        return header.mean, header.std
    return moments_of(records, mels)


def _index(good: Sequence[tuple[PtFile, Record]], frames: int) -> pa.Table:
    columns = {
        "id": [file.id for file, _ in good],
        "file": [file.source for file, _ in good],
        "start": [file.start for file, _ in good],
        "end": [file.end for file, _ in good],
        "frames": [min(entry.real, frames) for _, entry in good],
        "labels": [list(file.labels) for file, _ in good],
        "group": [file.group for file, _ in good],
        "split": [file.split for file, _ in good],
        "shard": [0] * len(good),
        "row": list(range(len(good))),
        "version": [None] * len(good),
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


class Record(NamedTuple):
    """The recorded result for one file.

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
        reason: Why it is left out; empty if it is not.
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
        """The place of the spectrogram in its file."""
        return Place(self.size, self.modified, self.frames, self.offset, self.dtype, self.frame_step, self.mel_step)

    @property
    def failure(self) -> Failure:
        """Why the file is left out."""
        return Failure(self.path, self.reason, self.advice)

    @classmethod
    def of(cls, file: PtFile, examined: Examined) -> Record:
        """The record of a file that can be used."""
        return cls(file.id, file.path, *examined.place, examined.real, examined.mean, examined.m2)


def look(
    files: Sequence[PtFile],
    *,
    mels: int,
    layout: str,
    record: Path | None = None,
    as_recorded: bool = False,
    threads: int | None = None,
) -> list[Record]:
    """Examines all files; of those in a record only their size and time of change.

    Args:
        files: The files.
        mels: Mel bins that they have.
        layout: See `pt_file.load_spectrogram`.
        record: The record's file, read and written. None keeps none.
        as_recorded: Take the record as it stands, without checking the files.
        threads: Files that are read at the same time. None is four a core, for the waiting is for the disk.

    Returns:
        The record of each file, in order.

    Raises:
        StoreError: With `as_recorded`, the record is of other files.
    """
    kind = f"{mels} {layout}"
    known = [] if record is None else _read(record, kind)
    if as_recorded and known:
        return _moved(known, files, record)
    by_path = {entry.path: entry for entry in known}
    records = [by_path.get(file.path) for file in files]
    threads = threads or min(32, 4 * (os.cpu_count() or 1))
    pairs = list(zip(files, records, strict=True))
    groups = [pairs[start : start + _AT_ONCE] for start in range(0, len(pairs), _AT_ONCE)]
    current: list[Record] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress(
            len(files), "Looking at .pt files", unit="files", quiet=True if len(files) < _MANY else None
        ) as progress,
    ):
        for group in pool.map(lambda pairs: [_one(file, old, mels, layout) for file, old in pairs], groups):
            current += group
            progress.advance(len(group), failed=sum(bool(entry.reason) for entry in group))
    if record is not None and current != known:
        _write(record, current, kind)
    return current


def reasons(records: Sequence[Record]) -> str:
    """How many files are left out for which kind of reason: `3 missing, 2 unreadable`."""
    kinds = Counter(entry.reason.partition(":")[0] for entry in records if entry.reason)
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())


def moments_of(records: Sequence[Record], mels: int) -> tuple[float, float]:
    """Mean and standard deviation of all values of real frames; see `features.statistics` for the formula."""
    counts = np.array([entry.real for entry in records], np.float64) * mels
    means = np.array([entry.mean for entry in records])
    total = counts.sum()
    mean = float(counts @ means / total)
    m2 = sum(entry.m2 for entry in records) + float(counts @ np.square(means - mean))
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
    if [entry.id for entry in known] != [file.id for file in files]:
        raise StoreError(
            f"the run was begun with {len(known):,} other .pt files than the {len(files):,} that are listed now",
            path=record,
            advice="Give the same list to continue it, or choose another output folder.",
        )
    return [entry._replace(path=file.path) for entry, file in zip(known, files, strict=True)]


def _read(path: Path, kind: str) -> list[Record]:
    """Reads a record; empty if it is missing, damaged or of other settings."""
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
