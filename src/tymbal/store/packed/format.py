"""The files of a store folder: its description, and shard files, open for reading.

    store/
      store.json       schema version, features, shape, shards, statistics, settings, provenance; written last
      index.parquet    one row a spectrogram, in the order of the shards, with the CRC-32 of its bytes
      shards/00000.npy float16 [rows, frames, mels]; of a store of pairs of views [rows, 2, frames, mels];
                       of a store of waveforms int16 [rows, samples]
      failures.csv     what was left out, and why
    work/            while it is being prepared: what it was begun with, and a sidecar a finished shard

A folder without `store.json` is no store: it is written when everything else stands.

Rows are read with `preadv`, from cached pages at about half the speed of memory. Where pages are not cached, the kernel
is told all rows of a batch first (`posix_fadvise`), so that it fetches them together. Whether they are is asked of a
few rows (`RWF_NOWAIT`); the answer only decides how fast a batch comes. Systems without these calls (macOS, Windows)
just read. Nothing is mapped: a file that is cut off while a map of it is copied from would kill the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tymbal.errors import SettingsError, StoreError
from tymbal.features.normalisation import LOG_FLOOR
from tymbal.files import read_json, verified, with_checksum, write_json
from tymbal.settings import FeatureSettings

__all__ = [
    "CHECKSUMS",
    "DESCRIPTION",
    "DTYPES",
    "FAILURES",
    "INDEX",
    "INDEX_SCHEMA",
    "NPY_HEADER",
    "REPAIR",
    "SCHEMA",
    "SHARDS",
    "SPECTROGRAMS",
    "WAVEFORMS",
    "WORK",
    "DamagedStoreError",
    "Description",
    "Shard",
    "ShardFile",
    "check_file",
    "check_shard",
    "shard_name",
    "write_header",
]

SCHEMA = 1
SPECTROGRAMS, WAVEFORMS = "spectrograms", "waveforms"
DESCRIPTION = "store.json"
INDEX = "index.parquet"
FAILURES = "failures.csv"
SHARDS = "shards"
WORK = "work"

NPY_HEADER = 128
"""Bytes before the first spectrogram of a shard: an `.npy` header of this shape always fits, padded with spaces."""

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("frames", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("group", pa.string()),
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("version", pa.int32()),
    ]
)
"""Columns of the index: `start` and `end` in seconds of the file, `frames` of real sound, `row` within the shard,
`version` of the clip, null but for views."""


class DamagedStoreError(StoreError):
    """A store whose files are not what was written."""


CHECKSUMS = "crc"
"""The column of the index file, beside those of `INDEX_SCHEMA`, with the CRC-32 of each row's bytes."""


