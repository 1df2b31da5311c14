"""Spectrograms that lie in a `.pt` file each, read as those of any store; opened by `tymbal.store.pt.pt_folder`.

A batch is read file by file, each from the place at which its values lie. A file that has changed since it was looked
at goes through `torch.load` again. One that has become damaged is named, and left out of its batch by the dataset;
nothing ever stands in for it.

Values are float16 until they are normalised, as in a packed store; those of float32 files are rounded.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from tymbal.audio.failures import Failure, append_failures
from tymbal.errors import StoreError
from tymbal.progress import tell
from tymbal.settings import FeatureSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.parallel_copy import BufferPool
from tymbal.store.pt.pt_file import Place, load_spectrogram, read_at

__all__ = ["Content", "PtStore"]

_ASKED = 4
_THREADS = 8


@dataclass(frozen=True)
class Content:
    """The contents of a `PtStore`, which can be sent to other processes.

    Attributes:
        path: The list or folder.
        index: As in a packed store.
        paths: The files, [count].
        places: Places of the spectrograms in them, [count].
        frames: Frames of a spectrogram in a batch.
        mels: Mel bins.
        mean: Mean of the log-mel values.
        std: Their standard deviation.
        padding: Log-mel value behind the end of a short spectrogram.
        layout: How files are read.
        features: How they were computed, where that is known.
        label_names: All labels, in the order of the label table.
        failures: The files left out.
        failures_to: Where to list files left out later.
    """

    path: Path
    index: pa.Table
    paths: list[str]
    places: list[Place]
    frames: int
    mels: int
    mean: float
    std: float
    padding: float
    layout: str = "auto"
    features: FeatureSettings | None = None
    label_names: tuple[str, ...] | None = None
    failures: tuple[Failure, ...] = field(default=(), repr=False)
    failures_to: Path | None = None


class PtStore(SpectrogramSource):
    """Spectrograms from a `.pt` file each; open one with `open_pt`.

    Attributes:
        path: The list or the folder.
        index: One row a spectrogram, as in `Store`; `file` is what the list names, shard is 0.
    """

    def __init__(self, content: Content) -> None:
        super().__init__(content.path, content.index, content, label_names=content.label_names)
        self._content = content
        self._pool = BufferPool()
        self._named: set[int] = set()
        self._threads: ThreadPoolExecutor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._content,))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The files left out when the store was opened."""
        return self._content.failures

    @property
    def rounds(self) -> bool:
        """Whether some files are known to hold numbers of more than 16 bits, which `gather` rounds."""
        return any(place.dtype not in ("", "<f2") for place in self._content.places)

    @property
    def data_files(self) -> Sequence[Path]:
        """The `.pt` file of each row."""
        return [Path(path) for path in self._content.paths]

    @property
    def paths(self) -> Sequence[str]:
        """The `.pt` file of each row."""
        return tuple(self._content.paths)

    def spectrogram(self, row: int) -> Tensor:
        """One spectrogram as it is in its file: its own type, real frames only, [frames, mels].

        Raises:
            StoreError: The file cannot be read any more.
        """
        real = int(self.real_frames[row])
        if self._content.places[row].dtype == "<f2":
            out = np.empty((real, self.mels), np.float16)
            self._read(row, out)
            return torch.from_numpy(out)
        return self._load(row)[:real]

    def gather(self, rows: npt.ArrayLike, out: npt.NDArray[np.float16] | None = None) -> npt.NDArray[np.float16]:
        """Reads spectrograms, as raw log-mel values, padded or cut to `frames`.

        Args:
            rows: Row numbers in any order, [n].
            out: Where to put them, C-contiguous float16 [n, frames, mels]. None takes memory that is used again once
                neither the result nor anything that shares its memory is alive.

        Returns:
            float16 [n, frames, mels].

        Raises:
            IndexError: A row number is not in the store.
            DamagedRowsError: Files cannot be read any more; each is named once, in a warning and in `failures.csv`.
        """
        indices = self._checked(rows)
        out = self._memory(len(indices), out, self._pool)
        damaged: dict[int, StoreError] = {}
        for spectrogram, row, real in zip(out, indices.tolist(), self.real_frames[indices].tolist(), strict=True):
            try:
                self._read(row, spectrogram[:real])
            except StoreError as error:
                damaged[row] = error
            spectrogram[real:] = self.padding
        if damaged:
            self._name(damaged)
            first = next(iter(damaged.values()))
            raise DamagedRowsError(first.what, rows=damaged, path=first.path, advice=first.advice)
        return out

    def announce(self, rows: npt.ArrayLike) -> None:
        """Has the kernel fetch the files that come next, in the background.

        If the sampled files are cached, all are taken to be. A no-op where the system has no such call.
        """
        indices = self._checked(rows).tolist()
        if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
            return
        paths = self._content.paths
        if all(_cached(paths[row]) for row in indices[:: max(len(indices) // _ASKED, 1)]):
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tymbal-announce")
        for row in indices:
            self._threads.submit(_fetch, paths[row])

    def _read(self, row: int, out: npt.NDArray[np.float16]) -> None:
        path, place = self._content.paths[row], self._content.places[row]
        # load_spectrogram reports what is wrong with a file.
        with contextlib.suppress(OSError):
            if place.offset >= 0 and read_at(path, place, self.mels, out):
                return
        torch.from_numpy(out).copy_(self._load(row)[: len(out)])
        if not np.isfinite(out).all():
            raise StoreError("not finite: some values are not finite numbers", path=path)

    def _load(self, row: int) -> Tensor:
        """The whole file, by the way that reads all kinds."""
        path, frames = self._content.paths[row], self._content.places[row].frames
        tensor = load_spectrogram(path, mels=self.mels, layout=self._content.layout)
        if len(tensor) != frames:
            raise _other_shape(path, len(tensor), frames)
        return tensor

    def _name(self, damaged: dict[int, StoreError]) -> None:
        """Names files that became damaged, each once a process, where those lie that were left out before."""
        fresh = {row: error for row, error in damaged.items() if row not in self._named}
        self._named |= fresh.keys()
        for error in fresh.values():
            tell(f"Left out from now on: {error}", warning=True)
        to = self._content.failures_to
        if fresh and to is not None:
            append_failures(to, [Failure.of(error, error.path or "") for error in fresh.values()])


def _other_shape(path: str, frames: int, recorded: int) -> StoreError:
    return StoreError(
        f"wrong shape: it holds {frames} frames, and held {recorded} when it was first looked at",
        path=path,
        advice="Put the first one back, or begin a new run with what is there now.",
    )


def _cached(path: str) -> bool:
    """Whether the first page of a file is in memory; True where the system cannot tell."""
    try:
        with io.FileIO(path) as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _fetch(path: str) -> None:
    # Reading the file reports what is wrong with it.
    with contextlib.suppress(OSError), io.FileIO(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
