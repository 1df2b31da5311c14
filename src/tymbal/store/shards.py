"""Shard files in memory: copied from where they are mapped, read straight from the disk where they are not cached.

Copying from a mapped file runs at the speed of memory as long as its pages are cached. Where they are not, every page
fault waits for the disk alone. Then the kernel is told all rows of a batch first (`posix_fadvise`), so that it fetches
them together, and they are read with `preadv`. Whether pages are cached is asked of a few rows (`RWF_NOWAIT`); the
answer only decides how fast a batch comes. Systems without these calls (macOS, Windows) always copy from the map.
"""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tymbal.errors import StoreError
from tymbal.store.format import NPY_HEADER

__all__ = ["MappedShard"]

_AGAIN = "Make the store again with `tymbal prepare`."
_CAN_ASK = hasattr(os, "RWF_NOWAIT") and hasattr(os, "posix_fadvise")


class MappedShard:
    """One `.npy` file of spectrograms, open for reading.

    Args:
        path: The file.
        rows: Spectrograms in it.
        shape: Of a row: [frames, mels], [views, frames, mels] or [samples].
        dtype: Of its values, two bytes each.

    Raises:
        StoreError: The file cannot be opened, or its header does not say this shape.
    """

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...], dtype: npt.DTypeLike = np.float16) -> None:
        self.path = path
        self.row_bytes = math.prod(shape) * 2
        self._file = _open(path)
        try:
            _check_header(path, (rows, *shape), np.dtype(dtype))
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(self._file)
            raise
        self.array: npt.NDArray[Any] = np.ndarray((rows, *shape), dtype, self._map, NPY_HEADER)

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)

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
        """Reads one row into `out` [row_bytes], past the map.

        Raises:
            StoreError: The file is shorter than it was, or the disk fails.
        """
        start, done = NPY_HEADER + row * self.row_bytes, 0
        while done < self.row_bytes:
            try:
                got = os.preadv(self._file, [out[done:]], start + done)
            except OSError as error:
                raise StoreError(f"cannot be read: {error.strerror}", path=self.path) from error
            if got == 0:
                raise StoreError(
                    "has become shorter since it was opened",
                    path=self.path,
                    advice="Make the store again with `tymbal prepare`.",
                )
            done += got


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


def _check_header(path: Path, wanted: tuple[int, ...], kind: np.dtype[Any]) -> None:
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError as error:
            raise StoreError(f"is no .npy file: {error}", path=path, advice=_AGAIN) from error
        if (shape, fortran, dtype, file.tell()) != (wanted, False, kind, NPY_HEADER):
            raise StoreError(
                f"holds {dtype} {list(shape)}, the store's description says {kind} {list(wanted)}",
                path=path,
                advice=_AGAIN,
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