def shard_name(number: int) -> str:
    """The path of a shard inside its store."""
    return f"{SHARDS}/{number:05d}.npy"


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Writes the header of a shard at the beginning of an open file."""
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    if file.tell() != NPY_HEADER:
        raise ValueError(f"an .npy header of {file.tell()} bytes, not {NPY_HEADER}")


@dataclass(frozen=True)
class Shard:
    """A shard file: its path inside the store, spectrograms and bytes."""

    file: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class Description:
    """`store.json`.

    Attributes:
        features: How the spectrograms were computed; None if not recorded.
        frames: Frames of a spectrogram, padding included.
        mels: Mel bins.
        count: Spectrograms in all shards.
        shards: The shard files.
        mean: Mean of all log-mel values of real frames.
        std: Standard deviation of all log-mel values of real frames.
        real_frames: Real frames in the whole store.
        settings: The settings of the verb that made the store.
        provenance: Versions, time and source.
        padding: Log-mel value behind the end of a short spectrogram.
        views: Spectrograms a row: 1, or 2 in a store of pairs of views.
        kind: `spectrograms` or `waveforms`.
        index_crc: CRC-32 of the index; None in stores of earlier versions.
    """

    features: FeatureSettings | None
    frames: int
    mels: int
    count: int
    shards: tuple[Shard, ...]
    mean: float
    std: float
    real_frames: int
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    padding: float = LOG_FLOOR
    views: int = 1
    kind: str = SPECTROGRAMS
    index_crc: int | None = None

    def write(self, store: Path) -> None:
        """Writes `store.json`, whole or not at all."""
        values = with_checksum(
            {
                "schema": SCHEMA,
                "features": None if self.features is None else dataclasses.asdict(self.features),
                "frames": self.frames,
                "mels": self.mels,
                "views": self.views,
                "kind": self.kind,
                "dtype": DTYPES[self.kind],
                "padding": self.padding,
                "count": self.count,
                "shards": [dataclasses.asdict(shard) for shard in self.shards],
                "statistics": {"mean": self.mean, "std": self.std, "frames": self.real_frames},
                "settings": self.settings,
                "provenance": self.provenance,
                **({} if self.index_crc is None else {"index_crc": self.index_crc}),
            }
        )
        write_json(store / DESCRIPTION, values)

    @classmethod
    def read(cls, store: Path) -> Description:
        """Reads `store.json`.

        Raises:
            StoreError: There is none, it is damaged, or its schema is not ours.
        """
        path = store / DESCRIPTION
        try:
            value = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise _no_store(store) from None
        except OSError as error:
            raise StoreError(f"cannot be read: {error.strerror or error}", path=path) from error
        except ValueError as error:
            raise DamagedStoreError(f"is damaged: {error}", path=path, advice=_AGAIN) from None
        schema = value.get("schema") if isinstance(value, dict) else None
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            raise StoreError(
                f"has schema {schema!r}, this version of Tymbal reads {SCHEMA}",
                path=path,
                advice="Update Tymbal." if newer else _AGAIN,
            )
        try:
            return cls._from_json(verified(value))
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, SettingsError) as error:
            what = error if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise DamagedStoreError(f"is damaged: {what}", path=path, advice=_AGAIN) from error

    @classmethod
    def _from_json(cls, value: dict[str, Any]) -> Description:
        kind = value.get("kind", SPECTROGRAMS)
        if value["dtype"] != DTYPES[kind]:
            raise ValueError(f"dtype is {value['dtype']!r}, not {DTYPES[kind]}")
        statistics = value["statistics"]
        for shard in value["shards"]:
            place = PurePosixPath(str(shard["file"]).replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in place.parts[0]:
                raise ValueError(f"the shard {shard['file']!r} lies outside of the store")
        numbers = [value["frames"], value["mels"], value.get("views", 1), *(shard["rows"] for shard in value["shards"])]
        if not all(isinstance(each, int) and each > 0 for each in numbers):
            raise ValueError("frames, mels, views and rows are whole numbers above 0")
        if not all(math.isfinite(float(statistics[name])) for name in ("mean", "std")):
            raise ValueError("its statistics are not finite")
        return cls(
            features=None if value["features"] is None else FeatureSettings(**value["features"]),
            frames=int(value["frames"]),
            mels=int(value["mels"]),
            count=int(value["count"]),
            shards=tuple(Shard(**shard) for shard in value["shards"]),
            mean=float(statistics["mean"]),
            std=float(statistics["std"]),
            real_frames=int(statistics["frames"]),
            settings=dict(value["settings"]),
            provenance=dict(value["provenance"]),
            padding=float(value.get("padding", LOG_FLOOR)),
            views=int(value.get("views", 1)),
            kind=kind,
            index_crc=value.get("index_crc"),
        )


DTYPES = {SPECTROGRAMS: "float16", WAVEFORMS: "int16"}
"""The type of the values of each kind of store."""

_AGAIN = (
    "Run the `tymbal prepare` command that made it again, or copy it again. If you have changed it yourself, take its "
    "entry checksum out."
)


def _no_store(store: Path) -> StoreError:
    if not store.exists():
        return StoreError("there is no such folder", path=store, advice="Make a store with `tymbal prepare`.")
    if (store / WORK).is_dir():
        return StoreError(
            "is a store whose preparation has not finished",
            path=store,
            advice="Run the same `tymbal prepare` again: it continues.",
        )
    return StoreError(
        f"is no store: it has no {DESCRIPTION}", path=store, advice="Make a store of it with `tymbal prepare`."
    )


REPAIR = "Run the `tymbal prepare` command that made it again: it repairs what is damaged. Or copy it again."
"""What to do about a damaged store."""

_ALTERED = "is not what was written: its checksum differs"
_BLOCK = 1 << 22
_READ_AGAIN = REPAIR
_HAS_PREADV = hasattr(os, "preadv")
_CAN_ASK = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")


class ShardFile:
    """One `.npy` file of spectrograms, open for reading.

    It is read, not mapped: where a mapped file is cut off while a row is being copied, the process is killed. From
    cached pages a row of a second takes 5 microseconds instead of 2.5.

    Args:
        path: The file.
        rows: Spectrograms in it.
        shape: Shape of a row: [frames, mels], [views, frames, mels] or [samples].
        dtype: Type of its values, two bytes each.

    Raises:
        StoreError: The file cannot be opened, its header does not say this shape, or it is too short.
    """

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float16) -> None:
        self.path = path
        self.row_bytes = math.prod(shape) * 2
        self._lock = threading.Lock()
        self._file = _open(path)
        try:
            _check_header(path, (rows, *shape), np.dtype(dtype))
            self._check_length(rows)
        except BaseException:
            os.close(self._file)
            raise

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)

    def _check_length(self, rows: int) -> None:
        if os.lseek(self._file, 0, os.SEEK_END) < NPY_HEADER + rows * self.row_bytes:
            raise self._shorter()

    def _shorter(self) -> StoreError:
        return StoreError("has become shorter since it was opened", path=self.path, advice=REPAIR)

    def cached(self, row: int) -> bool:
        """Whether the first page of a row is in memory; True where the system cannot tell."""
        if not _CAN_ASK:
            return True
        try:
            os.preadv(self._file, [bytearray(1)], NPY_HEADER + row * self.row_bytes, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network file systems cannot answer without waiting.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        return True

    def announce(self, row: int) -> None:
        """Tells the kernel to fetch this row; returns at once."""
        os.posix_fadvise(self._file, NPY_HEADER + row * self.row_bytes, self.row_bytes, os.POSIX_FADV_WILLNEED)

    def read(self, row: int, out: memoryview) -> None:
        """Reads one row into `out` [row_bytes]; safe to call from several threads.

        Raises:
            StoreError: The file is shorter than it was, or the disk fails.
        """
        start, done = NPY_HEADER + row * self.row_bytes, 0
        while done < self.row_bytes:
            try:
                got = self._read_at(start + done, out[done:])
            except OSError as error:
                raise StoreError(f"cannot be read: {error.strerror}", path=self.path) from error
            if got == 0:
                raise self._shorter()
            done += got

    def _read_at(self, start: int, out: memoryview) -> int:
        """Reads some bytes from a place on; gives their number, 0 behind the end."""
        if _HAS_PREADV:
            return os.preadv(self._file, [out], start)
        with self._lock:  # elsewhere threads share one place in the file
            os.lseek(self._file, start, os.SEEK_SET)
            data = os.read(self._file, len(out))
        out[: len(data)] = data
        return len(data)


def check_file(path: Path, size: int | None, crc: int | None) -> None:
    """Compares a whole file with its size and CRC-32; None is not known. A file without bytes is damaged.

    Raises:
        StoreError: It is missing, or not what was written.
    """
    _check_size(path, size)
    if crc is not None:
        value = 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                value = zlib.crc32(block, value)
        if value != crc:
            raise DamagedStoreError(_ALTERED, path=path, advice=REPAIR)


def check_shard(path: Path, shard: Shard, checksums: Sequence[int]) -> None:
    """Compares a whole shard with its size and the CRC-32 of each row; of earlier versions with its size only.

    Raises:
        StoreError: It is missing, or not what was written.
    """
    _check_size(path, shard.bytes)
    if not checksums:
        return
    if len(checksums) != shard.rows:
        raise DamagedStoreError(f"has {shard.rows} rows and {len(checksums)} checksums", path=path, advice=REPAIR)
    length = (shard.bytes - NPY_HEADER) // shard.rows
    with path.open("rb") as file:
        file.seek(NPY_HEADER)
        for row, crc in enumerate(checksums):
            if zlib.crc32(file.read(length)) != crc:
                raise DamagedStoreError(f"row {row} of the shard {_ALTERED}", path=path, advice=REPAIR)


def _check_size(path: Path, size: int | None) -> None:
    try:
        actual = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise StoreError(f"cannot be looked at: {error.strerror or error}", path=path) from error
    if actual in (None, 0) or size not in (None, actual):
        problem = "is missing" if actual is None else f"has {actual} bytes, not {size}"
        raise DamagedStoreError(problem, path=path, advice=REPAIR)


def _open(path: Path) -> int:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno == errno.EMFILE and _allow_more_files():
            return os.open(path, flags)
        advice = None
        if error.errno == errno.EMFILE:
            advice = "Raise the limit (`ulimit -n 65536`), or make the store with a larger shard_mib."
        raise StoreError(f"cannot be opened: {error.strerror}", path=path, advice=advice) from error


def _check_header(path: Path, expected: tuple[int, ...], kind: np.dtype[Any]) -> None:
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise StoreError(f"is no .npy file: {error}", path=path, advice=_READ_AGAIN) from error
        if (shape, fortran, dtype, file.tell()) != (expected, False, kind, NPY_HEADER):
            raise StoreError(
                f"holds {dtype} {list(shape)}, the store's description says {kind} {list(expected)}",
                path=path,
                advice=_READ_AGAIN,
            )


def _allow_more_files() -> bool:
    """Raises this process' soft limit of open files to the hard one; False if that changes nothing."""
    try:
        import resource
    except ImportError:
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True
